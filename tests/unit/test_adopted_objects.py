"""Messages of borrowers about objects whose owner is gone: the shell around ``adoption.py``, with a fake store and fake connections."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal._core.node_agent.adopted_objects import AdoptedObjects
from shoal._core.wire.messages import (
    INLINE,
    STORED,
    Ack,
    AddBorrower,
    Address,
    AdoptObjects,
    Failed,
    GetObject,
    ObjectRefInfo,
    OwnedObject,
    RemoveBorrower,
    Value,
)
from shoal.testing.virtual_loop import VirtualLoop

AGENT = Address(b"node", b"node", "agent")
OWNER = Address(b"owner", b"node", "owner")
READER = Address(b"reader", b"node", "reader")
OBJECT = b"o" * 28
GRACE_S = 2.0


class Connection:
    def __init__(self) -> None:
        self.closed = False
        self.tag: Any = None
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None:
        self.sent.append(Failed(rid, kind, message, detail))


class Store:
    """Holds one object until it is freed."""

    def __init__(self) -> None:
        self.there = True

    def contains(self, object_id: bytes) -> bool:
        return self.there

    def stored(self, object_id: bytes) -> Any:
        return (OWNER, 10, []) if self.there else None

    def objects_of(self, worker_id: bytes) -> Any:
        return [(OBJECT, 10, [])] if self.there else []

    def free(self, ids: list[bytes]) -> None:
        self.there = False


class Node:
    """What the node agent has: the adopted objects, and who is connected."""

    def __init__(self) -> None:
        self.connected = {b"owner", b"reader"}
        self.store, self.reader = Store(), Connection()
        self.adopted = AdoptedObjects(asyncio.get_running_loop(), AGENT, self.store, GRACE_S, None, lambda: self.connected)  # type: ignore[arg-type]

    def says(self, message: Any) -> None:
        (self.adopted.adopt if isinstance(message, AdoptObjects) else self.adopted.handle)(self.reader, message)

    def owner_dies(self) -> None:
        self.connected.discard(b"owner")
        self.adopted.owner_killed(b"owner")

    async def after_the_grace(self) -> None:
        await asyncio.sleep(2 * GRACE_S)
        self.adopted.tick()


@pytest.fixture
def virtual():
    with VirtualLoop() as loop:
        yield loop.run


def test_an_object_that_is_stored_after_its_owner_died_is_freed_when_nobody_asks_for_it(virtual):
    async def main():
        node = Node()
        node.connected.discard(b"owner")
        node.adopted.sealed(OBJECT)
        assert node.store.there
        await node.after_the_grace()
        assert not node.store.there

    virtual(main())


def test_an_object_of_a_living_owner_is_not_adopted(virtual):
    async def main():
        node = Node()
        node.adopted.sealed(OBJECT)
        await node.after_the_grace()
        assert node.store.there

    virtual(main())


def test_what_a_borrower_says_before_the_owners_death_is_noticed_is_taken_in_order(virtual):
    async def main():
        node = Node()
        node.says(AddBorrower(1, OBJECT, READER))
        node.says(RemoveBorrower(OBJECT, READER, 1))
        assert node.reader.sent == []
        node.owner_dies()
        await node.after_the_grace()
        assert [type(one) for one in node.reader.sent] == [Ack]
        assert not node.store.there

    virtual(main())


def test_what_a_third_process_registers_for_one_that_has_ended_counts_nothing(virtual):
    async def main():
        node = Node()
        node.says(AdoptObjects(1, [OwnedObject(OBJECT, Value(INLINE, b"data", 4), [(READER, 1)])]))
        node.says(AddBorrower(2, OBJECT, Address(b"ended", b"node", "ended")))
        node.says(AddBorrower(3, OBJECT, Address(b"far", b"other node", "far")))
        assert [one.rid for one in node.reader.sent] == [1, 2, 3]
        assert node.adopted.state.objects[OBJECT].counts == {b"reader": 1, b"far": 1}

    virtual(main())


def test_a_registration_of_a_borrower_that_has_ended_meanwhile_counts_nothing(virtual):
    async def main():
        node = Node()
        node.says(AddBorrower(1, OBJECT, READER))
        node.reader.closed = True
        node.adopted.borrower_lost(b"reader")
        node.owner_dies()
        await node.after_the_grace()
        assert not node.store.there

    virtual(main())


def test_a_registration_that_waited_keeps_the_object(virtual):
    async def main():
        node = Node()
        node.says(AddBorrower(1, OBJECT, READER))
        node.owner_dies()
        await node.after_the_grace()
        assert node.store.there
        node.says(RemoveBorrower(OBJECT, READER, 1))
        assert not node.store.there

    virtual(main())


def test_the_agents_own_count_of_what_is_inside_ends_with_the_container(virtual):
    async def main():
        node = Node()
        inside, container = ObjectRefInfo(OBJECT, OWNER), b"c" * 28
        node.owner_dies()
        node.says(AddBorrower(1, OBJECT, AGENT))  # the container's owner leaves, and registers the agent for what is inside
        node.says(AdoptObjects(2, [OwnedObject(container, Value(INLINE, b"", refs=[inside]), [(READER, 1)])]))
        await node.after_the_grace()
        assert node.store.there
        node.says(RemoveBorrower(container, READER, 1))
        assert not node.store.there

    virtual(main())


def test_a_reader_of_an_adopted_container_is_told_that_the_agent_owns_what_is_inside(virtual):
    async def main():
        node = Node()
        container = b"c" * 28
        node.owner_dies()
        node.says(AdoptObjects(1, [OwnedObject(container, Value(INLINE, b"", refs=[ObjectRefInfo(OBJECT, OWNER)]), [(READER, 1)])]))
        node.says(GetObject(2, container, READER))
        await asyncio.sleep(0.001)  # virtual: it is answered once the reader is registered
        [inside] = node.reader.sent[-1].value.refs
        assert inside.owner == AGENT  # or the reader would look for the owner in vain, and register a second time
        node.says(RemoveBorrower(container, READER, 1))
        node.says(RemoveBorrower(OBJECT, READER, 1))
        await node.after_the_grace()
        assert not node.store.there

    virtual(main())


def test_an_object_on_another_node_is_freed_there(virtual):
    async def main():
        node, freed = Node(), []
        node.adopted.free_elsewhere = lambda node_id, object_ids: freed.append((node_id, object_ids))
        node.says(AdoptObjects(1, [OwnedObject(OBJECT, Value(STORED, b"", 10, node_id=b"other"), [(READER, 1)])]))
        node.says(RemoveBorrower(OBJECT, READER, 1))
        assert freed == [(b"other", [OBJECT])]
        assert node.store.there, "what lies here under that name is a copy"

    virtual(main())
