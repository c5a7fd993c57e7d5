"""Bundles of placement groups on this node: resources taken from the node and kept for one group.

    prepare(group, {0: {...}, 2: {...}})   all of them or none; nobody can use them yet
    commit(group)                          leases may draw from them
    release(group)                         nobody draws any more; ``drop`` once the last lease inside has ended

A lease names a bundle by index, or -1 for any bundle of the group that has room.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from shoal._core.scheduling.resources import Allocation, Capacity


class Bundle(msgspec.Struct):
    group: bytes
    index: int
    #: What the bundle took from the node; freed when the bundle is dropped.
    taken: Allocation
    #: What leases draw from.
    capacity: Capacity


class Bundles:
    """All bundles reserved on this node."""

    def __init__(self, node: Capacity) -> None:
        self._node = node
        self._groups: dict[bytes, dict[int, Bundle]] = {}
        self._committed: set[bytes] = set()

    def __contains__(self, group: bytes) -> bool:
        return group in self._groups

    def prepare(self, group: bytes, bundles: Mapping[int, Mapping[str, int]]) -> bool:
        """Reserve all the bundles, or nothing. Repeating it for the same bundles changes nothing."""
        held = self._groups.get(group, {})
        prepared: dict[int, Bundle] = {}
        for index, need in bundles.items():
            if index in held:
                continue
            taken = self._node.acquire(need)
            if taken is None:
                for bundle in prepared.values():
                    self._node.release(bundle.taken)
                return False
            prepared[index] = Bundle(group, index, taken, Capacity(taken.amounts, taken.devices))
        self._groups.setdefault(group, {}).update(prepared)
        return True

    def commit(self, group: bytes) -> bool:
        """Open the bundles for leases; False when they were never prepared."""
        if group not in self._groups:
            return False
        self._committed.add(group)
        return True

    def close(self, group: bytes) -> bool:
        """Let nobody draw from the group any more; True when it had been committed."""
        was_open = group in self._committed
        self._committed.discard(group)
        return was_open

    def drop(self, group: bytes) -> None:
        """Return the group's resources to the node. Leases inside must have ended."""
        self._committed.discard(group)
        for bundle in self._groups.pop(group, {}).values():
            self._node.release(bundle.taken)

    def candidates(self, group: bytes, index: int) -> list[Bundle]:
        """Return the committed bundles that a lease for (group, index) may draw from; index -1 means any."""
        if group not in self._committed:
            return []
        bundles = self._groups[group]
        if index >= 0:
            return [bundles[index]] if index in bundles else []
        return list(bundles.values())

    def __iter__(self) -> Iterator[Bundle]:
        for bundles in self._groups.values():
            yield from bundles.values()

    def check(self) -> None:
        assert self._committed <= self._groups.keys()
        for bundles in self._groups.values():
            for bundle in bundles.values():
                bundle.capacity.check()
