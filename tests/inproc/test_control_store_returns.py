"""Every message to the control store, with the control store dying around it: before it comes, before its commit, before its answer.

The oracle is the same story without a death: same answer, same rows on disk, same actors started, as often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from shoal._base.settings import Settings
from shoal._core.control_link import ControlLink
from shoal._core.control_store import rows
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import Change, MemoryStorage
from shoal._core.transport import RequestFailed
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.wire import messages as m
from shoal.testing.scripted_agent import ScriptedAgent
from shoal.testing.virtual_loop import VirtualLoop

CPU = 10_000
SETTINGS = replace(Settings(), debug=True)
#: Rows that tell of the deaths themselves, answers that are kept because of them, and what a node had free when it registered.
APART = (rows.ANSWERS, rows.COUNTERS, rows.NODES)


class Disk(MemoryStorage):
    """What outlives the control stores that write to it."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        #: "before" or "after" the next commit that changes something, the control store dies.
        self.dies = ""


class Handle:
    """One control store's view of the disk; a dead one's writes go nowhere."""

    is_remote = False

    def __init__(self, disk: Disk, die: Callable[[], None]) -> None:
        self._disk = disk
        self._die = die
        self.dead = False

    def is_current(self) -> bool:
        return True

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._disk.get(table, key)

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        return self._disk.scan(table)

    def apply(self, changes: Sequence[Change]) -> None:
        if self.dead:
            return
        dies, self._disk.dies = self._disk.dies, ""
        if dies == "before":
            self._die()
            return
        self._disk.apply(changes)
        if dies == "after":
            self._die()

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.apply([Change(table, key, value)])

    def delete(self, table: str, key: bytes) -> None:
        self.apply([Change(table, key, None)])

    def compact(self) -> None: ...
    def close(self) -> None: ...


