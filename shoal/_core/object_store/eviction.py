"""Which object leaves shared memory when room is needed.

Knows the objects that may leave: resident, sealed, and read by nobody. Each is in one of three states:

    dirty  ──pick_spills──▶  cleaning  ──cleaned──▶  clean  ──pick_drop──▶  (gone)
      ▲                         │
      └──────not_cleaned────────┘

*dirty*: the only copy, so it must be written to disk before its memory is used again. *clean*: a copy is on disk or elsewhere.
Clean ones leave at once and so leave first; within a state the least recently used leaves first.

Rejected: largest first. It frees faster, but one large object that is read again and again would travel for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, Literal, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
State = Literal["dirty", "cleaning", "clean"]


class EvictionStatistics(msgspec.Struct, frozen=True):
    dirty_objects: int
    dirty_bytes: int
    cleaning_objects: int
    cleaning_bytes: int
    clean_objects: int
    clean_bytes: int


class EvictionPolicy(Generic[K]):
    """The evictable objects of one store, in the order of their last use."""

    def __init__(self) -> None:
        #: All and only evictable objects; the last one was used last. Key -> bytes.
        self._dirty: OrderedDict[K, int] = OrderedDict()
        self._cleaning: OrderedDict[K, int] = OrderedDict()
        self._clean: OrderedDict[K, int] = OrderedDict()
        self.dirty_bytes = 0
        self.cleaning_bytes = 0
        self.clean_bytes = 0

    def add(self, key: K, nbytes: int, state: State) -> None:
        """The object was just used for the last time, for now."""
        self.remove(key)
        self._put(key, nbytes, state)

    def remove(self, key: K) -> bool:
        """The object may not leave (a reader came), or is gone. False: it was not evictable."""
        if (nbytes := self._dirty.pop(key, None)) is not None:
            self.dirty_bytes -= nbytes
        elif (nbytes := self._clean.pop(key, None)) is not None:
            self.clean_bytes -= nbytes
        elif (nbytes := self._cleaning.pop(key, None)) is not None:
            self.cleaning_bytes -= nbytes
        return nbytes is not None

    def pick_spills(self, limit_bytes: int) -> list[K]:
        """Choose dirty objects to be written to disk now, one batch: as many as fit into ``limit_bytes``, at least one if there is one."""
        picked: list[K] = []
        total = 0
        for key, nbytes in self._dirty.items():
            if picked and total + nbytes > limit_bytes:
                break
            picked.append(key)
            total += nbytes
        for key in picked:
            nbytes = self._dirty.pop(key)
            self.dirty_bytes -= nbytes
            self._put(key, nbytes, "cleaning")
        return picked

    def cleaned(self, key: K) -> None:
        """The object's copy on disk is complete. Nothing happens if it is not evictable any more."""
        if (nbytes := self._cleaning.pop(key, None)) is not None:
            self.cleaning_bytes -= nbytes
            self._put(key, nbytes, "clean")

    def not_cleaned(self, keys: Iterable[K]) -> None:
        """The disk refused. They stand first in line again, in their old order."""
        for key in reversed(list(keys)):
            if (nbytes := self._cleaning.pop(key, None)) is not None:
                self.cleaning_bytes -= nbytes
                self._put(key, nbytes, "dirty")
                self._dirty.move_to_end(key, last=False)

    def pick_drop(self) -> K | None:
        """Choose the clean object that leaves next; it is not evictable afterwards."""
        if not self._clean:
            return None
        key, nbytes = self._clean.popitem(last=False)
        self.clean_bytes -= nbytes
        return key

    def state_of(self, key: K) -> State | None:
        if key in self._dirty:
            return "dirty"
        if key in self._clean:
            return "clean"
        return "cleaning" if key in self._cleaning else None

    def statistics(self) -> EvictionStatistics:
        return EvictionStatistics(
            len(self._dirty), self.dirty_bytes, len(self._cleaning), self.cleaning_bytes, len(self._clean), self.clean_bytes
        )

    def check(self) -> None:
        """Assert that the byte counts agree and that no object is in two states."""
        assert sum(self._dirty.values()) == self.dirty_bytes
        assert sum(self._cleaning.values()) == self.cleaning_bytes
        assert sum(self._clean.values()) == self.clean_bytes
        total = len(self._dirty) + len(self._cleaning) + len(self._clean)
        assert len(self._dirty.keys() | self._cleaning.keys() | self._clean.keys()) == total

    def _put(self, key: K, nbytes: int, state: State) -> None:
        if state == "dirty":
            self._dirty[key] = nbytes
            self.dirty_bytes += nbytes
        elif state == "clean":
            self._clean[key] = nbytes
            self.clean_bytes += nbytes
        else:
            self._cleaning[key] = nbytes
            self.cleaning_bytes += nbytes
