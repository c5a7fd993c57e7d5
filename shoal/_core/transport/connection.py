"""One end of a connection, whatever carries it: queueing, requests and their replies, dispatch.

    send, request ──▶ _out ──(once per loop iteration)──▶ _flush ──▶ _transmit      carried by a subclass
    _dispatch ◀── frames      reply: resolves the future of its request; anything else: on_message

Everything happens on the loop's thread. ``on_close`` never runs inside ``close`` or ``abort``: the loop calls it afterwards, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shoal._core.transport.errors import ConnectionLost, RequestFailed
from shoal._core.wire.codec import Attached, Buffer
from shoal._core.wire.messages import REPLY_TYPES, CancelRequest, Failed, Message

log = logging.getLogger("shoal.transport")

#: Unsent bytes above which a connection is saturated, and below which it no longer is: some ten milliseconds of a local socket.
HIGH_WATER_BYTES = 4 << 20
LOW_WATER_BYTES = 1 << 20
#: Seconds that ``close`` waits for a peer that does not read.
CLOSE_TIMEOUT_S = 5.0

OnMessage = Callable[["Connection", Message], None]
OnClose = Callable[["Connection"], None]


class ReplyFuture(asyncio.Future[Any]):
    """The reply to come. Cancelling it tells the peer (``CancelRequest``): a subclass, because a done-callback per request costs more."""

    _connection: Connection | None = None
    _rid = 0

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled and self._connection is not None:
            self._connection._forget(self._rid)
        return cancelled


class Connection:
    """One end of a connection. Used from the loop's thread only, but for ``send_now``.

    Set ``on_message`` and ``on_close`` inside ``on_connection`` (accepted) or pass them to ``connect``. An exception out of
    ``on_message`` is logged and closes this connection only.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str) -> None:
        self.peer = peer
        #: The numeric address of the peer's machine as it shows on a socket between machines; "": there is none.
        self.host = ""
        self.closed = False
        #: Free for the server that accepted the connection.
        self.tag: Any = None
        #: Requests and one-way messages; replies to ``request`` do not come here.
        self.on_message: OnMessage = _ignore_message
        #: Called once, for whatever reason the connection ended.
        self.on_close: OnClose = _ignore_close
        #: Called after the messages of each read have been delivered, for receivers that coalesce wake-ups.
        self.on_batch_end: Callable[[], None] | None = None
        #: Raw buffers of the message that ``on_message`` is called with.
        self.buffers: Sequence[Buffer] = ()
        self._loop = loop
        self._out: list[Message | Attached] = []
        #: Inside ``_dispatch``, whose end flushes; so nothing needs to be scheduled.
        self._dispatching = False
        self._next_rid = 1
        #: All and only requests whose reply is still wanted.
        self._pending: dict[int, ReplyFuture] = {}
        self._drain_waiters: list[asyncio.Future[None]] = []
        self._lost = False
        self._finishing = False
        self._reason = ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.peer}{' closed' if self.closed else ''}>"

    # --- sending ---

    def send(self, message: Message) -> None:
        """Queue a message; never blocks. All of one loop iteration leave together (256 a frame). On a closed connection it is dropped."""
        if self.closed:
            return
        out = self._out
        if not out and not self._dispatching:
            self._loop.call_soon(self._flush)
        out.append(message)

    def allow_send_now(self) -> None:
        """Let other threads use ``send_now``. On the loop's thread, as what it opens must not be lost by an interrupt. Idempotent."""

    def send_now(self, message: Message, is_valid: Callable[[], bool] | None = None, sent: Callable[[], object] | None = None) -> bool:
        """Send from any thread, without the loop; False if this message must be queued by ``send`` instead, as something is before it.

        ``is_valid`` is asked when nothing that the loop sends can get between any more; False: nothing is sent. ``sent``, which must be
        written in C, is called with the sending in one step: no signal's handler runs in between.
        """
        return False

    def send_attached(self, message: Message, buffers: Sequence[Buffer]) -> None:
        """Queue a message with raw buffers, which are not copied and must not change before they are sent.

        The receiver finds them in ``connection.buffers`` while its ``on_message`` runs. Not for replies.
        """
        if type(message) in REPLY_TYPES:
            raise TypeError(f"{type(message).__name__} is a reply; raw buffers travel with requests and one-way messages only.")
        self.send(Attached(message, tuple(buffers)))  # type: ignore[arg-type]

    def request(self, message: Any) -> asyncio.Future[Any]:
        """Send a message with a ``rid``, which is set here; the future's result is the reply.

        It raises RequestFailed when the peer says no, ConnectionLost when the connection ends first. Cancel it to withdraw the request.
        """
        reply = ReplyFuture(loop=self._loop)
        if self.closed or self._finishing:
            self._lose(reply)
            return reply
        rid = self._next_rid
        self._next_rid = rid + 1
        message.rid = reply._rid = rid
        reply._connection = self
        self._pending[rid] = reply
        self.send(message)
        return reply

    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None:
        """Answer a request with ``Failed``."""
        self.send(Failed(rid, kind, message, detail))

    def saturated(self) -> bool:
        """Whether more than the high-water mark is unsent."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Wait until less than the low-water mark is unsent. Raises ConnectionLost if the connection ends."""
        if self.closed:
            raise self._connection_lost_error()
        self._flush()
        if self.saturated():
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._drain_waiters.append(waiter)
            await waiter

    def finish(self) -> None:
        """Close when the replies under way have come. From now on requests raise ConnectionLost; what is sent still leaves."""
        self._finishing = True
        if not self._pending:
            self.close()

    @property
    def finishing(self) -> bool:
        """Whether ``finish`` was called."""
        return self._finishing

    def close(self) -> None:
        """Send what is queued, then close. Nothing is received any more."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close now; what is not sent yet is lost."""
        raise NotImplementedError

    # --- what a subclass calls and provides ---

    def _transmit(self, messages: list[Message | Attached]) -> None:
        """Carry the messages to the peer, in order."""
        raise NotImplementedError

    def _flush(self) -> None:
        out = self._out
        if out:
            self._out = []
            self._transmit(out)

    def _dispatch(self, batch: list[Message | Attached]) -> None:
        """Deliver the messages of one read. Replies that they cause leave at the end."""
        self._dispatching = not self._out  # otherwise a flush is scheduled already
        message: Message | Attached | None = None
        try:
            for message in batch:
                if self.closed:
                    return
                kind = type(message)
                if kind in REPLY_TYPES:
                    self._resolve(message)
                elif kind is Attached:
                    self._deliver_attached(message)  # type: ignore[arg-type]
                else:
                    self.on_message(self, message)  # type: ignore[arg-type]
            message = None
            if self.on_batch_end is not None:
                self.on_batch_end()
        except Exception:  # server loop: one bad message or handler must not take the process with it
            what = f"message {type(message).__name__}" if message is not None else "the end of a batch"
            log.exception("Handling %s from %s failed; closing this connection.", what, self.peer)
            self._reason = f"handling {what} failed in this process"
            self.close()
        finally:
            if self._dispatching:
                self._dispatching = False
                if self._out:
                    self._flush()

    def _deliver_attached(self, attached: Attached) -> None:
        self.buffers = attached.buffers
        try:
            self.on_message(self, attached.message)
        finally:
            self.buffers = ()

    def _resolve(self, reply: Any) -> None:
        future = self._pending.pop(reply.rid, None)
        if future is not None and not future.done():  # otherwise nobody waits any more
            if type(reply) is Failed:
                future.set_exception(RequestFailed(reply.kind, reply.message, reply.detail))
            else:
                future.set_result(reply)
        if self._finishing and not self._pending:
            self.close()

    def _forget(self, rid: int) -> None:
        if self._pending.pop(rid, None) is not None:
            self.send(CancelRequest(rid))
            if self._finishing and not self._pending:
                self.close()

    def _fail_request(self, message: Message, error: Exception) -> bool:
        """Give ``error`` to whoever waits for the reply to ``message``; False if nobody does."""
        future = self._pending.pop(getattr(message, "rid", 0), None) if type(message) not in REPLY_TYPES else None
        if future is None:
            return False
        if not future.done():
            future.set_exception(error)
        return True

    def _wake_drained(self, error: Exception | None = None) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None) if error is None else waiter.set_exception(error)

    def _lose(self, future: ReplyFuture) -> None:
        if not future.done():
            future.set_exception(self._connection_lost_error())
            future.exception()  # "never retrieved" would be noise: at the end of a process many replies are of interest to nobody

    def _connection_lost_error(self) -> ConnectionLost:
        why = f": {self._reason}" if self._reason else ""
        return ConnectionLost(f"The connection to {self.peer} is closed{why}.")

    def _end(self) -> None:
        """The connection is over: everybody who waits learns so, then ``on_close``. Idempotent."""
        if self._lost:
            return
        self._lost = self.closed = True
        self._out = []
        pending, self._pending = self._pending, {}
        for future in pending.values():
            self._lose(future)
        self._wake_drained(self._connection_lost_error())
        try:
            self.on_close(self)
        except Exception:  # server loop
            log.exception("on_close of the connection to %s failed.", self.peer)


class Listener(Protocol):
    """A place where connections arrive. ``close`` stops that; connections already made go on."""

    @property
    def address(self) -> str: ...
    def close(self) -> None: ...


class Transport(Protocol):
    """Makes connections. Addresses are opaque to all but the transport."""

    async def connect(
        self, address: str, on_message: OnMessage, on_close: OnClose | None = None, *, timeout_s: float = 5.0
    ) -> Connection: ...
    async def listen(self, address: str, on_connection: Callable[[Connection], None]) -> Listener: ...


def _ignore_message(connection: Connection, message: Message) -> None:
    """Drop messages of a connection whose server did not say what to do with them."""


def _ignore_close(connection: Connection) -> None:
    """Nobody wants to know."""
