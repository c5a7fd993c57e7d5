"""The way to the control store: a connection that is made again when it is lost, over which nothing is lost and nothing happens twice.

    request, send ──▶ LinkState ──▶ connection ──▶ control store        lost: dial again, with growing pauses up to 1 s
                         │ kept until answered                           back: greet, then send again what has no answer, in order
                         └─ no connection for give_up_s: RequestFailed

A session of one node has a link that does not last: its first loss is the end of the session, as the control store lives and dies with
the node. Everything happens on the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from shoal._core.transport import Connection, ConnectionLost, OnClose, OnMessage, RequestFailed
from shoal._core.wire.messages import Failed, Message, Ping

from .beats import Beats
from .state import GiveUp, HangUp, Instruction, LinkState, Send

log = logging.getLogger("shoal.control_link")

#: Seconds between attempts to connect: the first pause, and the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0

Dial = Callable[[OnMessage, OnClose], Awaitable[Connection]]


class LinkReply(asyncio.Future[Any]):
    """The answer to come. Cancelling it withdraws the request."""

    _link: ControlLink | None = None
    _number = 0
    #: The request of the connection of now.
    _carried: asyncio.Future[Any] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled and self._link is not None:
            self._link._withdraw(self._number)
            if self._carried is not None:
                self._carried.cancel()
        return cancelled


class ControlLink:
    """Looks like a ``Connection`` to those who send and ask. ``open`` makes the first connection.

    Args:
        dial: connects, once.
        client: stands for this process at the control store (see ``Once``).
        greet: makes the first request of every connection; what waits is sent when it is answered.
        on_refused: the greeting was answered by a no: this process is not welcome any more. The link is closed then.
        on_end: a link that does not last has lost its connection.
        lasting: dial again when the connection is lost.
        silence_s: seconds without a word from the control store after which the connection counts as lost.
        beat_s: seconds between two questions whether it is there.
        give_up_s: seconds that requests wait for a new connection.
        always: ask also when nothing is under way.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dial: Dial,
        client: bytes,
        *,
        greet: Callable[[], Any] | None = None,
        on_refused: Callable[[RequestFailed], None] | None = None,
        on_end: Callable[[], None] | None = None,
        lasting: bool = True,
        silence_s: float = 10.0,
        beat_s: float = 1.0,
        give_up_s: float = math.inf,
        always: bool = False,
    ) -> None:
        self.peer = "the control store"
        self.closed = False
        self.tag: Any = None
        self.on_message: Callable[[Any, Message], None] = _ignore
        self.on_close: Callable[[Any], None] | None = None
        self.on_batch_end: Callable[[], None] | None = None
        self._loop = loop
        self._dial = dial
        self.greet = greet
        self.on_refused = on_refused
        self._on_end = on_end
        self._lasting = lasting
        self._beat_s = beat_s
        self._beats: Beats | None = None
        self._give_up_s = give_up_s
        self._state = LinkState(client, silence_s=silence_s, beat_s=beat_s, give_up_s=give_up_s, always=always and lasting)
        self._connection: Connection | None = None
        self._waiting: dict[int, LinkReply] = {}
        self._dialling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- life ---

    def start_beats(self) -> None:
        """Beat from a thread when the loop is late. Before ``open``."""
        self._beats = Beats(self._beat_s, self._beat_now)
        self._beats.start()

    def _beat_now(self) -> None:
        """Tell the control store that this process lives, if the loop is not in the middle of sending."""
        connection = self._connection
        if connection is not None:
            connection.send_now(Ping(0))  # nobody waits for the answer

    async def open(self, *, patient: bool = False) -> Any:
        """Connect and greet; return the answer to the greeting (None if there is none). Raises what connecting raises, RequestFailed.

        ``patient``: try until it succeeds, and return None.
        """
        if patient:
            await self._redial()
            return None
        connection = await self._dial(self._message, self._lost)
        answer = await connection.request(self.greet()) if self.greet is not None else None
        self._use(connection)
        return answer

    def open_later(self) -> None:
        """Begin to connect and return at once; it is tried until it succeeds, and requests wait for it."""
        self._again()

    def close(self) -> None:
        """Send what can be sent, and end. Requests that wait raise ConnectionLost. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._beats is not None:
            self._beats.stop()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.close()
        self._fail_waiting()

    # --- sending ---

    def send(self, message: Message) -> None:
        """Send a message that has no answer. Nothing but figures of the moment is lost with a connection."""
        if self.closed:
            return
        if self._lasting:
            self._perform(self._state.send(message, self._loop.time()))
        elif self._connection is not None:
            self._connection.send(message)

    def request(self, message: Any) -> asyncio.Future[Any]:
        """Ask; the future's result is the answer, over whatever connection it came. Raises RequestFailed, ConnectionLost after the end."""
        if not self._lasting and self._connection is not None:
            return self._connection.request(message)
        reply = LinkReply(loop=self._loop)
        if self.closed:
            _lose(reply)
            return reply
        number, instructions = self._state.request(message, self._loop.time())
        reply._link, reply._number = self, number
        self._waiting[number] = reply
        self._perform(instructions)
        return reply

    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None:
        """Answer a question of the control store, on the connection of now."""
        if self._connection is not None:
            self._connection.send(Failed(rid, kind, message, detail))

    def saturated(self) -> bool:
        return self._connection is not None and self._connection.saturated()

    # --- private ---

    def _use(self, connection: Connection) -> None:
        """The connection stands and is greeted."""
        if connection.closed:  # in the turn of the greeting's answer; ``_lost`` has not been told of it as ours
            self._again()
            return
        self._connection = connection
        if self._beats is not None:
            connection.allow_send_now()
        connection.on_batch_end = self.on_batch_end
        if self._lasting:
            self._perform(self._state.connected(self._loop.time()))

    def _message(self, connection: Connection, message: Message) -> None:
        if self._lasting:
            self._state.heard(message, self._loop.time())
        self.on_message(connection, message)

    def _lost(self, connection: Connection) -> None:
        if connection is not self._connection or self.closed:
            return  # while it was greeted: ``_redial`` sees to it
        self._connection = None
        if self._lasting:
            log.info("The connection to the control store was lost; connecting again.")
            self._state.lost(self._loop.time())
            self._again()
            return
        self.closed = True
        self._fail_waiting()
        if self._on_end is not None:
            self._on_end()
        if self.on_close is not None:
            self.on_close(self)

    def _again(self) -> None:
        self._dialling = self._loop.create_task(self._redial())
        self._beat()

    async def _redial(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            connection: Connection | None = None
            try:
                connection = await self._dial(self._message, self._lost)
                if self.greet is not None:
                    async with asyncio.timeout(self._state.silence_s):
                        await connection.request(self.greet())
                break
            except RequestFailed as error:
                if error.kind == "OutOfDiskError":  # it will have room again
                    connection.abort()  # type: ignore[union-attr]
                    await asyncio.sleep(LONGEST_PAUSE_S)
                    continue
                log.warning("The control store does not take this process back: %s", error.message)
                if connection is not None:
                    connection.close()
                self.close()
                if self.on_refused is not None:
                    self.on_refused(error)
                return
            except (OSError, TimeoutError) as error:
                log.debug("No connection to the control store yet: %s", error)
                if connection is not None:
                    connection.abort()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        self._use(connection)

    def _perform(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send(message, 0):
                    assert self._connection is not None
                    self._connection.send(message)
                case Send(message, number):
                    assert self._connection is not None
                    self._ask(self._connection, message, number)
                case GiveUp(number):
                    self._give_up(number)
                case HangUp():
                    log.warning("The control store has not been heard for %g s; looking for it anew.", self._state.silence_s)
                    assert self._connection is not None
                    self._connection.abort()
        self._beat()

    def _ask(self, connection: Connection, message: Any, number: int) -> None:
        carried = connection.request(message)
        reply = self._waiting.get(number)
        if reply is not None:
            reply._carried = carried
        carried.add_done_callback(lambda future: self._answered(number, future))

    def _beat(self) -> None:
        """Look again in a while, if there is a reason to."""
        if self._timer is None and self._lasting and not self.closed and self._state.must_beat:
            self._timer = self._loop.call_later(self._beat_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._beats is not None:
            self._beats.on_time()
        self._perform(self._state.tick(self._loop.time()))

    def _answered(self, number: int, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, ConnectionLost):
            return  # it is sent again
        if error is None:
            self._state.answered(number, self._loop.time())
        else:
            self._state.refused(number, self._loop.time())
        reply = self._waiting.pop(number, None)
        if reply is not None and not reply.done():
            reply.set_exception(error) if error is not None else reply.set_result(future.result())

    def _withdraw(self, number: int) -> None:
        self._waiting.pop(number, None)
        self._state.withdraw(number)

    def _give_up(self, number: int) -> None:
        reply = self._waiting.pop(number, None)
        if reply is not None and not reply.done():
            reply.set_exception(
                RequestFailed(
                    "RaySystemError",
                    f"The control store could not be reached for {self._give_up_s:g} s (SHOAL_CONTROL_STORE_TIMEOUT_S). Whether it has "
                    "done what was asked is not known. Running tasks and actors go on. See whether its process and its machine are up: "
                    "the node beside it starts it again when it died.",
                )
            )

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            _lose(reply)


def _lose(reply: LinkReply) -> None:
    if not reply.done():
        reply.set_exception(ConnectionLost("The link to the control store is closed."))
        reply.exception()  # of interest to nobody at the end of a process


def _ignore(connection: Any, message: Message) -> None:
    """Drop what comes before somebody listens."""