class World:
    """A control store that comes back, one node, and a driver."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.network = MemoryNetwork(loop)
        self.disk = Disk()
        self.starts = 0
        self.agent = ScriptedAgent("n1", {"CPU": 100 * CPU})
        self.driver = m.Address(b"driver".ljust(28, b"\0"), self.agent.node_id, "memory:driver")
        self.got: list[m.Message] = []
        self.job_id = b""

    async def start_store(self) -> None:
        self.starts += 1
        self.handle = Handle(self.disk, self.kill_store)
        self.store = ControlStore(self.loop, self.handle, SETTINGS, clock=lambda: 1.0)
        self.store.load()
        await MemoryTransport(self.network, f"head{self.starts}").listen("control", self.store.accept)

    def kill_store(self) -> None:
        """SIGKILL; half a second later the next one is there."""
        self.handle.dead = True
        self.network.kill(f"head{self.starts}")
        self.loop.call_later(0.5, lambda: self.loop.create_task(self.start_store()))

    async def link(self, name: str) -> ControlLink:
        transport = MemoryTransport(self.network, name)
        link = ControlLink(
            self.loop, lambda on_message, on_close: transport.connect("control", on_message, on_close), name.encode(), silence_s=10.0
        )
        link.on_message = lambda _connection, message: self.got.append(message)
        await link.open()
        return link

    async def begin(self) -> None:
        """A job, two actors (one named), a function, two keys, a group."""
        await self.start_store()
        await self.agent.stay(MemoryTransport(self.network, "n1"), "control")
        self.client = client = await self.link("driver")
        self.job_id = (await client.request(self.register_job())).job_id
        for number, name in ((1, "it"), (2, "")):
            await client.request(m.CreateActor(0, self.spec(number, name=name, max_restarts=-1)))
            client.send(m.SubscribeActor(self.actor(number)))
        client.send(m.PutFunction(b"f" * 28, self.job_id, b"code"))
        await client.request(m.KvPut(0, "ns", b"key", b"old"))
        await client.request(m.KvPut(0, "ns", b"gone", b"old"))
        await client.request(m.CreatePlacementGroup(0, self.group(1)))
        await client.request(m.WaitPlacementGroup(0, self.group(1).placement_group_id))
        await asyncio.sleep(1.0)
        self.got.clear()

    def register_job(self, name: bytes = b"driver") -> m.RegisterJob:
        address = m.Address(name.ljust(28, b"\0"), self.agent.node_id, "memory:driver")
        return m.RegisterJob(0, address, 1, "ns", "x", m.JobConfigRecord({}, "/", []))

    def actor(self, number: int) -> bytes:
        return number.to_bytes(12, "big") + self.job_id

    def spec(self, number: int, **fields: Any) -> m.ActorSpec:
        name = fields.pop("name", "")
        return m.ActorSpec(
            self.actor(number), self.job_id, self.driver, b"class", "C", b"args", [], m.Shape(self.job_id), name, "ns", **fields
        )

    def group(self, number: int) -> m.PlacementGroupSpec:
        return m.PlacementGroupSpec(b"g%017d" % number, self.job_id, [{"CPU": CPU}, {"CPU": CPU}], "PACK")

    def state(self) -> dict[str, Any]:
        """Return what must be the same with and without deaths."""
        tables = {name: dict(table) for name, table in self.disk.tables.items() if name not in APART and table}
        return {
            "tables": tables,
            "next job": self.disk.tables[rows.COUNTERS][rows.NEXT_JOB],
            "started": self.agent.started,
            "living": self.agent.living,
            "reserved": self.agent.reserved,
            "committed": self.agent.committed,
        }


@dataclass
class Case:
    """``make``: the message; ``is_request``: whether it is answered; ``by_agent``: the node agent says it."""

    make: Callable[[World], m.Message]
    is_request: bool = True
    by_agent: bool = False
    #: Before it: what else the story needs.
    before: Callable[[World], None] = field(default=lambda world: None)
    #: Fields of the answer that differ from run to run, or with the deaths.
    apart: tuple[str, ...] = ()


def one_way(make: Callable[[World], m.Message], **fields: Any) -> Case:
    return Case(make, is_request=False, **fields)


CASES: dict[str, Case] = {
    "RegisterJob": Case(lambda w: w.register_job(b"second")),
    "RegisterJob again": Case(lambda w: w.register_job()),
    "GetJob": Case(lambda w: m.GetJob(0, w.job_id)),
    "JobFinished": one_way(lambda w: m.JobFinished(w.job_id)),
    "PutFunction": one_way(lambda w: m.PutFunction(b"g" * 28, w.job_id, b"more")),
    "GetFunction": Case(lambda w: m.GetFunction(0, b"f" * 28)),
    "KvPut": Case(lambda w: m.KvPut(0, "ns", b"key", b"new")),
    "KvPut of a new key": Case(lambda w: m.KvPut(0, "ns", b"fresh", b"new")),
    "KvPut if absent": Case(lambda w: m.KvPut(0, "ns", b"fresh", b"new", overwrite=False)),
    "KvPut if absent, and it is not": Case(lambda w: m.KvPut(0, "ns", b"key", b"new", overwrite=False)),
    "KvGet": Case(lambda w: m.KvGet(0, "ns", b"key")),
    "KvDelete": Case(lambda w: m.KvDelete(0, "ns", b"gone")),
    "KvKeys": Case(lambda w: m.KvKeys(0, "ns", b"")),
    "Watch": Case(lambda w: m.Watch(0, "jobs", 0)),
    "Ping": Case(lambda w: m.Ping(0)),
    "CancelRequest": one_way(lambda w: m.CancelRequest(12345)),
    "CreateActor": Case(lambda w: m.CreateActor(0, w.spec(3))),
    "CreateActor, named": Case(lambda w: m.CreateActor(0, w.spec(3, name="new"))),
    "CreateActor, detached": Case(lambda w: m.CreateActor(0, w.spec(3, name="new", detached=True))),
    "CreateActor, name taken": Case(lambda w: m.CreateActor(0, w.spec(3, name="it"))),
    "CreateActor, dead from the start": Case(lambda w: m.CreateActor(0, w.spec(3), m.Cause("init_failed"))),
    "SubscribeActor": one_way(lambda w: m.SubscribeActor(w.actor(1))),
    "UnsubscribeActor": one_way(lambda w: m.UnsubscribeActor(w.actor(1))),
    "KillActor": Case(lambda w: m.KillActor(0, w.actor(1), no_restart=True)),
    "KillActor, once": Case(lambda w: m.KillActor(0, w.actor(1), no_restart=False)),
    "KillActor before its creation": Case(lambda w: m.KillActor(0, w.actor(9), no_restart=True)),
    "ActorOutOfScope": one_way(lambda w: m.ActorOutOfScope(w.actor(2))),
    "GetActor": Case(lambda w: m.GetActor(0, w.actor(1))),
    "GetNamedActor": Case(lambda w: m.GetNamedActor(0, "it", "ns")),
    "ListNamedActors": Case(lambda w: m.ListNamedActors(0, "ns", False)),
    "CreatePlacementGroup": Case(lambda w: m.CreatePlacementGroup(0, w.group(2))),
    "RemovePlacementGroup": Case(lambda w: m.RemovePlacementGroup(0, w.group(1).placement_group_id)),
    "WaitPlacementGroup": Case(lambda w: m.WaitPlacementGroup(0, w.group(1).placement_group_id)),
    "GetPlacementGroup": Case(lambda w: m.GetPlacementGroup(0, w.group(1).placement_group_id)),
    "ListPlacementGroups": Case(lambda w: m.ListPlacementGroups(0)),
    "WatchGroup": one_way(lambda w: m.WatchGroup(w.group(1).placement_group_id), by_agent=True),
    "ListNodes": Case(lambda w: m.ListNodes(0)),
    "DrainNode": Case(lambda w: m.DrainNode(0, w.agent.node_id, m.DRAIN_PREEMPTION, "", 60.0)),
    "DrainNode that is not there": Case(lambda w: m.DrainNode(0, b"n2".ljust(28, b"\0"), m.DRAIN_IDLE, "", 60.0)),
    "NameHeir": Case(lambda w: m.NameHeir(0, w.agent.node_id, b"n2".ljust(28, b"\0")), by_agent=True),
    "CallBack of a node that is not there": Case(
        lambda w: m.CallBack(0, b"n2".ljust(28, b"\0"), b"w" * 28, b"t" * 28, w.agent.node_id), by_agent=True
    ),
    "RegisterNode": Case(lambda w: w.agent.registration(), by_agent=True),
    "NodeResources": one_way(lambda w: m.NodeResources(w.agent.node_id, w.agent.available()), by_agent=True),
    "ClusterChanged": one_way(lambda w: m.ClusterChanged(w.agent.node_id), by_agent=True),
    "WorkerDied": one_way(lambda w: m.WorkerDied(w.driver.worker_id, 0, m.Cause("worker_exit")), by_agent=True),
    "ActorWorkerDied": one_way(
        lambda w: m.ActorWorkerDied(w.actor(1), 0, m.Cause("worker_exit")),
        by_agent=True,
        before=lambda w: w.agent.living.pop(w.actor(1)),  # type: ignore[arg-type,return-value]
    ),
}


#: The last word of a node: when its answer is lost, the node is refused at its return, which says the same.

WITHOUT_CASE = {"NodeDrained"}


def tell(case: Case, dies: str) -> tuple[Any, dict[str, Any], int]:
    """Tell the story; return the answer, the state at its end, and how many control stores there were."""
    with VirtualLoop(seed=1) as loop:
        world = World(loop)

        async def story() -> Any:
            await world.begin()
            case.before(world)
            world.disk.dies = dies if dies in ("before", "after") else ""
            link = world.agent.connection if case.by_agent else world.client
            message, reply, answer = case.make(world), None, None
            if case.is_request:
                reply = link.request(message)
            else:
                link.send(message)
            if dies == "at once":
                world.kill_store()
            if reply is not None:
                try:
                    answer = await reply
                    answer.rid = 0
                except RequestFailed as error:
                    answer = (error.kind, error.message)
            await asyncio.sleep(5.0)
            world.disk.dies = ""
            if dies == "later":
                world.kill_store()
                await asyncio.sleep(5.0)
            world.store.check()
            return answer

        answer = loop.run(story())
        return answer, world.state(), world.starts


@pytest.mark.parametrize("dies", ["at once", "before", "after", "later"])
@pytest.mark.parametrize("name", CASES)
def test_a_death_changes_nothing(name: str, dies: str):
    case = CASES[name]
    calm, stormy = tell(case, ""), tell(case, dies)
    assert calm[2] == 1
    assert stormy[0] == calm[0]
    assert stormy[1] == calm[1]
    assert stormy[2] == 2 or dies in ("before", "after"), "nothing was written, so nobody died"


def test_the_table_has_every_message_that_the_control_store_serves():
    with VirtualLoop(seed=1) as loop:
        served = set(ControlStore(loop, MemoryStorage(), Settings())._handlers)
    assert {name.split(",")[0].split(" ")[0] for name in CASES} == {kind.__name__ for kind in served} - WITHOUT_CASE
