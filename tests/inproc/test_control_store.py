"""The control store over memory connections and a virtual clock, with node agents that obey."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from shoal._base.settings import Settings
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import MemoryStorage, Storage
from shoal._core.transport.connection import Connection
from shoal._core.transport.errors import RequestFailed
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.wire.messages import (
    ActorOutOfScope,
    ActorSpec,
    ActorUpdate,
    Address,
    Cause,
    CreateActor,
    CreatePlacementGroup,
    GetActor,
    GetFunction,
    GetJob,
    GetNamedActor,
    GetPlacementGroup,
    GroupChanged,
    JobConfigRecord,
    JobFinished,
    KillActor,
    KvDelete,
    KvGet,
    KvKeys,
    KvPut,
    ListNamedActors,
    ListNodes,
    ListPlacementGroups,
    Message,
    PlacementGroupSpec,
    Published,
    PutFunction,
    RegisterJob,
    RemovePlacementGroup,
    Shape,
    StartActor,
    StopActor,
    SubscribeActor,
    WaitPlacementGroup,
    Watch,
    WatchGroup,
    WorkComes,
    WorkerDied,
)
from shoal.testing.scripted_agent import ScriptedAgent
from shoal.testing.virtual_loop import VirtualLoop

CPU = 10_000
SETTINGS = replace(Settings(), debug=True)


class Client:
    """A driver or worker: keeps what it is told."""

    def __init__(self, name: str) -> None:
        self.address = Address(name.encode().ljust(28, b"\0"), b"n" * 28, f"memory:{name}")
        self.got: list[Message] = []
        self.job_id = b""

    async def join(self, cluster: Cluster) -> Client:
        transport = MemoryTransport(cluster.network, self.address.address)
        self.connection: Connection = await transport.connect("control", lambda connection, message: self.got.append(message))
        return self

    async def register(self, env: dict[str, str] | None = None) -> Client:
        config = JobConfigRecord(env or {}, "/", [])
        self.job_id = (await self.ask(RegisterJob(0, self.address, 1, "ns", "script.py", config))).job_id
        return self

    async def ask(self, message: Message) -> Any:
        return await self.connection.request(message)

    def send(self, message: Message) -> None:
        self.connection.send(message)

    def states(self, actor_id: bytes) -> list[str]:
        return [message.state for message in self.got if isinstance(message, ActorUpdate) and message.actor_id == actor_id]

    def spec(self, name: str = "", **fields: Any) -> ActorSpec:
        Client.count = getattr(Client, "count", 0) + 1
        actor_id = Client.count.to_bytes(12, "big") + self.job_id
        shape = fields.pop("shape", Shape(self.job_id))
        return ActorSpec(actor_id, self.job_id, self.address, b"class", "Counter", b"args", [], shape, name, "ns", **fields)


class Cluster:
    def __init__(self, loop: asyncio.AbstractEventLoop, storage: Storage, settings: Settings) -> None:
        self.network = MemoryNetwork(loop)
        self.store = ControlStore(loop, storage, settings, clock=loop.time)

    async def start(self, *agents: ScriptedAgent) -> None:
        self.listener = await MemoryTransport(self.network, "head").listen("control", self.store.accept)
        for agent in agents:
            await agent.join(MemoryTransport(self.network, agent.record.name), "control")

    async def client(self, name: str = "driver") -> Client:
        return await Client(name).join(self)

    async def driver(self, name: str = "driver") -> Client:
        return await (await self.client(name)).register()


async def settle(seconds: float = 0.01) -> None:
    await asyncio.sleep(seconds)  # virtual: lets everything that is ready happen


def run(
    main: Callable[[Cluster], Coroutine[Any, Any, None]],
    *agents: ScriptedAgent,
    storage: Storage | None = None,
    settings: Settings = SETTINGS,
) -> None:
    with VirtualLoop(seed=1) as loop:
        cluster = Cluster(loop, storage or MemoryStorage(), settings)

        async def all_of_it() -> None:
            await cluster.start(*agents)
            await main(cluster)
            await settle()
            cluster.store.check()

        loop.run(all_of_it())


async def created(client: Client, spec: ActorSpec) -> bytes:
    await client.ask(CreateActor(0, spec))
    client.send(SubscribeActor(spec.actor_id))
    await settle()
    return spec.actor_id


# --- jobs, functions, key-values


def test_jobs_are_numbered_and_found():
    async def main(cluster: Cluster) -> None:
        first, second = await cluster.driver("a"), await cluster.driver("b")
        assert (first.job_id, second.job_id) == (b"\0\0\0\1", b"\0\0\0\2")
        assert (await second.ask(GetJob(0, first.job_id))).config.cwd == "/"
        with pytest.raises(RequestFailed, match="not known"):
            await second.ask(GetJob(0, b"\0\0\0\7"))

    run(main)


@pytest.mark.parametrize("how", ["message", "lost connection", "worker died"])
def test_the_end_of_the_driver_is_the_end_of_its_job(how: str):
    agent = ScriptedAgent("n1", {"CPU": 2 * CPU})

    async def main(cluster: Cluster) -> None:
        driver, watcher = await cluster.driver(), await cluster.client("watcher")
        plain, detached = driver.spec("plain"), driver.spec("detached", detached=True)
        for spec in (plain, detached):
            await created(driver, spec)
        await driver.ask(CreatePlacementGroup(0, PlacementGroupSpec(b"g" * 18, driver.job_id, [{"CPU": CPU}], "PACK")))
        watcher.send(SubscribeActor(plain.actor_id))
        await settle()
        assert len(agent.living) == 2
        assert agent.committed == {b"g" * 18}
        if how == "message":
            driver.send(JobFinished(driver.job_id))
        elif how == "lost connection":
            driver.connection.abort()
        else:
            assert agent.connection is not None
            agent.connection.send(WorkerDied(driver.address.worker_id, 0, Cause("worker_exit", signal=9)))
        await settle()
        assert agent.requests(JobFinished) == [JobFinished(driver.job_id)]
        assert list(agent.living) == [detached.actor_id]
        assert agent.reserved == {}
        assert watcher.states(plain.actor_id) == ["ALIVE", "DEAD"]
        assert (await watcher.ask(GetJob(0, driver.job_id))).config.cwd == "/"
        with pytest.raises(RequestFailed):
            await watcher.ask(GetNamedActor(0, "plain", "ns"))
        assert (await watcher.ask(GetNamedActor(0, "detached", "ns"))).spec.actor_id == detached.actor_id

    run(main, agent)


def test_a_function_is_waited_for_and_goes_with_its_job():
    async def main(cluster: Cluster) -> None:
        driver, worker = await cluster.driver(), await cluster.client("worker")
        early = worker.connection.request(GetFunction(0, b"f"))
        withdrawn = worker.connection.request(GetFunction(0, b"f"))
        await settle()
        withdrawn.cancel()
        await settle()
        assert not early.done()
        driver.send(PutFunction(b"f", driver.job_id, b"code"))
        assert (await early).blob == b"code"
        assert (await worker.ask(GetFunction(0, b"f"))).blob == b"code"
        driver.connection.close()
        await settle()
        assert cluster.store.statistics().functions.functions == 0
        worker.send(PutFunction(b"late", driver.job_id, b"code"))
        await settle()
        assert cluster.store.statistics().functions.functions == 0

    run(main)


def test_functions_outlive_the_job_with_its_detached_actor():
    agent = ScriptedAgent("n1", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        driver, other = await cluster.driver(), await cluster.client("other")
        driver.send(PutFunction(b"f", driver.job_id, b"code"))
        actor_id = await created(driver, driver.spec(detached=True))
        driver.connection.close()
        await settle()
        other.send(PutFunction(b"made by the actor", driver.job_id, b"code"))
        assert (await other.ask(GetFunction(0, b"f"))).blob == b"code"
        await other.ask(KillActor(0, actor_id, no_restart=True))
        await settle()
        assert cluster.store.statistics().functions.functions == 0
        assert cluster.store.statistics().jobs.history == 1

    run(main, agent)


def test_key_values():
    async def main(cluster: Cluster) -> None:
        client = await cluster.client()
        assert (await client.ask(KvPut(0, "ns", b"k", b"1"))).value == b"1"
        assert (await client.ask(KvPut(0, "ns", b"k", b"2", overwrite=False))).value == b""
        assert (await client.ask(KvGet(0, "ns", b"k"))).value == b"1"
        assert (await client.ask(KvPut(0, "ns", b"k", b"3"))).value == b""
        assert (await client.ask(KvGet(0, "ns", b"k"))).value == b"3"
        assert (await client.ask(KvGet(0, "other", b"k"))).value is None
        assert (await client.ask(KvKeys(0, "ns", b""))).keys == [b"k"]
        assert (await client.ask(KvDelete(0, "ns", b"k"))).value == b"1"
        assert (await client.ask(KvDelete(0, "ns", b"k"))).value == b""

    run(main)


def test_a_watcher_gets_the_backlog_and_what_comes():
    async def main(cluster: Cluster) -> None:
        await cluster.driver("a")
        watcher = await cluster.client("watcher")
        await watcher.ask(Watch(0, "jobs"))
        await cluster.driver("b")
        await settle()
        assert [message.sequence for message in watcher.got if isinstance(message, Published)] == [1, 2]
        with pytest.raises(RequestFailed, match="no channel"):
            await watcher.ask(Watch(0, "weather"))

    run(main)


# --- nodes


def test_fresh_figures_are_asked_for_and_a_silent_agent_costs_two_seconds():
    agents = ScriptedAgent("n1", {"CPU": CPU}), ScriptedAgent("n2", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        client = await cluster.client()
        agents[0].reserved[b"x"] = {0: {"CPU": CPU}}
        stale = (await client.ask(ListNodes(0, fresh=False))).nodes
        fresh = (await client.ask(ListNodes(0, fresh=True))).nodes
        assert [node.available.get("CPU", 0) for node in stale] == [CPU, CPU]
        assert [node.available.get("CPU", 0) for node in fresh] == [0, CPU]
        cluster.network.partition("n2", "head")
        before = asyncio.get_running_loop().time()
        assert len((await client.ask(ListNodes(0, fresh=True))).nodes) == 2
        assert asyncio.get_running_loop().time() - before == pytest.approx(2.0)
        cluster.network.heal("n2", "head")

    run(main, *agents)


def test_a_lost_agent_is_a_dead_node_that_stays_listed():
    agents = ScriptedAgent("n1", {"CPU": CPU}), ScriptedAgent("n2", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        actors = [await created(driver, driver.spec(max_restarts=1, shape=Shape(driver.job_id, strategy=("SPREAD",)))) for _ in range(4)]
        assert [len(agent.living) for agent in agents] == [2, 2]
        assert agents[1].connection is not None
        agents[1].connection.abort()
        await settle()
        nodes = (await driver.ask(ListNodes(0))).nodes
        assert [(node.name, node.alive, bool(node.death_reason)) for node in nodes] == [("n1", True, False), ("n2", False, True)]
        assert sorted(agents[0].living) == sorted(actors)
        assert driver.states(actors[1])[-2:] == ["RESTARTING", "ALIVE"]

    run(main, *agents)


# --- actors


def test_an_actor_lives_restarts_and_dies():
    agent = ScriptedAgent("n1", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        actor_id = await created(driver, driver.spec(max_restarts=1))
        assert (await driver.ask(GetActor(0, actor_id))).spec.args == b""
        agent.end_worker(actor_id, Cause("worker_exit", signal=9))
        await settle()
        agent.end_worker(actor_id, Cause("worker_exit", exit_code=3))
        await settle()
        updates = [message for message in driver.got if isinstance(message, ActorUpdate)]
        assert [(u.state, u.incarnation, u.restarts_left) for u in updates] == [
            ("ALIVE", 0, 1), ("RESTARTING", 1, 0), ("ALIVE", 1, 0), ("DEAD", 1, 0),
        ]  # fmt: skip
        assert updates[-1].cause is not None
        assert updates[-1].cause.exit_code == 3
        assert [start.incarnation for start in agent.requests(StartActor)] == [0, 1]

    run(main, agent)


def test_init_that_raises_is_the_end_whatever_max_restarts_says():
    agent = ScriptedAgent("n1", {"CPU": CPU})
    agent.fail_start = lambda start: Cause("init_failed", "it raised", error=b"pickled")

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        actor_id = await created(driver, driver.spec(max_restarts=-1))
        update = driver.got[-1]
        assert isinstance(update, ActorUpdate)
        assert (update.state, update.cause and update.cause.error) == ("DEAD", b"pickled")
        driver.send(SubscribeActor(actor_id))
        await settle()
        assert driver.got[-1] == update

    run(main, agent)


def test_one_of_many_gets_the_name():
    agent = ScriptedAgent("n1", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        drivers = [await cluster.driver(f"d{n}") for n in range(5)]
        specs = [driver.spec("it") for driver in drivers]
        asked = [driver.ask(CreateActor(0, spec)) for driver, spec in zip(drivers, specs, strict=True)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        losers = [result for result in results if isinstance(result, RequestFailed)]
        assert [loser.kind for loser in losers] == ["ActorAlreadyExistsError"] * 4
        found = [(await driver.ask(GetNamedActor(0, "it", "ns"))).spec.actor_id for driver in drivers]
        assert set(found) == {specs[results.index(next(r for r in results if not isinstance(r, RequestFailed)))].actor_id}
        assert (await drivers[0].ask(ListNamedActors(0, "ns", all_namespaces=False))).names == [("ns", "it")]
        await drivers[0].ask(KillActor(0, found[0], no_restart=True))
        await drivers[1].ask(CreateActor(0, drivers[1].spec("it")))

    run(main, agent)


def test_a_killed_start_is_cancelled_and_answered():
    agent = ScriptedAgent("n1", {"CPU": CPU})
    agent.hold = True

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        actor_id = await created(driver, driver.spec())
        await driver.ask(KillActor(0, actor_id, no_restart=True))
        await settle()
        assert driver.states(actor_id) == ["PENDING", "DEAD"]
        assert agent.pending == {}
        again = await created(driver, driver.spec(max_restarts=1))
        await driver.ask(KillActor(0, again, no_restart=False))
        await settle()
        assert agent.pending[again].incarnation == 1
        agent.finish_start(again)
        await settle()
        assert driver.states(again) == ["PENDING", "RESTARTING", "ALIVE"]

    run(main, agent)


def test_out_of_scope_ends_after_the_calls_and_frees_the_name_at_once():
    agent = ScriptedAgent("n1", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        actor_id = await created(driver, driver.spec("it", max_restarts=5))
        driver.send(ActorOutOfScope(actor_id))
        await settle()
        (stop,) = agent.requests(StopActor)
        assert (stop.graceful, stop.cause.kind) == (True, "out_of_scope")
        assert driver.states(actor_id) == ["ALIVE", "DEAD"]
        with pytest.raises(RequestFailed):
            await driver.ask(GetNamedActor(0, "it", "ns"))

    run(main, agent)


def test_children_go_with_their_owner_but_not_with_a_retired_one():
    agent = ScriptedAgent("n1", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        parent = await created(driver, driver.spec())
        _, address = agent.living[parent]
        children = [driver.spec(detached=detached) for detached in (False, True)]
        for child in children:
            await created(driver, msgspec.structs.replace(child, owner=address))
        retired = msgspec.structs.replace(driver.spec(), owner=Address(b"retired", b"", ""))
        await created(driver, retired)
        assert agent.connection is not None
        agent.connection.send(WorkerDied(b"retired", 0, Cause("max_calls")))
        agent.connection.send(WorkerDied(b"retired", 0, Cause("worker_exit")))
        agent.end_worker(parent, Cause("worker_exit", signal=9))
        await settle()
        assert sorted(agent.living) == sorted([children[1].actor_id, retired.actor_id])
        assert driver.states(children[0].actor_id) == ["ALIVE", "DEAD"]

    run(main, agent)


def test_a_subscription_may_come_before_the_creation():
    agent = ScriptedAgent("n1", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        driver, borrower = await cluster.driver(), await cluster.client("borrower")
        spec, never = driver.spec(), driver.spec()
        borrower.send(SubscribeActor(spec.actor_id))
        borrower.send(SubscribeActor(never.actor_id))
        borrower.send(SubscribeActor(b"x" * 12 + b"\0\0\0\x63"))
        await settle()
        await driver.ask(CreateActor(0, spec))
        await settle()
        assert borrower.states(spec.actor_id) == ["PENDING", "PENDING", "ALIVE"]
        assert borrower.states(never.actor_id) == ["PENDING"]
        driver.connection.close()
        await settle()
        assert borrower.states(never.actor_id) == ["PENDING", "DEAD"]
        assert borrower.states(b"x" * 12 + b"\0\0\0\x63") == ["DEAD"]

    run(main, agent)


@pytest.mark.parametrize("kill", [True, False])
def test_an_actor_may_be_unwanted_before_it_is_created(kill: bool):
    agent = ScriptedAgent("n1", {"CPU": CPU})

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        spec = driver.spec()
        if kill:
            await driver.ask(KillActor(0, spec.actor_id, no_restart=True))
        else:
            driver.send(ActorOutOfScope(spec.actor_id))
        assert await created(driver, spec)
        assert driver.states(spec.actor_id) == ["DEAD"]
        assert [type(message) for message in agent.seen] == [WorkComes], "it is asked to start nothing"

    run(main, agent)


def test_an_infeasible_actor_waits_for_a_node_that_fits():
    small, large = ScriptedAgent("n1", {"CPU": CPU}), ScriptedAgent("n2", {"CPU": 8 * CPU})

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        actor_id = await created(driver, driver.spec(shape=Shape(driver.job_id, (("CPU", 4 * CPU),))))
        plain = await created(driver, driver.spec())
        assert (driver.states(actor_id), driver.states(plain)) == (["PENDING"], ["ALIVE"])
        await large.join(MemoryTransport(cluster.network, "n2"), "control")
        await settle()
        assert driver.states(actor_id) == ["PENDING", "ALIVE"]
        assert list(large.living) == [actor_id]

    run(main, small)


def test_a_hard_affinity_to_a_dead_node_is_hopeless():
    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        shape = Shape(driver.job_id, strategy=("NODE_AFFINITY", (b"gone" * 7).hex(), False))
        actor_id = await created(driver, driver.spec(shape=shape))
        assert driver.states(actor_id) == ["DEAD"]

    run(main, ScriptedAgent("n1", {"CPU": CPU}))


# --- placement groups


def group(driver: Client, number: int, bundles: list[int], strategy: str = "PACK", **fields: Any) -> PlacementGroupSpec:
    return PlacementGroupSpec(b"%018d" % number, driver.job_id, [{"CPU": n * CPU} for n in bundles], strategy, **fields)


def test_a_group_is_created_used_and_removed():
    agent = ScriptedAgent("n1", {"CPU": 4 * CPU})

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        spec = group(driver, 1, [1, 2], name="g", namespace="ns")
        shape = Shape(driver.job_id, (("CPU", 2 * CPU),), placement_group=spec.placement_group_id)
        await driver.ask(CreatePlacementGroup(0, spec))
        await driver.ask(WaitPlacementGroup(0, spec.placement_group_id))
        (record,) = (await driver.ask(GetPlacementGroup(0, b"", "g", "ns"))).groups
        assert (record.state, record.nodes) == ("CREATED", [agent.node_id] * 2)
        with pytest.raises(RequestFailed, match="exists"):
            await driver.ask(CreatePlacementGroup(0, group(driver, 2, [1], name="g", namespace="ns")))
        actor_id = await created(driver, driver.spec(shape=shape, max_restarts=-1))
        await driver.ask(RemovePlacementGroup(0, spec.placement_group_id))
        await driver.ask(RemovePlacementGroup(0, spec.placement_group_id))
        await settle()
        assert (agent.reserved, agent.living) == ({}, {})
        assert driver.states(actor_id) == ["ALIVE", "DEAD"]
        with pytest.raises(RequestFailed) as error:
            await driver.ask(WaitPlacementGroup(0, spec.placement_group_id))
        assert error.value.kind == "TaskPlacementGroupRemoved"
        assert [record.state for record in (await driver.ask(ListPlacementGroups(0))).groups] == ["REMOVED"]

    run(main, agent)


def test_a_group_waits_for_room_and_all_or_nothing():
    agents = [ScriptedAgent(f"n{n}", {"CPU": 2 * CPU}) for n in range(2)]

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        await driver.ask(CreatePlacementGroup(0, group(driver, 1, [1, 1], "STRICT_SPREAD")))
        await driver.ask(CreatePlacementGroup(0, group(driver, 2, [2, 2], "STRICT_SPREAD")))
        waiting = driver.connection.request(WaitPlacementGroup(0, b"%018d" % 2))
        too_many = group(driver, 3, [1, 1, 1], "STRICT_SPREAD")
        await driver.ask(CreatePlacementGroup(0, too_many))
        await settle(5)
        assert not waiting.done()
        assert all(list(agent.reserved) == [b"%018d" % 1] for agent in agents)
        await driver.ask(RemovePlacementGroup(0, b"%018d" % 1))
        await waiting
        third = ScriptedAgent("n9", {"CPU": 2 * CPU})
        await third.join(MemoryTransport(cluster.network, "n9"), "control")
        await driver.ask(RemovePlacementGroup(0, b"%018d" % 2))
        await driver.ask(WaitPlacementGroup(0, too_many.placement_group_id))

    run(main, *agents)


def test_one_refusal_gives_everything_back_and_is_tried_again():
    agents = [ScriptedAgent(f"n{n}", {"CPU": 2 * CPU}) for n in range(2)]

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        agents[1].refuse = True
        await driver.ask(CreatePlacementGroup(0, group(driver, 1, [1, 1], "STRICT_SPREAD")))
        await settle(0.5)
        assert [agent.reserved for agent in agents] == [{}, {}]
        agents[1].refuse = False
        await driver.ask(WaitPlacementGroup(0, b"%018d" % 1))
        assert all(agent.committed for agent in agents)

    run(main, *agents)


def test_lost_bundles_are_placed_again():
    agents = [ScriptedAgent(f"n{n}", {"CPU": 2 * CPU}) for n in range(3)]

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        spec = group(driver, 1, [2, 2], "STRICT_SPREAD")
        await driver.ask(CreatePlacementGroup(0, spec))
        await driver.ask(WaitPlacementGroup(0, spec.placement_group_id))
        (record,) = (await driver.ask(ListPlacementGroups(0))).groups
        lost = next(agent for agent in agents if agent.node_id == record.nodes[0])
        assert lost.connection is not None
        lost.connection.abort()
        await settle()
        (moved,) = (await driver.ask(ListPlacementGroups(0))).groups
        assert moved.state == "CREATED"
        assert moved.nodes[1] == record.nodes[1]
        assert moved.nodes[0] not in (record.nodes[0], record.nodes[1])

    run(main, *agents)


def test_who_watches_a_group_hears_where_its_bundles_are_until_it_is_removed():
    agents = [ScriptedAgent(f"n{n}", {"CPU": 2 * CPU}) for n in range(2)]

    async def main(cluster: Cluster) -> None:
        driver, watcher, stranger = await cluster.driver(), await cluster.client("watcher"), await cluster.client("stranger")
        spec = group(driver, 1, [2, 2], "STRICT_SPREAD")
        await driver.ask(CreatePlacementGroup(0, spec))
        watcher.send(WatchGroup(spec.placement_group_id))
        await driver.ask(WaitPlacementGroup(0, spec.placement_group_id))
        (record,) = (await driver.ask(ListPlacementGroups(0))).groups
        await settle()
        assert watcher.got[-1] == GroupChanged(spec.placement_group_id, "CREATED", spec.bundles, record.nodes)
        lost = next(agent for agent in agents if agent.node_id == record.nodes[0])
        assert lost.connection is not None
        lost.connection.abort()
        await settle()
        assert watcher.got[-1] == GroupChanged(spec.placement_group_id, "RESCHEDULING", spec.bundles, [b"", record.nodes[1]])
        await driver.ask(RemovePlacementGroup(0, spec.placement_group_id))
        await settle()
        assert watcher.got[-1] == GroupChanged(spec.placement_group_id, "REMOVED")
        stranger.send(WatchGroup(spec.placement_group_id))
        await settle()
        assert stranger.got == [GroupChanged(spec.placement_group_id, "REMOVED")]

    run(main, *agents)


# --- quantity


def test_a_thousand_creations_cost_few_commits_and_linear_work():
    agent = ScriptedAgent("n1", {"CPU": CPU})
    agent.hold = True

    async def main(cluster: Cluster) -> None:
        driver = await cluster.driver()
        before = cluster.store.statistics().commits
        specs = [driver.spec() for _ in range(1000)]
        begun = time.perf_counter()
        await asyncio.gather(*[driver.ask(CreateActor(0, spec)) for spec in specs])
        await settle()
        assert len(agent.pending) == 1000
        agent.hold = False
        for spec in specs:
            agent.finish_start(spec.actor_id)
        await settle()
        assert cluster.store.statistics().actors.alive == 1000
        assert cluster.store.statistics().commits - before < 20
        assert time.perf_counter() - begun < 5

    run(main, agent, settings=Settings())
