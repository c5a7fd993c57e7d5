"""Gives objects of this node to other nodes (the shell around ``uploads.py``).

    port ── preamble: data of this node ──▶ accept ── a thread per socket: handshake, then batch after batch ──▶ sendfile
                                             │ one trip to the loop per batch: whom to serve; objects pinned, and given back
                                             └─ asked as relay: waits for what is still on its way here (``pulling.stream``)

A socket on which nothing is asked for a while is closed, and its thread ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from shoal._base.ids import NODE_BYTES
from shoal._core.object_store.arena import Arena
from shoal._core.object_store.client import Place, StoreClient
from shoal._core.object_store.pulling import Pulling
from shoal._core.object_store.pulls import Answer, Found, Piece
from shoal._core.object_store.store import ObjectStore
from shoal._core.object_store.transfer import STALL_S, DataSocket
from shoal._core.object_store.uploads import Uploads
from shoal._core.transport.errors import TransportError
from shoal._core.transport.preamble import Answer as PreambleAnswer
from shoal._core.transport.preamble import data_of
from shoal._core.transport.trust import Trust

log = logging.getLogger("shoal.object_store")

#: Seconds without a request until a socket is closed.
IDLE_S = 10.0
#: Sockets at once; whoever comes later is hung up on and tries again.
MOST = 256
#: Seconds that ``close`` waits for threads whose sockets it has shut down.
_JOIN_S = 1.0
_ABSENT = Answer(Found.ABSENT)
_HERE = Answer(Found.HERE)


class _Batch:
    """What the loop finds for a batch: an answer for each piece, a place for each that is here, and how these are given back."""

    def __init__(self, pieces: Sequence[Piece], deliver: Callable[[_Batch], None]) -> None:
        self.answers = [_ABSENT] * len(pieces)
        self.places: list[Place | None] = [None] * len(pieces)
        self.releases: list[Callable[[], None]] = []
        #: Answers that are still to come, and one for whoever gathers them.
        self._missing = len(pieces) + 1
        self._deliver = deliver

    def found(self, index: int, answer: Answer, place: Place | None = None, release: Callable[[], None] | None = None) -> None:
        self.answers[index], self.places[index] = answer, place
        if release is not None:
            self.releases.append(release)
        self.one_less()

    def one_less(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._deliver(self)


class Serving:
    """One node's. ``accept``, ``copies_of`` and ``close`` on the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: ObjectStore,
        client: StoreClient,
        arena: Arena,
        node_id: bytes,
        pulling: Pulling,
        trust: Trust,
    ) -> None:
        self._loop = loop
        self._store = store
        self._client = client
        self._arena = arena
        self._pulling = pulling
        self._trust = trust
        #: What sockets for this node's objects are asked for by.
        self.target = data_of(node_id)
        self._uploads = Uploads()
        self._sockets: dict[DataSocket, threading.Thread] = {}
        self._closed = False
        self._sent_bytes = 0

    def accept(self, sock: socket.socket) -> bool:
        """Serve a socket; False: there are too many."""
        if self._closed or len(self._sockets) >= MOST:
            return False
        data = DataSocket(sock)
        thread = self._sockets[data] = threading.Thread(target=self._run, args=(data,), name="shoal-upload", daemon=True)
        thread.start()
        return True

    def copies_of(self, object_ids: Sequence[bytes]) -> dict[bytes, list[bytes]]:
        """Return node -> objects, of these, of which it may have copies. The objects are gone here."""
        found: dict[bytes, list[bytes]] = {}
        for object_id in object_ids:
            for node_id in self._uploads.forget(object_id):
                found.setdefault(node_id, []).append(object_id)
        return found

    @property
    def sent_bytes(self) -> int:
        """Bytes of objects that have left for other nodes."""
        return self._sent_bytes

    def close(self) -> None:
        """Hang up on everybody and join the threads."""
        self._closed = True
        sockets = dict(self._sockets)
        for sock in sockets:
            sock.hang_up()
        for thread in sockets.values():
            thread.join(_JOIN_S)

    # --- in the socket's thread ---

    def _run(self, sock: DataSocket) -> None:
        node_id, as_relay = b"", False
        try:
            sock.send(bytes((PreambleAnswer.OPEN,)))
            sock.prove("server", self._trust, self.target)
            sock.limit_wait(STALL_S)
            node_id = sock.receive(NODE_BYTES)
            while True:
                sock.limit_wait(IDLE_S)
                pieces, as_relay = sock.receive_batch()
                if not pieces:
                    break
                sock.limit_wait(STALL_S)
                self._serve(sock, node_id, pieces, as_relay)
        except (BlockingIOError, TimeoutError):
            log.debug("Nothing was asked for %g s, or nothing moved.", IDLE_S)
        except (OSError, EOFError, TransportError) as error:
            log.debug("An upload ended: %s", error)
        finally:
            sock.close()
            self._on_loop(self._gone, sock, node_id if not as_relay else b"")

    def _serve(self, sock: DataSocket, node_id: bytes, pieces: Sequence[Piece], as_relay: bool) -> None:
        box: SimpleQueue[_Batch | None] = SimpleQueue()
        if not self._on_loop(self._look_up, node_id, pieces, as_relay, box.put):
            raise EOFError("This node has ended.")
        batch = box.get()
        assert batch is not None
        try:
            sock.send_answers(batch.answers)
            for piece, place in zip(pieces, batch.places, strict=True):
                if place is None:
                    continue
                if place.path:
                    with open(place.path, "rb") as file:
                        sock.send_range(file.fileno(), place.offset + piece.offset, piece.length)
                else:
                    sock.send_range(self._arena.fd, place.offset + piece.offset, piece.length)
        finally:
            self._on_loop(self._sent, node_id, pieces, batch)

    def _on_loop(self, function: Callable[..., None], *args: object) -> bool:
        """False: the loop has ended, and what it owned with it."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return False
        return True

    # --- on the loop ---

    def _look_up(self, node_id: bytes, pieces: Sequence[Piece], as_relay: bool, deliver: Callable[[_Batch], None]) -> None:
        batch = _Batch(pieces, deliver)
        pin: list[int] = []
        for index, piece in enumerate(pieces):
            if as_relay and not self._store.contains(piece.object_id):
                self._pulling.stream(piece.object_id, piece.offset + piece.length, partial(self._streamed, batch, index))
            elif not as_relay and (relay := self._uploads.ask(piece.object_id, piece.nbytes, node_id, piece.avoid)):
                batch.found(index, Answer(Found.ELSEWHERE, relay))
            else:
                pin.append(index)
        if pin:
            object_ids = [pieces[index].object_id for index in pin]
            self._client.pin(object_ids).add_done_callback(partial(self._pinned, batch, pieces, pin))
        batch.one_less()

    def _streamed(self, batch: _Batch, index: int, place: Place | None, done: Callable[[], None]) -> None:
        if place is None:
            batch.found(index, _ABSENT)
        else:
            batch.found(index, _HERE, place, done)

    def _pinned(self, batch: _Batch, pieces: Sequence[Piece], pin: list[int], done: asyncio.Future[list[Place | None]]) -> None:
        places = [None] * len(pin) if done.cancelled() or done.exception() is not None else done.result()
        for index, place in zip(pin, places, strict=True):
            piece = pieces[index]
            if place is None:
                batch.found(index, _ABSENT)
                continue
            release = partial(self._client.unpin, piece.object_id)
            if place.nbytes == piece.nbytes and piece.offset + piece.length <= piece.nbytes:
                batch.found(index, _HERE, place, release)
            else:
                log.warning("Node asks for %d bytes of object %s, which has %d.", piece.nbytes, piece.object_id.hex(), place.nbytes)
                batch.found(index, _ABSENT, None, release)

    def _sent(self, node_id: bytes, pieces: Sequence[Piece], batch: _Batch) -> None:
        for release in batch.releases:
            release()
        for piece, place in zip(pieces, batch.places, strict=True):
            if place is not None:
                self._sent_bytes += piece.length
                if piece.offset + piece.length == piece.nbytes:
                    self._uploads.sent(piece.object_id, node_id)

    def _gone(self, sock: DataSocket, node_id: bytes) -> None:
        del self._sockets[sock]
        if node_id:
            self._uploads.hung_up(node_id)
