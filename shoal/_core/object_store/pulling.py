"""Fetches objects of other nodes into this node's store (the shell around ``pulls.py``).

store ── want, unwanted ──▶ here ── expect, make_room, SealObject, AbortObject ──▶ store
                             │ a link (a socket and a thread) per source
                             └─ stream: an upload passes on what is here already of an object that still comes in
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from shoal._core.object_store.arena import Arena
from shoal._core.object_store.backoff import Backoff
from shoal._core.object_store.client import Place, StoreClient
from shoal._core.object_store.links import FileRange, Link
from shoal._core.object_store.pulls import Answer, Ask, GiveUp, MakeRoom, Piece, Pulls, PullStatistics, Seal, Source, Urgency
from shoal._core.object_store.store import ObjectStore
from shoal._core.object_store.transfer import DataSocket
from shoal._core.transport.errors import NodeUnknown, TransportError
from shoal._core.transport.trust import Trust
from shoal._core.wire.messages import AbortObject, Address, ObjectCreated, SealObject

log = logging.getLogger("shoal.object_store")

#: Seconds after which a connection that carries nothing is closed; the other side does so a little later.
IDLE_S = 8.0
#: Share of the store that is filled at the same time by objects on their way; the rest is for what is made here.
_SHARE = 4
#: Seconds that ``close`` waits for threads whose sockets it has shut down.
_JOIN_S = 1.0


#: Gets the place of an object, and what to call when it has been read; None: the object does not come.
OnStream = Callable[[Place | None, Callable[[], None]], None]


class _Incoming(msgspec.Struct, eq=False):
    """An object that is being fetched."""

    object_id: bytes
    nbytes: int
    node_id: bytes
    #: Under which the store answers.
    number: int
    place: Place | None = None
    #: Bytes that were here when it was complete.
    done: int = 0
    #: Uploads that read from it.
    streams: int = 0
    #: Uploads that wait until so many bytes are here.
    waiting: list[tuple[int, OnStream]] = msgspec.field(default_factory=list)
    #: It is sealed, and who reads from it has it pinned.
    sealed: bool = False
    #: It has ended otherwise; its memory goes with the last upload that reads from it.
    ended: bool = False


class Pulling:
    """One node's. Everything on the loop.

    Args:
        client: of the store, from inside.
        node_id: of this node.
        open_socket: connects to the data side of a node. Raises TransportError, OSError.
    """

    #: As creator of objects, for the store.
    peer = "the node's own pulls"
    closed = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: ObjectStore,
        client: StoreClient,
        arena: Arena,
        node_id: bytes,
        open_socket: Callable[[bytes], Awaitable[socket.socket]],
        trust: Trust,
    ) -> None:
        self._loop = loop
        self._store = store
        self._client = client
        self._arena = arena
        self._node_id = node_id
        self._open_socket = open_socket
        self._trust = trust
        self._pulls = Pulls(arena.nbytes // _SHARE)
        self._incoming: dict[bytes, _Incoming] = {}
        #: Those for which uploads wait.
        self._awaited: dict[bytes, _Incoming] = {}
        #: Those that the store has not answered yet, by the number under which it was asked.
        self._numbered: dict[int, _Incoming] = {}
        self._last_number = 0
        self._links: dict[Source, Link] = {}
        self._used_at: dict[Source, float] = {}
        self._backoff = Backoff()
        self._opening: set[asyncio.Task[None]] = set()
        self._turn = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._ended = False

    # --- for the store ---

    def want(self, object_id: bytes, node_id: bytes, nbytes: int, urgency: int) -> None:
        """Somebody waits for an object of another node (of this one: it is lost)."""
        if node_id == self._node_id or self._ended:
            return
        incoming = self._incoming.get(object_id)
        if incoming is None:
            self._last_number += 1
            incoming = self._incoming[object_id] = self._numbered[self._last_number] = _Incoming(
                object_id, nbytes, node_id, self._last_number
            )
            self._store.expect(self, self._last_number, object_id, nbytes, Address(b"", node_id, ""))
        if not incoming.ended:  # else whoever waits for it is about to hear so
            self._pulls.want(object_id, nbytes, node_id, Urgency(urgency))
            self._advance_soon()

    def unwanted(self, object_id: bytes) -> None:
        """Nobody here waits for it any more."""
        incoming = self._incoming.get(object_id)
        if incoming is not None and not incoming.waiting and not incoming.streams:
            self._pulls.unwanted(object_id)
            self._advance_soon()

    def send(self, message: Any) -> None:
        """There is room for an object."""
        assert isinstance(message, ObjectCreated)
        incoming = self._numbered.pop(message.rid)
        incoming.place = Place(message.offset, incoming.nbytes, message.path)
        self._pulls.room(incoming.object_id)
        self._advance_soon()

    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None:
        """There is no room, or the object has been freed or is being made here; the store has told those who wait."""
        incoming = self._numbered.pop(rid)
        log.log(
            logging.DEBUG if kind == "ObjectExists" else logging.WARNING,
            "No copy of object %s is made here: %s", incoming.object_id.hex(), message,
        )  # fmt: skip
        self._pulls.no_room(incoming.object_id)
        self._forget(incoming)

    # --- for uploads ---

    def stream(self, object_id: bytes, until: int, then: OnStream) -> None:
        """Call ``then`` when an object that is on its way here is here up to ``until``, or when it does not come.

        Call the ``done`` that it gets once, when what was read has been sent.
        """
        incoming = self._incoming.get(object_id)
        if incoming is None or incoming.ended:
            then(None, _nothing)
        else:
            incoming.waiting.append((until, then))
            self._awaited[object_id] = incoming
            self._serve_streams(incoming)

    # --- life ---

    def statistics(self) -> PullStatistics:
        return self._pulls.statistics()

    async def close(self) -> None:
        """Give up what is under way and join the threads."""
        self._ended = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        threads = [link.end() for link in self._links.values()]
        self._links.clear()
        for thread in threads:
            if thread is not None:
                thread.join(_JOIN_S)

    # --- inside ---

    def _advance_soon(self) -> None:
        """Once per turn of the loop, so that what is wanted in one turn is asked for together."""
        if not self._turn and not self._ended:
            self._turn = True
            self._loop.call_soon(self._advance)

    def _advance(self) -> None:
        self._turn = True
        while not self._ended and (instructions := self._pulls.advance()):
            for instruction in instructions:
                match instruction:
                    case MakeRoom(object_id):
                        self._make_room(self._incoming[object_id])
                    case Ask(source, pieces):
                        self._ask(source, pieces)
                    case Seal(object_id):
                        self._seal(self._incoming[object_id])
                    case GiveUp(object_id, reason):
                        self._give_up(self._incoming[object_id], reason)
        self._turn = False

    def _make_room(self, incoming: _Incoming) -> None:
        if not self._store.make_room(self, incoming.object_id):  # it was freed, or is made here now
            self._pulls.no_room(incoming.object_id)
            self._forget(incoming)

    def _ask(self, source: Source, pieces: list[Piece]) -> None:
        link = self._links.get(source)
        if link is None:
            link = Link(self._loop, bool(source.relay_of), partial(self._answered, source), partial(self._failed, source))
            self._links[source] = link
            task = self._loop.create_task(self._open(source, link))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        link.ask(pieces, [self._target(piece) for piece in pieces])

    def _target(self, piece: Piece) -> memoryview | FileRange:
        place = self._incoming[piece.object_id].place
        assert place is not None
        if place.path:
            return FileRange(place.path, place.offset + piece.offset)
        return self._arena.writable_range(place.offset + piece.offset, piece.length)

    async def _open(self, source: Source, link: Link) -> None:
        node_id = source.node_id
        try:
            await asyncio.sleep(self._backoff.wait_s(node_id, self._loop.time()))
            sock = await self._open_socket(node_id)
        except (OSError, TransportError) as error:
            self._backoff.failed(node_id, self._loop.time(), known=not isinstance(error, NodeUnknown))
            self._failed(source, [], str(error))
            return
        self._backoff.worked(node_id)
        link.start(DataSocket(sock), self._trust, node_id, self._node_id)
        self._used_at[source] = self._loop.time()
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(IDLE_S, self._end_idle)

    def _answered(self, source: Source, answers: list[Answer]) -> None:
        self._used_at[source] = self._loop.time()
        self._pulls.answered(source, answers)
        self._progressed()
        if source.relay_of and self._pulls.is_idle(source):
            self._end_link(source)

    def _failed(self, source: Source, answers: list[Answer], reason: str) -> None:
        log.debug("Nothing comes from node %s: %s", source.node_id.hex(), reason)
        self._end_link(source)
        self._pulls.failed(source, answers, reason)
        self._progressed()

    def _progressed(self) -> None:
        self._advance()
        for incoming in list(self._awaited.values()):
            self._serve_streams(incoming)

    def _end_link(self, source: Source) -> None:
        link = self._links.pop(source, None)
        self._used_at.pop(source, None)
        if link is not None:
            link.end()

    def _end_idle(self) -> None:
        now = self._loop.time()
        for source, used_at in list(self._used_at.items()):
            if now - used_at >= IDLE_S and self._pulls.is_idle(source):
                self._end_link(source)
        self._idle_timer = self._loop.call_later(IDLE_S, self._end_idle) if self._links else None

    def _seal(self, incoming: _Incoming) -> None:
        object_id = incoming.object_id
        incoming.done = incoming.nbytes
        self._serve_streams(incoming)
        if incoming.streams and not self._store.is_expected(self, object_id):  # freed, but uploads read from it
            incoming.ended = True
            return
        self._forget(incoming)
        self._store.handle(self, SealObject(object_id))
        incoming.sealed = True
        for _ in range(incoming.streams):
            self._client.pin([object_id])

    def _give_up(self, incoming: _Incoming, reason: str) -> None:
        if reason:
            log.warning("Object %s could not be fetched from node %s: %s", incoming.object_id.hex(), incoming.node_id.hex(), reason)
        incoming.ended = True
        self._serve_streams(incoming)
        if not incoming.streams:
            self._abort(incoming)

    def _abort(self, incoming: _Incoming) -> None:
        self._forget(incoming)
        self._store.handle(self, AbortObject(incoming.object_id))

    def _forget(self, incoming: _Incoming) -> None:
        del self._incoming[incoming.object_id]
        self._numbered.pop(incoming.number, None)

    def _serve_streams(self, incoming: _Incoming) -> None:
        """Answer the uploads for whom enough is here, or all of them if no more comes."""
        waiting, incoming.waiting = incoming.waiting, []
        for until, then in waiting:
            if incoming.ended:
                then(None, _nothing)
            elif incoming.place is not None and until <= self._here(incoming):
                incoming.streams += 1
                then(incoming.place, partial(self._stream_done, incoming))
            else:
                incoming.waiting.append((until, then))
        if not incoming.waiting:
            self._awaited.pop(incoming.object_id, None)

    def _here(self, incoming: _Incoming) -> int:
        done = self._pulls.done_bytes(incoming.object_id)
        return incoming.done if done is None else done

    def _stream_done(self, incoming: _Incoming) -> None:
        if incoming.sealed:
            self._client.unpin(incoming.object_id)
            return
        incoming.streams -= 1
        if incoming.ended and not incoming.streams:
            self._abort(incoming)


def _nothing() -> None:
    """Nothing was held."""
