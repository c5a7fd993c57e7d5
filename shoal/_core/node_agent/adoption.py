"""Objects whose owner is gone and that the node agent owns in its place.

Owns: their values, who borrows them, and when they are free.
Must not know: connections, the object store (it is told what to free), clocks.

An owner that ends in good order hands over with ``adopt``: values and borrower counts. An owner that was killed leaves only what lies in
the object store (``adopt_stored``): nobody knows who borrows it, so it waits ``grace_s`` for holders to say so.

Counts. What an owner hands over, and passes on until it has ended, is exact: nothing is lost, and nothing may be added when a borrower
that turns here tells its *full* count. Of an owner that was killed nothing is known, so full counts add up with what third processes
register meanwhile; one of these may be counted twice, which can leak until the borrower ends, and never free early.

A node that leaves hands on what others hold (``held``, ``pass_on``) to the agent of another one, which keeps it as promised (``inherit``)
until the first has ended: its heir by then, or not (``testator_ended``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import msgspec

from shoal._core.wire.messages import STORED, Address, OwnedObject, Value


class AdoptedObject(msgspec.Struct, eq=False):
    object_id: bytes
    value: Value
    #: Registrations by worker id.
    counts: dict[bytes, int] = msgspec.field(default_factory=dict)
    #: Borrowers whose count is the dead owner's word; their own first word is still to come.
    inherited: set[bytes] = msgspec.field(default_factory=set)
    #: Where borrowers are, as far as they have said it.
    addresses: dict[bytes, Address] = msgspec.field(default_factory=dict)
    #: Until then it lives without borrowers.
    grace_until: float = 0.0
    forever: bool = False
    lost: bool = False
    #: The owner's counts are known, as it ended in good order.
    handed_over: bool = False
    #: The agent itself is registered with the owners of the references inside (and has to unregister).
    registered: bool = False


class Adoption:
    """All adopted objects of the node."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self.objects: dict[bytes, AdoptedObject] = {}
        #: Inner object -> adopted containers that hold a reference to it.
        self._containers: dict[bytes, set[bytes]] = {}
        #: Objects whose grace must be looked at, so that a tick does not visit all.
        self._in_grace: set[bytes] = set()
        #: Node that leaves -> what it has promised to this one.
        self._promised: dict[bytes, set[bytes]] = {}

    def __contains__(self, object_id: bytes) -> bool:
        return object_id in self.objects

    def adopt(self, objects: Iterable[OwnedObject], connected: Collection[bytes], now: float) -> list[AdoptedObject]:
        """Take over from an owner that ends in good order. Borrowers that are not ``connected`` have the grace to appear."""
        taken = []
        for one in objects:
            adopted = self._insert(one.object_id, one.value, now)
            adopted.registered = adopted.handed_over = True
            for borrower, count in one.borrowers:
                adopted.counts[borrower.worker_id] = adopted.counts.get(borrower.worker_id, 0) + count
                adopted.inherited.add(borrower.worker_id)
                adopted.addresses[borrower.worker_id] = borrower
            if adopted.counts and adopted.counts.keys() <= set(connected):
                self._end_grace(adopted)
            taken.append(adopted)
        return taken

    def held(self) -> list[AdoptedObject]:
        """Return what borrowers hold, what is inside of that, to any depth, and what that is inside of."""
        found: dict[bytes, AdoptedObject] = {}
        work = [adopted for adopted in self.objects.values() if adopted.counts or adopted.forever]
        while work:
            adopted = work.pop()
            if adopted.object_id not in found:
                found[adopted.object_id] = adopted
                work += [self.objects[inner.object_id] for inner in adopted.value.refs if inner.object_id in self.objects]
                work += [self.objects[container] for container in self._containers.get(adopted.object_id, ())]
        return list(found.values())

    def pass_on(self, adopted: Sequence[AdoptedObject]) -> None:
        """Another agent owns these from now on; nothing of them is free."""
        for one in adopted:
            del self.objects[one.object_id]
            self._end_grace(one)
        for one in adopted:
            self._let_go_inside(one)

    def inherit(self, objects: Iterable[OwnedObject], testator: bytes, connected: Collection[bytes], now: float) -> list[AdoptedObject]:
        """Take over from the agent of a node that leaves, for the time when it has; returns those that are new here.

        This one is not registered inside of them yet: if the other ended in the middle of doing that for it, nobody would undo it.
        """
        new = self.adopt([one for one in objects if one.object_id not in self.objects], connected, now)
        for adopted in new:
            adopted.registered = False
            adopted.grace_until = math.inf
            self._in_grace.add(adopted.object_id)
            self._promised.setdefault(testator, set()).add(adopted.object_id)
        return new

    def testator_ended(self, testator: bytes, now: float, *, is_heir: bool) -> list[AdoptedObject]:
        """The node has left or died; returns what is free.

        Borrowers have the grace to turn to its heir. If that is not this node, none will come.
        """
        promised = [self.objects[object_id] for object_id in sorted(self._promised.pop(testator, ())) if object_id in self.objects]
        for adopted in promised:
            adopted.grace_until = now + self._grace_s
            if not is_heir:
                adopted.counts.clear()
                adopted.inherited.clear()
                adopted.forever = False
                self._end_grace(adopted)
        return [] if is_heir else self._collect([adopted.object_id for adopted in promised])

    def moved(self, object_id: bytes, source: bytes, node_id: bytes) -> bool:
        """The object lies on ``node_id`` from now on, no more on ``source``; False if it is not here, or does not lie there."""
        adopted = self.objects.get(object_id)
        if adopted is None or adopted.value.node_id != source:
            return False
        adopted.value = msgspec.structs.replace(adopted.value, node_id=node_id)
        return True

    def adopt_stored(self, object_id: bytes, value: Value, now: float) -> AdoptedObject:
        """Take over a stored object of an owner that was killed."""
        return self.objects.get(object_id) or self._insert(object_id, value, now)

    def get(self, object_id: bytes, now: float) -> AdoptedObject | None:
        """Return the object for a reader, who will register; an object in its grace gets a new one."""
        adopted = self.objects.get(object_id)
        if adopted is not None and adopted.object_id in self._in_grace:
            adopted.grace_until = max(adopted.grace_until, now + self._grace_s)
        return adopted

    def add_borrower(self, object_id: bytes, borrower: bytes, count: int, *, full: bool) -> bool:
        """Register; False when the object is not here (any more). ``full``: everything that the borrower has."""
        adopted = self.objects.get(object_id)
        if adopted is None:
            return False
        known = adopted.counts.get(borrower, 0)
        adopted.counts[borrower] = max(count, known) if full and adopted.handed_over else known + count
        if full:
            adopted.inherited.discard(borrower)
        if not adopted.inherited:
            self._end_grace(adopted)
        return True

    def remove_borrower(self, object_id: bytes, borrower: bytes, count: int) -> list[AdoptedObject]:
        """Unregister; returns what is free now."""
        adopted = self.objects.get(object_id)
        if adopted is None or borrower not in adopted.counts:
            return []
        adopted.counts[borrower] -= count
        if adopted.counts[borrower] > 0:
            return []
        del adopted.counts[borrower]
        adopted.inherited.discard(borrower)
        return self._collect([object_id])

    def borrower_lost(self, borrower: bytes) -> list[AdoptedObject]:
        """The process has ended: its registrations are void."""
        touched = []
        for adopted in self.objects.values():
            if adopted.counts.pop(borrower, None) is not None:
                adopted.inherited.discard(borrower)
                touched.append(adopted.object_id)
        return self._collect(touched)

    def pin_forever(self, object_id: bytes) -> None:
        if object_id in self.objects:
            self.objects[object_id].forever = True

    def lost(self, object_id: bytes, node_id: bytes) -> AdoptedObject | None:
        """A node cannot produce it. Return it if that is where it lies: another copy is looked for."""
        adopted = self.objects.get(object_id)
        if adopted is None or adopted.lost or adopted.value.kind != STORED or adopted.value.node_id != node_id:
            return None
        return adopted

    def lying_on(self, node_ids: Collection[bytes]) -> list[AdoptedObject]:
        """Return those whose primary copies are, or were, on these nodes. O(objects)."""
        return [one for one in self.objects.values() if one.value.kind == STORED and one.value.node_id in node_ids]

    def found(self, adopted: AdoptedObject, node_id: bytes) -> bool:
        """A copy that is complete is the primary copy from now on; b"": there is none. False: the object is not needed any more."""
        if self.objects.get(adopted.object_id) is not adopted:
            return False
        adopted.lost = not node_id
        adopted.value = msgspec.structs.replace(adopted.value, node_id=node_id or adopted.value.node_id)
        return True

    def tick(self, now: float, connected: Collection[bytes]) -> list[AdoptedObject]:
        """End the grace of those whose time is up: borrowers that never appeared are forgotten. Returns what is free."""
        over = [object_id for object_id in self._in_grace if self.objects[object_id].grace_until <= now]
        for object_id in over:
            adopted = self.objects[object_id]
            for borrower in [one for one in adopted.inherited if one not in connected]:
                adopted.inherited.discard(borrower)
                adopted.counts.pop(borrower, None)
            self._end_grace(adopted)
        return self._collect(over)

    def check(self) -> None:
        assert self._in_grace <= self.objects.keys()
        for object_id, adopted in self.objects.items():
            assert self._alive(adopted), "a free object is kept"
            assert all(count > 0 for count in adopted.counts.values())
            assert adopted.inherited <= adopted.counts.keys()
            assert adopted.object_id == object_id
        for holders in self._containers.values():
            assert holders
            assert holders <= self.objects.keys()

    def _insert(self, object_id: bytes, value: Value, now: float) -> AdoptedObject:
        adopted = AdoptedObject(object_id, value, grace_until=now + self._grace_s)
        self.objects[object_id] = adopted
        self._in_grace.add(object_id)
        for inner in value.refs:
            self._containers.setdefault(inner.object_id, set()).add(object_id)
        return adopted

    def _end_grace(self, adopted: AdoptedObject) -> None:
        self._in_grace.discard(adopted.object_id)

    def _alive(self, adopted: AdoptedObject) -> bool:
        object_id = adopted.object_id
        return bool(adopted.counts) or adopted.forever or object_id in self._in_grace or object_id in self._containers

    def _collect(self, candidates: Iterable[bytes]) -> list[AdoptedObject]:
        """Remove those that nobody holds, and what only they held. A loop: containers may be nested deeper than the stack."""
        freed = []
        work = list(candidates)
        while work:
            object_id = work.pop()
            adopted = self.objects.get(object_id)
            if adopted is None or self._alive(adopted):
                continue
            del self.objects[object_id]
            freed.append(adopted)
            work += self._let_go_inside(adopted)
        return freed

    def _let_go_inside(self, adopted: AdoptedObject) -> list[bytes]:
        """The container is not here any more; return what no container holds now."""
        loose = []
        for inner in adopted.value.refs:
            holders = self._containers.get(inner.object_id)
            if holders is not None:
                holders.discard(adopted.object_id)
                if not holders:
                    del self._containers[inner.object_id]
                    loose.append(inner.object_id)
        return loose
