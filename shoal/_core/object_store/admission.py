"""Whose turn it is when room is short: the queue in front of the arena.

    ask(request) ─▶ queue ─▶ advance() ─▶ Granted      a free range, perhaps after Dropped clean copies
                                         Spill        objects to write to disk; the request waits for that, and those behind it too
                                         Blocked      only readers hold what it needs, and the request does not want to wait for them

The oldest comes first as long as its turn depends on our disk alone. One that waits for *readers* lets the others pass: a reader may be a
task that cannot end before its own result has found room. Restores never wait for readers (they are read from the disk file
instead), so no two of them can hold half of what the other needs.

Pure: keys are opaque, nobody is called back, time does not exist here.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import msgspec

from shoal._core.object_store.allocation import Allocator, round_up
from shoal._core.object_store.eviction import EvictionPolicy

K = TypeVar("K", bound=Hashable)

#: Batches written to disk at the same time: one is prepared by the kernel while the other is on its way.
_PARALLEL_SPILLS = 2


class RoomRequest(msgspec.Struct, Generic[K], eq=False):
    """Somebody wants ``nbytes`` for ``key``. ``patient``: it waits for readers to leave; otherwise it is Blocked and withdrawn."""

    key: K
    nbytes: int
    patient: bool


class Granted(msgspec.Struct, Generic[K], frozen=True):
    request: RoomRequest[K]
    offset: int


class Dropped(msgspec.Struct, Generic[K], frozen=True):
    """The range of this clean copy has been taken for another object."""

    key: K


class Spill(msgspec.Struct, Generic[K], frozen=True):
    """Write these to one disk file; then report ``spilled`` or ``not_spilled``."""

    keys: list[K]


class Blocked(msgspec.Struct, Generic[K], frozen=True):
    request: RoomRequest[K]


class AdmissionStatistics(msgspec.Struct, frozen=True):
    waiting: int
    waiting_bytes: int
    spills_running: int


class Admission(Generic[K]):
    """Ranges, evictable objects and the queue of one store."""

    def __init__(self, capacity: int, batch_bytes: int) -> None:
        self.allocator = Allocator(capacity)
        self.policy: EvictionPolicy[K] = EvictionPolicy()
        #: Whether the disk takes more. The store sets it before each ``advance``.
        self.spillable = True
        #: Everything that has a range: key -> offset.
        self._ranges: dict[K, int] = {}
        self._queue: dict[RoomRequest[K], None] = {}
        self._spills_running = 0
        #: A request has had to wait for the disk, and the reserve has not been whole since: spill ahead of demand.
        self._pressed = False
        #: Bytes written to one file; in a small store an eighth of it, so that spilling ahead leaves most of the memory alone.
        self._batch_bytes = min(batch_bytes, self.allocator.capacity_bytes // 8)
        #: Free or clean bytes that spilling ahead aims at: two batches, so that one is consumed while the next is written.
        self._reserve_bytes = 2 * self._batch_bytes

    def fits(self, nbytes: int) -> bool:
        """Whether an object of this size could be in the arena at all."""
        return round_up(nbytes) <= self.allocator.capacity_bytes

    def waiting(self) -> int:
        return len(self._queue)

    def ask(self, request: RoomRequest[K]) -> None:
        self._queue[request] = None

    def withdraw(self, request: RoomRequest[K]) -> bool:
        """Take a request back. False: it was not waiting."""
        return self._queue.pop(request, 0) is None

    def release(self, key: K) -> None:
        """The object is gone; its range is free."""
        self.policy.remove(key)
        offset = self._ranges.pop(key, None)
        if offset is not None:
            self.allocator.free(offset)

    def spilled(self, keys: list[K]) -> None:
        self._spills_running -= 1
        for key in keys:
            self.policy.cleaned(key)

    def not_spilled(self, keys: list[K]) -> None:
        self._spills_running -= 1
        self.policy.not_cleaned(keys)

    def needs_no_disk(self) -> bool:
        """Whether all that wait have room at once, so that nobody need ask whether the disk takes more."""
        if self._pressed or len(self._queue) > 1:
            return False
        return all(self.allocator.has_range(request.nbytes) for request in self._queue)

    def needs_disk(self, nbytes: int) -> bool:
        """Whether room for this could be made only if the disk took more than it does."""
        need = round_up(nbytes)
        return self.policy.dirty_bytes > 0 and not self._is_coming(need) and need <= self.allocator.free_bytes + self._evictable_bytes()

    def advance(self) -> list[Granted[K] | Dropped[K] | Spill[K] | Blocked[K]]:
        """Give room to whoever can have it now. Call it after every change. O(waiting + what is granted)."""
        out: list[Granted[K] | Dropped[K] | Spill[K] | Blocked[K]] = []
        wanted = 0
        smallest_blocked = self.allocator.capacity_bytes + 1
        for request in list(self._queue):
            need = round_up(request.nbytes)
            offset = None
            if need < smallest_blocked and not wanted:
                offset = self._take(need, out)
            if offset is not None:
                del self._queue[request]
                self._ranges[request.key] = offset
                out.append(Granted(request, offset))
            elif wanted or (need < smallest_blocked and self._is_coming(need)):
                wanted += need
            else:
                smallest_blocked = min(smallest_blocked, need)
                if not request.patient:
                    del self._queue[request]
                    out.append(Blocked(request))
        self._plan_spills(wanted, out)
        return out

    def statistics(self) -> AdmissionStatistics:
        return AdmissionStatistics(len(self._queue), sum(request.nbytes for request in self._queue), self._spills_running)

    def check(self) -> None:
        self.allocator.check()
        self.policy.check()
        assert sum(self.allocator.size_of(offset) for offset in self._ranges.values()) == self.allocator.used_bytes
        assert len(set(self._ranges.values())) == len(self._ranges)
        assert 0 <= self._spills_running <= _PARALLEL_SPILLS
        assert not (self.policy.cleaning_bytes and not self._spills_running)

    def _take(self, need: int, out: list[Granted[K] | Dropped[K] | Spill[K] | Blocked[K]]) -> int | None:
        offset = self.allocator.allocate(need)
        if offset is not None or self.allocator.free_bytes + self.policy.clean_bytes < need:
            return offset
        while offset is None and (key := self.policy.pick_drop()) is not None:
            self.allocator.free(self._ranges.pop(key))
            out.append(Dropped(key))
            offset = self.allocator.allocate(need)
        return offset

    def _is_coming(self, need: int) -> bool:
        """Whether the disk alone stands between the request and its room. Free ranges in pieces count: more will leave around them."""
        if not self.policy.cleaning_bytes and not (self.spillable and self.policy.dirty_bytes):
            return False
        return need <= self.allocator.free_bytes + self._evictable_bytes(self.spillable)

    def _evictable_bytes(self, with_dirty: bool = True) -> int:
        return self.policy.clean_bytes + self.policy.cleaning_bytes + (self.policy.dirty_bytes if with_dirty else 0)

    def _plan_spills(self, wanted: int, out: list[Granted[K] | Dropped[K] | Spill[K] | Blocked[K]]) -> None:
        have = self.allocator.free_bytes + self.policy.clean_bytes
        if wanted:
            self._pressed = True
            # In pieces: what is there does not serve the one that waits, so as much again must leave.
            have = 0 if have >= wanted else have
        elif have >= self._reserve_bytes:
            self._pressed = False
        if not self._pressed or not self.spillable:
            return
        target = max(wanted, self._reserve_bytes)
        while self._spills_running < _PARALLEL_SPILLS:
            missing = target - have - self.policy.cleaning_bytes
            # Whole batches ahead of demand; a part of one only for somebody who waits and has nothing else to wait for.
            if missing <= 0 or (missing < self._batch_bytes and not (wanted and not self._spills_running)):
                break
            keys = self.policy.pick_spills(self._batch_bytes)
            if not keys:
                break
            self._spills_running += 1
            out.append(Spill(keys))
