"""Agents whose objects go to another one: what is said of them meanwhile, what is inside of them, and an heir that cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shoal._core.node_agent.adopted_objects import AdoptedObjects
from shoal._core.node_agent.bequests import Bequests
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import (
    INLINE,
    OWNER_LEFT,
    STORED,
    Ack,
    AddBorrower,
    Address,
    AdoptObjects,
    FreeObjects,
    GetObject,
    Message,
    NodeRecord,
    ObjectRefInfo,
    ObjectValue,
    OwnedObject,
    PinForever,
    PromoteCopy,
    RemoveBorrower,
    ReportLost,
    Value,
)

READER = Address(b"reader", b"third", "")
LIVING = Address(b"living", b"third", "")


class Peer:
    """The way back to whoever has asked."""

    def __init__(self) -> None:
        self.closed = False
        self.answers: list[Message] = []
        self.failures: list[str] = []
        self.answered = asyncio.Event()

    def send(self, message: Message) -> None:
        self.answers.append(message)
        self.answered.set()

    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None:
        self.failures.append(kind)
        self.answered.set()


class Store:
    """Knows owners of primary copies, and what was freed."""

    def __init__(self) -> None:
        self.owners: dict[bytes, bytes] = {}
        self.freed: list[bytes] = []

    def contains(self, object_id: bytes) -> bool:
        return object_id in self.owners

    def free(self, ids: list[bytes]) -> None:
        self.freed += ids

    def promote(self, object_id: bytes, owner: Address, refs: list[ObjectRefInfo]) -> bool:
        self.owners[object_id] = owner.worker_id
        return True


class Owner:
    """A living process whose objects are inside of others."""

    def __init__(self) -> None:
        self.counts: dict[bytes, int] = {}

    async def request(self, message: Any) -> Ack:
        self.counts[message.borrower.worker_id] = self.counts.get(message.borrower.worker_id, 0) + message.count
        return Ack(message.rid)

    def send(self, message: Any) -> None:
        self.counts[message.borrower.worker_id] -= message.count


class Agent:
    """One node's; ``ask`` and ``tell`` lead to the others in ``cluster``."""

    def __init__(self, name: bytes, cluster: dict[bytes, Agent], owner: Owner) -> None:
        self.me = Address(name, name, "")
        self.cluster = cluster
        cluster[name] = self
        self.store = Store()
        self.reachable = asyncio.Event()
        self.reachable.set()
        self.fails = False

        async def connect(address: Address) -> Any:
            return owner

        loop = asyncio.get_running_loop()
        self.adopted = AdoptedObjects(loop, self.me, self.store, 5.0, connect, lambda: ())  # type: ignore[arg-type]
        self.adopted.free_elsewhere = lambda node_id, ids: self.tell(node_id, FreeObjects(ids))
        self.bequests = Bequests(loop, self.me, self.store, self.adopted, self, self.node)  # type: ignore[arg-type]

    def node(self, node_id: bytes) -> NodeRecord | None:
        return NodeRecord(node_id, "", "", "", {}, {}, {}) if node_id in self.cluster else None

    async def ask(self, node_id: bytes, message: Any) -> Any:
        other = self.cluster.get(node_id)
        if other is None or other.fails:
            raise ConnectionError("gone")
        await other.reachable.wait()
        peer = Peer()
        other.hear(message, peer)
        await peer.answered.wait()
        if peer.failures:
            raise RequestFailed(peer.failures[0], "", b"")
        return peer.answers[0]

    def tell(self, node_id: bytes, message: Message) -> None:
        if node_id in self.cluster:  # as late as a question that was asked at the same time
            asyncio.get_running_loop().call_soon(self.cluster[node_id].hear, message, Peer())

    def hear(self, message: Any, peer: Peer) -> None:
        if isinstance(message, AdoptObjects):
            self.bequests.handlers()[AdoptObjects](peer, message)  # type: ignore[arg-type]
        elif isinstance(message, PromoteCopy):
            self.store.promote(message.object_id, message.owner, message.refs)
            peer.send(Ack(message.rid))
        elif isinstance(message, FreeObjects):
            self.store.free(message.object_ids)
        else:
            self.adopted.handle(peer, message)  # type: ignore[arg-type]

    def adopt(self, *objects: OwnedObject) -> None:
        self.hear(AdoptObjects(1, list(objects)), Peer())

    @property
    def objects(self) -> dict[bytes, Any]:
        return self.adopted.state.objects


class Scene:
    def __init__(self) -> None:
        self.cluster: dict[bytes, Agent] = {}
        self.owner = Owner()
        self.leaving, self.heir, self.third = (Agent(name, self.cluster, self.owner) for name in (b"leaving", b"heir", b"third"))


