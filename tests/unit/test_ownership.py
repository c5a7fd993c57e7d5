"""Reference counting: one table alone, and many tables joined by slow channels."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from shoal._core.wire.messages import Address, ObjectRefInfo
from shoal._core.worker.entries import INLINE, RELEASED, STORED, BorrowedEntry, Entry, Stored
from shoal._core.worker.ownership import Ownership


def address(name: str) -> Address:
    return Address(name.encode(), b"node", f"unix:{name}")


A, B = b"A" * 28, b"B" * 28


class Shell:
    def __init__(self) -> None:
        self.freed: list[bytes] = []
        self.removed: list[tuple[bytes, int]] = []
        self.registering: list[BorrowedEntry] = []
        self.gone: list[bytes] = []
        self.watched: list[Address] = []

    def free_stored(self, object_id: bytes, node_id: bytes) -> None:
        self.freed.append(object_id)

    def remove_borrower(self, object_id: bytes, owner: Address, count: int) -> None:
        self.removed.append((object_id, count))

    def register(self, entry: BorrowedEntry) -> None:
        self.registering.append(entry)

    def released(self, entry: Entry) -> None:
        self.gone.append(entry.object_id)

    def watch(self, borrower: Address) -> None:
        self.watched.append(borrower)


def make() -> tuple[Ownership, Shell]:
    shell = Shell()
    return Ownership(address("me"), shell), shell


def test_the_last_reference_frees_a_stored_object():
    own, shell = make()
    entry = own.new_owned(A)
    own.complete(entry, STORED, Stored(b"n", 10))
    own.ref_added(A, None)
    own.ref_dropped(A)
    assert shell.freed == []
    own.ref_dropped(A)
    assert (shell.freed, shell.gone) == ([A], [A])
    own.check()


def test_a_result_that_nobody_waits_for_is_freed_when_it_arrives():
    own, shell = make()
    entry = own.new_owned(A)
    own.ref_dropped(A)
    assert own.entries == {}
    own.complete(entry, STORED, Stored(b"n", 10))
    assert shell.freed == [A]


def test_an_object_keeps_the_objects_inside_it():
    own, _ = make()
    inner, outer = own.new_owned(A), own.new_owned(B)
    own.complete(inner, INLINE, b"")
    inner.count += 1
    own.complete(outer, INLINE, b"", [inner])
    own.ref_dropped(A)
    assert A in own.entries
    own.ref_dropped(B)
    assert own.entries == {}


def test_ten_thousand_nested_objects_are_freed_without_recursion():
    own, shell = make()
    previous: Entry | None = None
    for number in range(10_000):
        entry = own.new_owned(number.to_bytes(28, "big"), 0 if number < 9_999 else 1)
        if previous is not None:
            previous.count += 1
        own.entries[entry.object_id] = entry
        entry.kind, entry.inner = INLINE, [previous] if previous is not None else None
        previous = entry
    own.ref_dropped((9_999).to_bytes(28, "big"))
    assert own.entries == {}
    assert len(shell.gone) == 10_000


def test_registrations_are_counted():
    own, shell = make()
    entry = own.new_owned(A)
    own.complete(entry, STORED, Stored(b"n", 1))
    own.add_borrower(entry, address("b"))
    own.add_borrower(entry, address("b"))  # made on its behalf, while its own removal is on the way
    own.ref_dropped(A)
    own.remove_borrower(A, b"b", 1)
    assert shell.freed == []
    own.remove_borrower(A, b"b", 1)
    assert shell.freed == [A]
    assert shell.watched == [address("b")]


def test_a_lost_borrower_gives_everything_back():
    own, shell = make()
    entry = own.new_owned(A)
    own.complete(entry, STORED, Stored(b"n", 1))
    own.add_borrower(entry, address("b"), 3)
    own.ref_dropped(A)
    own.borrower_lost(b"b")
    assert shell.freed == [A]


def test_lineage_keeps_the_record_and_not_the_value():
    own, shell = make()
    entry = own.new_owned(A)
    own.complete(entry, STORED, Stored(b"n", 1))
    own.keep_lineage(entry)
    own.ref_dropped(A)
    assert shell.freed == [A]
    assert entry.kind == RELEASED
    assert A in own.entries
    own.drop_lineage(entry)
    assert own.entries == {}


def test_a_borrowed_reference_gives_back_what_it_was_granted():
    own, shell = make()
    own.receive([ObjectRefInfo(A, address("owner"))], b"sender")
    own.ref_added(A, address("owner"))
    assert shell.registering == []  # the container's registration serves
    own.unpin(own.entries[A])
    own.ref_dropped(A)
    assert shell.removed == [(A, 1)]


# --- many processes ---------------------------------------------------------------------------------------------------


class World:
    """Processes that pass references around over channels of random speed. Each channel keeps its order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.processes = {name: Process(self, name) for name in ("p", "q", "r", "s")}
        self.channels: dict[tuple[str, str], deque[Any]] = {}
        self.freed: set[bytes] = set()

    def send(self, source: str, target: str, action: Any) -> None:
        self.channels.setdefault((source, target), deque()).append(action)

    def deliver(self) -> bool:
        waiting = [key for key, channel in self.channels.items() if channel]
        if not waiting:
            return False
        self.channels[self.rng.choice(waiting)].popleft()()
        return True


