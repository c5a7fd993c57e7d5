"""What is fetched from other nodes, in which order, and from whom.

    want ─▶ waiting ─ admitted: few bytes are under way ─▶ MakeRoom ─ room ─▶ Ask, batch after batch ─▶ Seal
                 └─ nobody wants it any more, its sources are gone, there is no room ─────────────────▶ GiveUp

Order: what a blocked ``get`` needs first, then arguments of tasks, then what is fetched ahead of need; the oldest first in each. An object
comes in order, from its first byte to its last, from one source at a time: the node of the primary copy, or a node to which that one
sends us, which passes on what it has and what it gets (a relay). So whatever happens to a source, what is missing is the rest.

Pure: no sockets, no clock. ``pulling.py`` performs the instructions, which ``advance`` returns after any number of events.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import msgspec

#: A large object is asked for in pieces of this size: 2 ms of a fast network, after which something more urgent can come first.
CHUNK_BYTES = 4 << 20
#: Small objects asked for together: what they share is a wake-up of four threads, which costs as much as moving 300 KiB.
BATCH_PIECES = 32
#: Bytes after which a batch is full.
BATCH_BYTES = CHUNK_BYTES
#: Batches asked of one source at a time: it finds the next one there when it has sent the last.
DEPTH = 2
#: Failures of the primary's node without a byte in between until it is believed.
ATTEMPTS = 3


class Urgency(enum.IntEnum):
    """Who waits for it."""

    GET = 0
    ARGUMENT = 1
    AHEAD = 2


class Source(NamedTuple):
    """One stream of pieces from a node. Relays have one for each object, so that no stream waits for two objects."""

    node_id: bytes
    relay_of: bytes = b""


class Piece(NamedTuple):
    """Bytes ``offset`` to ``offset + length`` of an object of ``nbytes``. ``avoid``: a relay that was of no use."""

    object_id: bytes
    nbytes: int
    offset: int
    length: int
    avoid: bytes = b""


class Found(enum.IntEnum):
    """What a source says of a piece."""

    ABSENT = 0
    HERE = 1
    ELSEWHERE = 2


class Answer(NamedTuple):
    """``node_id``: whom to ask instead, if ELSEWHERE."""

    found: Found
    node_id: bytes = b""


class MakeRoom(msgspec.Struct, frozen=True):
    object_id: bytes


class Ask(msgspec.Struct, frozen=True):
    """Ask the source for this batch; then report ``answered`` or ``failed``, batch after batch in this order."""

    source: Source
    pieces: list[Piece]


class Seal(msgspec.Struct, frozen=True):
    object_id: bytes


class GiveUp(msgspec.Struct, frozen=True):
    """Nothing of it is under way any more. ``reason``: why it is lost; "": nobody wants it."""

    object_id: bytes
    reason: str


Instruction = MakeRoom | Ask | Seal | GiveUp


class _State(enum.Enum):
    WAITING = enum.auto()
    MAKING_ROOM = enum.auto()
    FETCHING = enum.auto()


class _Pull(msgspec.Struct, eq=False):
    object_id: bytes
    nbytes: int
    primary: bytes
    urgency: Urgency
    number: int
    source: Source
    state: _State = _State.WAITING
    #: Bytes asked for and bytes here, from the beginning.
    asked: int = 0
    done: int = 0
    #: The source has sent a piece, so it may be asked for several.
    confirmed: bool = False
    #: Pieces under way.
    flying: int = 0
    failures: int = 0
    avoid: bytes = b""
    complete: bool = False
    #: It is given up when the last piece under way has come: until then somebody writes into its memory.
    ending: bool = False
    #: Why it is lost.
    reason: str = ""

    def askable(self) -> bool:
        if self.state is not _State.FETCHING or self.complete or self.ending:
            return False
        if not self.confirmed:
            return self.flying == 0
        return self.asked < self.nbytes


class PullStatistics(msgspec.Struct, frozen=True):
    waiting: int
    under_way: int
    under_way_bytes: int
    pulled_objects_total: int
    pulled_bytes_total: int


class Pulls:
    """One node's.

    Args:
        limit_bytes: of objects under way together that are as urgent or more so; a larger one goes alone. So what is fetched ahead of need
            never keeps a blocked ``get`` waiting for room.
        limit_objects: likewise.
    """

    def __init__(self, limit_bytes: int, limit_objects: int = 256) -> None:
        self._limit_bytes = limit_bytes
        self._limit_objects = limit_objects
        self._pulls: dict[bytes, _Pull] = {}
        #: Heaps of (urgency, number, object); what has changed since is skipped.
        self._waiting: list[tuple[int, int, bytes]] = []
        self._askable: dict[Source, list[tuple[int, int, bytes]]] = {}
        self._flying: dict[Source, deque[list[Piece]]] = {}
        #: Those that may have come to their end.
        self._ending: dict[bytes, None] = {}
        self._complete: list[bytes] = []
        self._last_number = 0
        #: By urgency.
        self._objects_under_way, self._bytes_under_way = [0] * len(Urgency), [0] * len(Urgency)
        self._pulled_objects = self._pulled_bytes = 0

    # --- events ---

    def want(self, object_id: bytes, nbytes: int, primary: bytes, urgency: Urgency) -> None:
        """Somebody needs the object; again, perhaps, or more urgently."""
        pull = self._pulls.get(object_id)
        if pull is None:
            self._last_number += 1
            pull = self._pulls[object_id] = _Pull(object_id, nbytes, primary, urgency, self._last_number, Source(primary))
            self._queue(pull)
            return
        if urgency < pull.urgency:
            self._count(pull, -1)
            pull.urgency = urgency
            self._count(pull, 1)
            self._queue(pull)
        if pull.ending and not pull.reason:  # it was unwanted
            pull.ending = False
            self._queue(pull)
        pull.primary = primary

    def unwanted(self, object_id: bytes) -> None:
        """Nobody waits for the object any more."""
        pull = self._pulls.get(object_id)
        if pull is not None and not pull.complete:
            self._end(pull, "")

    def room(self, object_id: bytes) -> None:
        """There is room for it."""
        pull = self._pulls.get(object_id)
        if pull is not None and pull.state is _State.MAKING_ROOM:
            pull.state = _State.FETCHING
            self._queue(pull)

    def no_room(self, object_id: bytes) -> None:
        """There is none, or the object is not to be fetched any more; whoever waited has been told."""
        pull = self._pulls.get(object_id)
        if pull is not None:
            assert not pull.flying
            self._remove(pull)

    def answered(self, source: Source, answers: Sequence[Answer]) -> None:
        """The oldest batch asked of the source has come in."""
        pieces = self._flying[source].popleft()
        for piece, answer in zip(pieces, answers, strict=True):
            self._landed(source, piece, answer)

    def failed(self, source: Source, answers: Sequence[Answer], reason: str) -> None:
        """The source is gone, after the first ``answers`` of its oldest batch; nothing of it is under way any more."""
        pieces = [piece for batch in self._flying.pop(source, ()) for piece in batch]
        self._askable.pop(source, None)
        for piece, answer in zip(pieces, answers, strict=False):
            self._landed(source, piece, answer)
        for piece in pieces[len(answers) :]:
            pull = self._pulls[piece.object_id]
            pull.flying -= 1
            if pull.complete or pull.ending:
                self._settle(pull)
            elif pull.source != source:
                self._queue(pull)  # it waited for the last word of somebody whom it had left
        for pull in [pull for pull in self._pulls.values() if pull.source == source]:
            if not pull.ending and not pull.complete:
                self._source_failed(pull, reason)

    # --- what to do ---

    def advance(self) -> list[Instruction]:
        """Return what is to be done now."""
        complete, self._complete = self._complete, []
        out: list[Instruction] = [Seal(object_id) for object_id in complete]
        ending, self._ending = self._ending, {}
        for object_id in ending:
            pull = self._pulls.get(object_id)
            if pull is not None and pull.ending and not pull.flying:
                self._remove(pull)
                out.append(GiveUp(object_id, pull.reason))
        while self._waiting:
            urgency, _, object_id = self._waiting[0]
            pull = self._pulls.get(object_id)
            if pull is None or pull.state is not _State.WAITING or pull.urgency != urgency or pull.ending:
                heappop(self._waiting)
                continue
            before = sum(self._objects_under_way[: urgency + 1])
            full = before >= self._limit_objects or sum(self._bytes_under_way[: urgency + 1]) + pull.nbytes > self._limit_bytes
            if before and full:
                break
            heappop(self._waiting)
            pull.state = _State.MAKING_ROOM
            self._count(pull, 1)
            out.append(MakeRoom(object_id))
        for source in list(self._askable):
            flying = self._flying.setdefault(source, deque())
            while len(flying) < DEPTH and (pieces := self._batch(source)):
                flying.append(pieces)
                out.append(Ask(source, pieces))
            if not self._askable[source]:
                del self._askable[source]
        return out

    def is_idle(self, source: Source) -> bool:
        """Whether nothing is asked of the source now."""
        return not self._flying.get(source) and source not in self._askable

    def done_bytes(self, object_id: bytes) -> int | None:
        """Return how much of the object is here; None: it is not being fetched."""
        pull = self._pulls.get(object_id)
        return None if pull is None else pull.done

    def statistics(self) -> PullStatistics:
        under_way = sum(self._objects_under_way)
        return PullStatistics(
            len(self._pulls) - under_way, under_way, sum(self._bytes_under_way), self._pulled_objects, self._pulled_bytes
        )  # fmt: skip

    def check(self) -> None:
        """Assert the invariants. O(pulls)."""
        flying: dict[bytes, int] = {}
        for batches in self._flying.values():
            assert len(batches) <= DEPTH
            for piece in (piece for batch in batches for piece in batch):
                flying[piece.object_id] = flying.get(piece.object_id, 0) + 1
        assert flying.keys() <= self._pulls.keys(), "a piece of nothing is under way"
        for urgency in Urgency:
            under_way = [pull for pull in self._pulls.values() if pull.state is not _State.WAITING and pull.urgency == urgency]
            assert len(under_way) == self._objects_under_way[urgency]
            assert sum(pull.nbytes for pull in under_way) == self._bytes_under_way[urgency]
        for pull in self._pulls.values():
            assert pull.flying == flying.get(pull.object_id, 0), pull
            assert 0 <= pull.done <= pull.nbytes, pull
            assert pull.state is _State.FETCHING or not pull.flying, pull
            assert not pull.ending or pull.flying or pull.object_id in self._ending, pull
            assert not pull.complete or pull.flying, pull

    # --- inside ---

    def _queue(self, pull: _Pull) -> None:
        entry = (pull.urgency, pull.number, pull.object_id)
        if pull.state is _State.WAITING:
            heappush(self._waiting, entry)
        elif pull.askable():
            heappush(self._askable.setdefault(pull.source, []), entry)

    def _batch(self, source: Source) -> list[Piece]:
        """Take the most urgent pieces that the source can be asked for."""
        heap = self._askable[source]
        pieces: list[Piece] = []
        total = 0
        while heap and len(pieces) < BATCH_PIECES and total < BATCH_BYTES:
            urgency, _, object_id = heap[0]
            pull = self._pulls.get(object_id)
            if pull is None or pull.source != source or pull.urgency != urgency or not pull.askable():
                heappop(heap)
                continue
            length = min(CHUNK_BYTES, pull.nbytes - pull.asked)
            pieces.append(Piece(object_id, pull.nbytes, pull.asked, length, pull.avoid))
            pull.asked += length
            pull.flying += 1
            total += length
        return pieces

    def _landed(self, source: Source, piece: Piece, answer: Answer) -> None:
        pull = self._pulls[piece.object_id]
        pull.flying -= 1
        if answer.found is Found.HERE and pull.done == piece.offset:
            pull.done += piece.length
            pull.asked = max(pull.asked, pull.done)
            pull.complete = pull.done == pull.nbytes
            pull.failures = 0
        if pull.complete or pull.ending:
            self._settle(pull)
        elif pull.source != source:
            self._queue(pull)  # an answer of somebody whom we have left
        elif answer.found is Found.HERE:
            pull.confirmed, pull.avoid = True, b""
            self._queue(pull)
        elif answer.found is Found.ELSEWHERE and not source.relay_of:
            self._restart(pull, Source(answer.node_id, pull.object_id))
        elif source.relay_of:
            self._restart(pull, Source(pull.primary), avoid=source.node_id)
        else:
            self._end(pull, "It is not there any more.")

    def _source_failed(self, pull: _Pull, reason: str) -> None:
        if pull.source.relay_of:
            self._restart(pull, Source(pull.primary), avoid=pull.source.node_id)
            return
        pull.failures += 1
        if pull.failures >= ATTEMPTS:
            self._end(pull, reason)
        else:
            self._restart(pull, Source(pull.primary), avoid=pull.avoid)

    def _restart(self, pull: _Pull, source: Source, avoid: bytes = b"") -> None:
        """Fetch the rest from this source."""
        pull.source, pull.asked, pull.confirmed, pull.avoid = source, pull.done, False, avoid
        self._queue(pull)

    def _end(self, pull: _Pull, reason: str) -> None:
        pull.ending, pull.reason = True, reason
        self._ending[pull.object_id] = None

    def _settle(self, pull: _Pull) -> None:
        """One that is complete, or given up, ends with the last of its pieces under way."""
        if pull.flying:
            return
        if pull.complete:
            self._pulled_objects += 1
            self._pulled_bytes += pull.nbytes
            self._remove(pull)
            self._complete.append(pull.object_id)
        else:
            self._ending[pull.object_id] = None

    def _remove(self, pull: _Pull) -> None:
        del self._pulls[pull.object_id]
        self._count(pull, -1)

    def _count(self, pull: _Pull, change: int) -> None:
        if pull.state is not _State.WAITING:
            self._objects_under_way[pull.urgency] += change
            self._bytes_under_way[pull.urgency] += change * pull.nbytes