def scene(story: Callable[[Scene], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        async def run() -> None:
            async with asyncio.timeout(60):
                stage = Scene()
                await story(stage)
                for agent in (stage.leaving, stage.heir, stage.third):
                    agent.bequests.close()
                    await agent.adopted.close()
                    agent.adopted.state.check()

        asyncio.run(run())

    test.__name__, test.__doc__ = story.__name__, story.__doc__
    return test


def held(name: bytes, value: Value | None = None, count: int = 1) -> OwnedObject:
    return OwnedObject(name, value or Value(INLINE, b"1", 1), [(READER, count)])


async def turn() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@scene
async def test_what_is_said_during_and_after_the_hand_over_reaches_the_heir_in_order(s: Scene) -> None:
    s.leaving.adopt(held(b"o"))
    s.heir.reachable.clear()
    handing = asyncio.ensure_future(s.leaving.bequests.bequeath(b"heir"))
    await turn()
    get, add = Peer(), Peer()
    s.leaving.hear(AddBorrower(7, b"o", READER), add)
    s.leaving.hear(RemoveBorrower(b"o", READER, 2), Peer())
    s.leaving.hear(GetObject(8, b"o", READER), get)
    await turn()
    assert (add.answers, get.answers) == ([], []), "until it is clear who the owner is"
    s.heir.reachable.set()
    await handing
    await get.answered.wait()
    assert add.answers == [Ack(7)]
    assert get.failures == [OWNER_LEFT]
    assert s.heir.objects[b"o"].counts == {}
    assert not s.leaving.objects
    assert s.leaving.bequests.count() == 0
    s.leaving.hear(PinForever(b"o"), Peer())
    s.leaving.hear(ReportLost(b"o", b"x"), Peer())
    await turn()
    assert s.heir.objects[b"o"].forever


@scene
async def test_an_heir_that_cannot_be_reached_changes_nothing(s: Scene) -> None:
    s.leaving.adopt(held(b"o"))
    s.heir.fails = True
    with pytest.raises(ConnectionError):
        await s.leaving.bequests.bequeath(b"heir")
    get = Peer()
    s.leaving.hear(GetObject(8, b"o", READER), get)
    assert get.answers == [ObjectValue(8, Value(INLINE, b"1", 1))]
    await s.leaving.bequests.bequeath(b"third")
    assert list(s.third.objects) == [b"o"]


@scene
async def test_references_inside_are_held_by_the_heir_and_given_back_by_it(s: Scene) -> None:
    value = Value(INLINE, b"[ref]", 5, [ObjectRefInfo(b"inner", LIVING)])
    s.leaving.adopt(held(b"outer", value))
    s.owner.counts = {b"leaving": 1}  # the process that has handed it over has seen to that
    await s.leaving.bequests.bequeath(b"heir")
    assert s.owner.counts == {b"leaving": 0, b"heir": 1}
    s.heir.bequests.nodes_died([b"leaving"], {b"leaving": b"heir"})
    s.heir.hear(AddBorrower(1, b"outer", READER, 1, full=True), Peer())
    s.heir.hear(RemoveBorrower(b"outer", READER, 1), Peer())
    s.heir.adopted.state.tick(1e9, ())
    await turn()
    assert s.owner.counts == {b"leaving": 0, b"heir": 0}


@scene
async def test_stored_objects_belong_to_the_heir_wherever_they_lie(s: Scene) -> None:
    for name, node_id in ((b"here", b"leaving"), (b"there", b"third")):
        s.leaving.adopt(held(name, Value(STORED, b"", 9, node_id=node_id)))
    await s.leaving.bequests.bequeath(b"heir")
    assert s.leaving.store.owners == {b"here": b"heir"}, "it moves to its owner's node next"
    assert s.third.store.owners == {b"there": b"heir"}, "whose end that node watches from now on"


@scene
async def test_an_heir_that_is_not_named_drops_it_and_frees_nothing_that_lies_elsewhere_twice(s: Scene) -> None:
    s.leaving.adopt(held(b"o", Value(STORED, b"", 9, node_id=b"third")))
    await s.leaving.bequests.bequeath(b"heir")
    s.heir.bequests.nodes_died([b"leaving"], {})
    await turn()
    assert not s.heir.objects
    assert s.third.store.freed == [b"o"]


@scene
async def test_who_is_dead_here_bequeaths_nothing(s: Scene) -> None:
    s.leaving.adopt(held(b"o"))
    s.heir.node = lambda node_id: None  # type: ignore[method-assign]
    s.heir.bequests._node = s.heir.node
    with pytest.raises(RequestFailed):
        await s.leaving.bequests.bequeath(b"heir")
    assert list(s.leaving.objects) == [b"o"]


@scene
async def test_an_agent_that_holds_something_of_the_node_turns_to_its_heir(s: Scene) -> None:
    inner = ObjectRefInfo(b"inner", s.leaving.me)
    s.leaving.adopt(OwnedObject(b"inner", Value(INLINE, b"1", 1), [(s.third.me, 1)]))
    s.third.adopt(held(b"outer", Value(INLINE, b"[ref]", 5, [inner])))
    await s.leaving.bequests.bequeath(b"heir")
    assert s.heir.objects[b"inner"].inherited == {b"third"}
    for agent in (s.heir, s.third):
        agent.bequests.nodes_died([b"leaving"], {b"leaving": b"heir"})
    await turn()
    assert s.third.objects[b"outer"].value.refs == [ObjectRefInfo(b"inner", s.heir.me)]
    assert (s.heir.objects[b"inner"].inherited, s.heir.objects[b"inner"].counts) == (set(), {b"third": 1})


@scene
async def test_a_node_that_ends_in_the_middle_leaves_no_registration_behind(s: Scene) -> None:
    value = Value(INLINE, b"[ref]", 5, [ObjectRefInfo(b"inner", LIVING)])
    s.leaving.adopt(held(b"outer", value))
    s.heir.reachable.clear()
    handing = asyncio.ensure_future(s.leaving.bequests.bequeath(b"heir"))
    await turn()
    handing.cancel()
    await turn()
    assert s.owner.counts == {}
    s.heir.reachable.set()
    s.heir.hear(AdoptObjects(1, [held(b"outer", value)], b"leaving"), Peer())
    await turn()
    assert s.owner.counts == {b"heir": 1}
    s.heir.bequests.nodes_died([b"leaving"], {})
    await turn()
    assert s.owner.counts == {b"heir": 0}