class Process:
    """Passes a reference inside a value by rule 3: the receiver is registered with the owner before the value leaves."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.own = Ownership(address(name), self)
        self.refs: list[bytes] = []  # what user code holds
        self.owners: dict[bytes, str] = {}

    # effects
    def free_stored(self, object_id: bytes, node_id: bytes) -> None:
        self.world.freed.add(object_id)
        holders = [p.name for p in self.world.processes.values() if object_id in p.refs]
        assert not holders, f"freed while held by {holders}"

    def remove_borrower(self, object_id: bytes, owner: Address, count: int) -> None:
        target = owner.worker_id.decode()
        me = self.own.me.worker_id
        self.world.send(self.name, target, lambda: self.world.processes[target].own.remove_borrower(object_id, me, count))

    def register(self, entry: BorrowedEntry) -> None:
        raise AssertionError("every reference arrives with a registration here")

    def released(self, entry: Entry) -> None: ...

    def watch(self, borrower: Address) -> None: ...

    # user code
    def put(self, object_id: bytes) -> None:
        self.own.complete(self.own.new_owned(object_id), STORED, Stored(b"n", 1))
        self.refs.append(object_id)

    def drop(self) -> None:
        if self.refs:
            self.own.ref_dropped(self.refs.pop(self.world.rng.randrange(len(self.refs))))

    def give(self, target: str) -> None:
        if not self.refs:
            return
        object_id = self.world.rng.choice(self.refs)
        entry = self.own.entries[object_id]
        owner = entry.owner.worker_id.decode() if entry.owner is not None else self.name
        sender = self.own.me.worker_id
        info = ObjectRefInfo(object_id, address(owner))
        entry.count += 1  # the value that is being sent holds it until the registration is acked

        def value() -> None:
            receiver = self.world.processes[target]
            container = receiver.own.receive([info], sender)
            receiver.own.ref_added(object_id, info.owner)
            receiver.refs.append(object_id)
            for held in container:
                receiver.own.unpin(held)

        def acked() -> None:
            self.world.send(self.name, target, value)
            self.own.unpin(entry)

        if owner == self.name:
            self.own.add_borrower(entry, address(target))
            acked()
            return

        def register() -> None:
            process = self.world.processes[owner]
            # Back to its owner: counted under the sender's name.
            process.own.add_borrower(process.own.entries[object_id], address(self.name if owner == target else target))
            self.world.send(owner, self.name, acked)

        self.world.send(self.name, owner, register)


def test_nothing_is_freed_early_and_nothing_leaks_in_a_thousand_histories():
    for seed in range(1_000):
        world = World(seed)
        names = list(world.processes)
        made = 0
        for _ in range(120):
            process = world.processes[world.rng.choice(names)]
            choice = world.rng.random()
            if choice < 0.15:
                process.put(made.to_bytes(28, "big"))
                made += 1
            elif choice < 0.35:
                process.give(world.rng.choice([name for name in names if name != process.name]))
            elif choice < 0.55:
                process.drop()
            else:
                world.deliver()
        while world.deliver() or any(process.refs for process in world.processes.values()):
            for process in world.processes.values():
                process.drop()
        assert len(world.freed) == made, f"seed {seed}"
        for process in world.processes.values():
            process.own.check()
            assert process.own.entries == {}, f"seed {seed}"
