"""The node agent with fake connections and a fake launcher: messages in, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from shoal._base.settings import Settings
from shoal._core.node_agent.server import NodeAgent
from shoal._core.transport.errors import ConnectionLost, RequestFailed
from shoal._core.wire import messages as wire
from shoal._core.wire.messages import Address, Cause, Message, NodeRecord, Shape, Value

JOB = b"job1"
CPU = (("CPU", 10_000),)


class FakeConnection:
    """What the peer of the agent sees: everything that the agent sent, by type."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = self.slow = False
        self.tag: Any = None
        self.on_message: Callable[..., None] = lambda connection, message: None
        self.on_close: Callable[..., None] = lambda connection: None
        self.sent: list[Any] = []
        self.asked: dict[int, asyncio.Future[Any]] = {}

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def request(self, message: Any) -> asyncio.Future[Any]:
        future = self.loop.create_future()
        message.rid = len(self.asked) + 1
        self.asked[message.rid] = future
        self.sent.append(message)
        return future

    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None:
        self.sent.append(wire.Failed(rid, kind, message, detail))

    def saturated(self) -> bool:
        return self.slow

    def close(self) -> None:
        self.hang_up()

    # the peer's side

    def say(self, message: Message) -> None:
        self.on_message(self, message)

    def hang_up(self) -> None:
        self.closed = True
        for future in self.asked.values():
            if not future.done():
                future.set_exception(ConnectionLost("gone"))
        self.on_close(self)

    def got(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.sent if type(message) is kind]

    def last(self, kind: type[Any]) -> Any:
        return self.got(kind)[-1]


class FakeLauncher:
    def __init__(self) -> None:
        self.started: list[bytes] = []
        self.killed: list[bytes] = []

    def start(self, worker_id: bytes) -> None:
        self.started.append(worker_id)

    def kill(self, worker_id: bytes) -> None:
        self.killed.append(worker_id)

    def tail(self, worker_id: bytes) -> list[str]:
        return ["last words"]


class FakeStore:
    def __init__(self) -> None:
        self.owned: dict[bytes, list[tuple[bytes, int, list[Any]]]] = {}
        self.freed: list[bytes] = []
        self.handled: list[Any] = []

    def handle(self, connection: Any, message: Message) -> bool:
        self.handled.append(message)
        return isinstance(message, wire.CreateObject)

    def disconnected(self, connection: Any) -> None:
        pass

    def free(self, ids: list[bytes]) -> None:
        self.freed += ids

    def stored(self, object_id: bytes) -> tuple[Address, int, list[Any]] | None:
        return None

    def contains(self, object_id: bytes) -> bool:
        return any(object_id == one[0] for owned in self.owned.values() for one in owned) and object_id not in self.freed

    def objects_of(self, worker_id: bytes) -> list[tuple[bytes, int, list[Any]]]:
        return self.owned.get(worker_id, [])


class Node:
    """A node agent and the hands that play everybody around it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, total: dict[str, int], settings: Settings, prestart: int) -> None:
        self.loop = loop
        record = NodeRecord(b"n" * 28, "unix:agent", "host", "127.0.0.1", dict(total), dict(total), {})
        self.launcher, self.store = FakeLauncher(), FakeStore()
        names = iter(range(10_000))
        self.agent = NodeAgent(
            loop, record, self.store, self.launcher, settings, "/session", "/arena", 1 << 20, "unix:control",
            prestart=prestart, new_worker_id=lambda: b"w%027d" % next(names),
        )  # fmt: skip
        self.control = FakeConnection(loop)
        self.agent.attach_control(self.control)
        self.workers: dict[bytes, FakeConnection] = {}
        self.rid = 100

    def turn(self) -> None:
        """Run the loop until nothing is ready, registering the workers that were started."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))
            for worker_id in self.launcher.started:
                if worker_id not in self.workers and worker_id not in self.launcher.killed:
                    self.workers[worker_id] = self.register(worker_id)
        self.agent.check()

    def register(self, worker_id: bytes, job_id: bytes = b"", log_to_driver: bool = False) -> FakeConnection:
        connection = FakeConnection(self.loop)
        self.agent.accept(connection)
        pid = 1000 + len(self.workers)
        connection.say(wire.RegisterProcess(1, worker_id, pid, f"unix:{worker_id.hex()}", job_id, log_to_driver))
        return connection

    def driver(self, name: bytes = b"driver", job_id: bytes = JOB, log_to_driver: bool = False) -> FakeConnection:
        return self.register(name, job_id, log_to_driver)

    def ask(self, owner: FakeConnection, resources: tuple[tuple[str, int], ...] = CPU, **shape: Any) -> int:
        self.rid += 1
        owner.say(wire.RequestLease(self.rid, Shape(shape.pop("job_id", JOB), resources, **shape), name="f"))
        self.turn()
        return self.rid

    def granted(self, owner: FakeConnection, rid: int) -> Any:
        return next((one for one in owner.got(wire.LeaseGranted) if one.rid == rid), None)

    def exit(self, worker_id: bytes, exit_code: int | None = None, signal: int | None = 9) -> None:
        self.agent.worker_exited(worker_id, 4242, exit_code, signal)
        if worker_id in self.workers and not self.workers[worker_id].closed:
            self.workers[worker_id].hang_up()
        self.turn()

    def free(self) -> dict[str, int]:
        return self.agent.leases.available()

    def start_actor(self, actor_id: bytes = b"actor", rid: int = 7, detached: bool = False, **shape: Any) -> None:
        owner = Address(b"driver", b"", "unix:driver")
        shape.setdefault("placement_resources", CPU)
        spec = wire.ActorSpec(actor_id, JOB, owner, b"class", "Counter", b"", [], Shape(JOB, **shape), detached=detached)
        self.control.say(wire.StartActor(rid, spec, 0))
        self.turn()

    def actor_worker(self) -> tuple[bytes, FakeConnection]:
        return next((one, connection) for one, connection in self.workers.items() if connection.got(wire.BecomeActor))

    def actor_ready(self) -> bytes:
        worker_id, connection = self.actor_worker()
        become = connection.last(wire.BecomeActor)
        connection.asked[become.rid].set_result(wire.ActorStarted(become.rid, Address(worker_id, b"", "unix:actor")))
        self.turn()
        return worker_id


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def node(loop: asyncio.AbstractEventLoop) -> Iterator[Node]:
    node = Node(loop, {"CPU": 20_000, "GPU": 20_000, "memory": 10_000_000}, Settings(debug=True, adoption_grace_s=0.0), prestart=0)
    yield node
    loop.run_until_complete(node.agent.close())


def test_registration_tells_a_process_all_it_needs(node: Node) -> None:
    told = node.driver().last(wire.Registered)
    assert (told.rid, told.session_dir, told.control_store, told.arena_path, told.arena_bytes) == (
        1, "/session", "unix:control", "/arena", 1 << 20,
    )  # fmt: skip
    assert told.settings


def test_a_lease_is_granted_with_a_started_worker_and_comes_back(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    assert grant.worker.worker_id == node.launcher.started[0]
    assert node.free()["CPU"] == 10_000
    driver.say(wire.ReturnLease(grant.lease_id))
    node.turn()
    assert node.free()["CPU"] == 20_000


def test_the_worker_is_reused_by_the_same_job_only(node: Node) -> None:
    driver, other = node.driver(), node.driver(b"other", b"job2")
    first = node.granted(driver, node.ask(driver))
    driver.say(wire.ReturnLease(first.lease_id))
    again = node.granted(driver, node.ask(driver))
    assert again.worker == first.worker
    driver.say(wire.ReturnLease(again.lease_id))
    theirs = node.granted(other, node.ask(other, job_id=b"job2"))
    assert theirs.worker != first.worker


def test_a_full_node_queues_and_calls_leases_back(node: Node) -> None:
    driver, other = node.driver(), node.driver(b"other", b"job2")
    held = [node.granted(driver, node.ask(driver)) for _ in range(2)]
    rid = node.ask(other, job_id=b"job2")
    assert node.granted(other, rid) is None
    assert [one.lease_id for one in driver.got(wire.LeaseWanted)] == [held[0].lease_id]
    driver.say(wire.ReturnLease(held[0].lease_id))
    node.turn()
    assert node.granted(other, rid) is not None


def test_a_lease_is_not_called_back_before_its_owner_knows_it(node: Node) -> None:
    driver, other = node.driver(), node.driver(b"other", b"job2")
    for rid in (1, 2):
        driver.say(wire.RequestLease(rid, Shape(JOB, CPU), name="f"))
    node.loop.run_until_complete(asyncio.sleep(0))  # granted, and no worker has started
    other.say(wire.RequestLease(1, Shape(b"job2", CPU), name="f"))
    node.loop.run_until_complete(asyncio.sleep(0))
    assert not driver.got(wire.LeaseGranted)
    assert not driver.got(wire.LeaseWanted)
    node.turn()
    [wanted] = driver.got(wire.LeaseWanted)
    granted = [
        one.lease_id for one in driver.sent if isinstance(one, wire.LeaseGranted) and driver.sent.index(one) < driver.sent.index(wanted)
    ]
    assert wanted.lease_id in granted


def test_gpus_are_granted_by_index(node: Node) -> None:
    driver = node.driver()
    grants = [node.granted(driver, node.ask(driver, (("GPU", 10_000),))) for _ in range(2)]
    assert [grant.resource_ids for grant in grants] == [{"GPU": [0]}, {"GPU": [1]}]


def test_an_infeasible_request_is_told_once_and_does_not_block_others(node: Node) -> None:
    driver = node.driver()
    node.ask(driver, (("GPU", 40_000),))
    assert driver.last(wire.LeaseInfeasible).message == (
        "f needs 4 GPUs; the largest node has 2. Ask for num_gpus<=2 or add a node with 4."
    )
    assert node.granted(driver, node.ask(driver)) is not None
    assert len(driver.got(wire.LeaseInfeasible)) == 1


def test_a_hard_affinity_to_a_dead_node_fails(node: Node) -> None:
    driver = node.driver()
    rid = node.ask(driver, strategy=("NODE_AFFINITY", b"x" * 28, False))
    assert (driver.last(wire.Failed).rid, driver.last(wire.Failed).kind) == (rid, "TaskUnschedulableError")


def test_strategies_with_lists_off_the_wire_are_accepted(node: Node) -> None:
    driver = node.driver()
    rid = node.ask(driver, strategy=("NODE_LABEL", [], [["zone", "in", ["a"]]]))
    assert node.granted(driver, rid) is not None


def test_a_withdrawn_request_is_answered(node: Node) -> None:
    driver = node.driver()
    for _ in range(2):
        node.ask(driver)
    rid = node.ask(driver)
    driver.say(wire.CancelRequest(rid))
    assert (driver.last(wire.Failed).rid, driver.last(wire.Failed).kind) == (rid, "Cancelled")


def test_a_dead_worker_is_reported_with_its_exit_status(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    node.exit(grant.worker.worker_id, None, 11)
    died = driver.last(wire.WorkerDied)
    assert (died.lease_id, died.cause.kind, died.cause.signal, died.cause.pid) == (grant.lease_id, "worker_exit", 11, 4242)
    assert died.cause.log_tail == ["last words"]
    assert node.control.last(wire.WorkerDied).worker_id == grant.worker.worker_id
    assert node.free()["CPU"] == 20_000


def test_an_announced_end_is_the_cause(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    worker = node.workers[grant.worker.worker_id]
    worker.say(wire.ProcessExiting(Cause("max_calls", "It has run once.")))
    worker.hang_up()
    node.exit(grant.worker.worker_id, 0, None)
    assert driver.last(wire.WorkerDied).cause.kind == "max_calls"


def test_a_killed_worker_carries_the_killers_reason(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    driver.say(wire.KillProcess(grant.worker.worker_id, Cause("killed", "It was cancelled.")))
    assert node.launcher.killed == [grant.worker.worker_id]
    node.exit(grant.worker.worker_id)
    assert driver.last(wire.WorkerDied).cause.message == "It was cancelled."


def test_a_lease_returned_as_failed_ends_with_its_worker(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    driver.say(wire.ReturnLease(grant.lease_id, worker_failed=True))
    assert node.launcher.killed == [grant.worker.worker_id]
    assert node.free()["CPU"] == 10_000
    node.exit(grant.worker.worker_id)
    assert node.free()["CPU"] == 20_000
    assert driver.last(wire.WorkerDied).lease_id == grant.lease_id


def test_a_blocked_worker_lends_its_cpu(node: Node) -> None:
    driver = node.driver()
    held = [node.granted(driver, node.ask(driver)) for _ in range(2)]
    worker = node.workers[held[0].worker.worker_id]
    worker.say(wire.WorkerBlocked(held[0].worker.worker_id))
    third = node.granted(worker, node.ask(worker))
    assert third is not None
    worker.say(wire.WorkerUnblocked(held[0].worker.worker_id))
    assert node.agent.leases.node.free["CPU"] == -10_000
    assert node.free()["CPU"] == 0


def test_a_worker_that_was_granted_to_an_owner_who_left_serves_others(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    owner = node.workers[grant.worker.worker_id]
    child = node.granted(owner, node.ask(owner))
    owner.say(wire.ProcessExiting(Cause("idle"), unfinished=True))
    owner.say(wire.ProcessExiting(Cause("idle")))
    owner.hang_up()
    assert child.worker.worker_id not in node.launcher.killed
    assert node.granted(driver, node.ask(driver)).worker.worker_id == child.worker.worker_id


def test_workers_of_a_lost_owner_are_killed(node: Node) -> None:
    driver = node.driver()
    parent = node.granted(driver, node.ask(driver))
    child = node.granted(node.workers[parent.worker.worker_id], node.ask(node.workers[parent.worker.worker_id]))
    node.exit(parent.worker.worker_id)
    assert child.worker.worker_id in node.launcher.killed
    node.exit(child.worker.worker_id)
    assert node.free()["CPU"] == 20_000


def test_an_actor_is_placed_by_a_cpu_and_holds_none(node: Node) -> None:
    node.start_actor()
    worker_id = node.actor_ready()
    assert node.control.last(wire.ActorStarted).address.worker_id == worker_id
    assert node.free()["CPU"] == 20_000
    node.exit(worker_id)
    assert node.control.last(wire.ActorWorkerDied).cause.signal == 9


def test_an_actor_waits_for_its_placement_resources(node: Node) -> None:
    driver = node.driver()
    held = [node.granted(driver, node.ask(driver)) for _ in range(2)]
    node.start_actor()
    assert driver.got(wire.LeaseWanted)
    driver.say(wire.ReturnLease(held[0].lease_id))
    node.turn()
    node.actor_ready()


def test_an_actor_whose_worker_dies_while_starting_is_answered_with_the_cause(node: Node) -> None:
    node.start_actor()
    worker_id, _ = node.actor_worker()
    node.exit(worker_id, 1, None)
    answer = node.control.last(wire.ActorStarted)
    assert (answer.rid, answer.address, answer.cause.exit_code) == (7, None, 1)
    assert not node.control.got(wire.ActorWorkerDied)


def test_an_actor_whose_constructor_raised_is_answered_once_and_its_worker_leaves(node: Node) -> None:
    node.start_actor()
    worker_id, connection = node.actor_worker()
    become = connection.last(wire.BecomeActor)
    connection.asked[become.rid].set_exception(RequestFailed("ValueError", "no", b"pickled"))
    node.turn()
    assert node.control.last(wire.ActorStarted).cause.error == b"pickled"
    assert connection.got(wire.StopProcess)
    node.exit(worker_id, 0, None)
    assert not node.control.got(wire.ActorWorkerDied)


def test_a_graceful_stop_asks_and_a_hard_one_kills(node: Node) -> None:
    node.start_actor()
    worker_id = node.actor_ready()
    node.control.say(wire.StopActor(b"actor", True, Cause("out_of_scope")))
    assert node.workers[worker_id].last(wire.StopProcess).graceful
    assert node.launcher.killed == []
    node.control.say(wire.StopActor(b"actor", False, Cause("killed")))
    assert node.launcher.killed == [worker_id]


def test_a_cancelled_start_is_answered_and_frees_its_place(node: Node) -> None:
    driver = node.driver()
    for _ in range(2):
        node.ask(driver)
    node.start_actor()
    node.control.say(wire.CancelActorStart(b"actor"))
    assert node.control.last(wire.Failed).rid == 7
    assert len(node.agent.leases.waiting) == 0


def prepare(node: Node, group: bytes, bundles: dict[int, dict[str, int]], rid: int = 50) -> Any:
    node.control.sent.clear()
    node.control.say(wire.PrepareBundles(rid, group, bundles))
    node.turn()
    return next(one for one in node.control.sent if isinstance(one, wire.Ack | wire.Failed))


def test_bundles_are_reserved_used_and_released_with_their_workers(node: Node) -> None:
    assert isinstance(prepare(node, b"pg", {0: {"CPU": 10_000}, 1: {"CPU": 10_000, "GPU": 10_000}}), wire.Ack)
    driver = node.driver()
    rid = node.ask(driver, placement_group=b"pg")
    assert node.granted(driver, rid) is None
    node.control.say(wire.CommitBundles(51, b"pg"))
    node.turn()
    grant = node.granted(driver, rid)
    assert (grant.placement_group, grant.bundle_index) == (b"pg", 0)
    gpu = node.granted(driver, node.ask(driver, (("GPU", 10_000),), placement_group=b"pg", bundle_index=1))
    assert (gpu.bundle_index, gpu.resource_ids) == (1, {"GPU": [0]})
    waiting = node.ask(driver, (("CPU", 10_000),), placement_group=b"pg", bundle_index=0)
    node.control.say(wire.ReleaseBundles(52, b"pg"))
    assert (driver.last(wire.Failed).rid, driver.last(wire.Failed).kind) == (waiting, "TaskPlacementGroupRemoved")
    assert 52 not in [one.rid for one in node.control.got(wire.Ack)]
    for one in (grant, gpu):
        node.exit(one.worker.worker_id)
    assert 52 in [one.rid for one in node.control.got(wire.Ack)]
    assert node.free() == node.agent.node.total
    late = node.ask(driver, placement_group=b"pg")
    assert (driver.last(wire.Failed).rid, driver.last(wire.Failed).kind) == (late, "TaskPlacementGroupRemoved")


def test_bundles_are_all_or_nothing_and_announced_when_they_would_fit(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    assert isinstance(prepare(node, b"pg", {0: {"CPU": 10_000}, 1: {"CPU": 10_000}}), wire.Failed)
    assert node.free()["CPU"] == 10_000
    assert driver.got(wire.LeaseWanted)
    driver.say(wire.ReturnLease(grant.lease_id))
    node.turn()
    assert node.control.got(wire.ClusterChanged)
    assert isinstance(prepare(node, b"pg", {0: {"CPU": 10_000}, 1: {"CPU": 10_000}}), wire.Ack)


def test_a_rolled_back_group_keeps_its_requests(node: Node) -> None:
    driver = node.driver()
    prepare(node, b"pg", {0: {"CPU": 10_000}})
    rid = node.ask(driver, placement_group=b"pg")
    node.control.say(wire.ReleaseBundles(52, b"pg", removed=False))
    prepare(node, b"pg", {0: {"CPU": 10_000}})
    node.control.say(wire.CommitBundles(51, b"pg"))
    node.turn()
    assert node.granted(driver, rid) is not None


def test_the_end_of_a_driver_ends_its_jobs_workers_but_not_detached_actors(node: Node) -> None:
    driver = node.driver()
    node.start_actor(detached=True)
    actor = node.actor_ready()
    of_actor = node.granted(node.workers[actor], node.ask(node.workers[actor]))
    grant = node.granted(driver, node.ask(driver))
    driver.hang_up()
    node.turn()
    assert node.launcher.killed
    assert set(node.launcher.killed) == {grant.worker.worker_id}
    node.exit(grant.worker.worker_id)
    assert of_actor.worker.worker_id not in node.launcher.killed


def test_idle_workers_of_a_finished_job_are_killed(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    driver.say(wire.ReturnLease(grant.lease_id))
    node.control.say(wire.JobFinished(JOB))
    assert node.launcher.killed == [grant.worker.worker_id]


def test_workers_that_never_start_fail_the_request(node: Node) -> None:
    driver = node.driver()
    driver.say(wire.RequestLease(5, Shape(JOB, CPU)))
    for _ in range(3):
        node.loop.run_until_complete(asyncio.sleep(0))
        node.agent.worker_exited(node.launcher.started[-1], 0, None, None)
    assert (driver.last(wire.Failed).rid, driver.last(wire.Failed).kind) == (5, "WorkerCrashedError")
    assert node.free()["CPU"] == 20_000


def test_a_driver_may_learn_its_job_after_it_has_registered(node: Node) -> None:
    asking, telling = node.driver(b"a", bytes(4), log_to_driver=True), node.driver(b"b", bytes(4), log_to_driver=True)
    node.ask(asking, job_id=b"job1")
    telling.say(wire.RegisterProcess(2, b"b", 1, "unix:b", b"job2", True))
    for job_id in (b"job1", b"job2"):
        node.agent.forward_log(job_id, wire.LogLines(job_id, 1, "f", False, []))
    assert [connection.last(wire.LogLines).job_id for connection in (asking, telling)] == [b"job1", b"job2"]


def test_logs_go_to_the_driver_that_wants_them(node: Node) -> None:
    quiet, loud = node.driver(b"a", b"job1"), node.driver(b"b", b"job2", log_to_driver=True)
    lines = wire.LogLines(b"job2", 1, "f", False, ["hello"])
    node.agent.forward_log(b"job2", lines)
    node.agent.forward_log(b"job1", lines)
    assert (quiet.got(wire.LogLines), loud.got(wire.LogLines)) == ([], [lines])
    loud.slow = True
    assert not node.agent.forward_log(b"job2", lines)


def test_resources_are_reported_at_once_and_then_coalesced(node: Node) -> None:
    driver = node.driver()
    first = node.ask(driver)
    node.loop.run_until_complete(asyncio.sleep(0.005))
    assert node.control.last(wire.NodeResources).available["CPU"] == 10_000
    driver.say(wire.ReturnLease(node.granted(driver, first).lease_id))
    node.ask(driver)
    node.ask(driver)
    assert len(node.control.got(wire.NodeResources)) == 1
    node.control.say(wire.ReportResources(9))
    assert node.control.last(wire.NodeList).nodes[0].available["CPU"] == 0


def test_store_messages_go_to_the_store_and_unknown_ones_are_refused(node: Node) -> None:
    driver = node.driver()
    driver.say(wire.CreateObject(5, b"o", 1, Address(b"driver", b"", "")))
    driver.say(wire.KvGet(6, "", b""))
    assert driver.last(wire.Failed).rid == 6


def test_handed_over_objects_are_served_until_their_borrowers_let_go(node: Node) -> None:
    driver, worker = node.driver(), node.driver(b"borrower")
    me = Address(b"borrower", b"", "")
    driver.say(wire.AdoptObjects(1, [wire.OwnedObject(b"o", Value(0, b"data", 4), [(me, 2)])]))
    assert driver.last(wire.Ack).rid == 1
    worker.say(wire.AddBorrower(2, b"o", me, 1, full=True))
    worker.say(wire.GetObject(3, b"o", me))
    assert worker.last(wire.ObjectValue).value.data == b"data"
    worker.say(wire.RemoveBorrower(b"o", me, 1))
    assert b"o" in node.agent.adopted.state
    worker.say(wire.RemoveBorrower(b"o", me, 1))
    worker.say(wire.GetObject(4, b"o", me))
    assert (worker.last(wire.Failed).rid, worker.last(wire.Failed).kind) == (4, "OwnerDiedError")


def test_stored_objects_of_a_killed_owner_wait_for_their_holders(node: Node) -> None:
    driver = node.driver()
    grant = node.granted(driver, node.ask(driver))
    node.store.owned[grant.worker.worker_id] = [(b"kept", 10, []), (b"dropped", 10, [])]
    node.exit(grant.worker.worker_id)
    me = Address(b"driver", b"", "")
    driver.say(wire.AddBorrower(2, b"kept", me, 1))
    driver.say(wire.GetObject(3, b"kept", me))
    assert driver.last(wire.ObjectValue).value == Value(1, b"", 10, node_id=node.agent.node.node_id)
    node.agent.adopted.tick()
    assert node.store.freed == [b"dropped"]
    driver.hang_up()
    node.turn()  # after the grace, which is none here
    assert node.store.freed == [b"dropped", b"kept"]


def test_a_request_that_is_read_after_the_exit_of_its_sender_gets_nothing(node: Node) -> None:
    driver = node.driver()
    node.ask(driver)
    worker_id, worker = next(iter(node.workers.items()))
    node.agent.worker_exited(worker_id, 4242, None, 9)  # its connection still holds its last words
    node.ask(worker)
    assert node.free() == {"CPU": 20_000, "GPU": 20_000, "memory": 10_000_000}
    worker.hang_up()
    node.turn()
    assert node.granted(driver, node.ask(driver)) is not None


def foreign(node: Node, worker_id: bytes = b"foreign", node_id: bytes = b"other") -> FakeConnection:
    connection = FakeConnection(node.loop)
    node.agent.accept(connection)
    connection.say(wire.RegisterProcess(1, worker_id, 7, "unix:there", JOB, node_id=node_id))
    return connection


def test_an_owner_of_another_node_leases_workers_and_loses_them_with_its_connection(node: Node) -> None:
    owner = foreign(node)
    grant = node.granted(owner, node.ask(owner))
    assert node.agent.connection_of(b"foreign") is None, "it is reached at its own node"
    driver = node.driver()
    owner.hang_up()
    assert node.launcher.killed == [grant.worker.worker_id]
    node.exit(grant.worker.worker_id)
    assert node.granted(driver, node.ask(driver)) is not None, "it was no driver: no job has ended"


def test_an_owner_loses_its_workers_when_its_node_is_declared_dead(node: Node) -> None:
    other = NodeRecord(b"other", "unix:o", "other", "", {"CPU": 10_000}, {"CPU": 0}, {})
    node.control.say(wire.NodesChanged([other]))
    owner, driver = foreign(node), node.driver()
    grant = node.granted(owner, node.ask(owner))
    node.control.say(wire.NodesChanged([msgspec.structs.replace(other, alive=False)]))
    assert owner.closed
    assert node.launcher.killed == [grant.worker.worker_id]
    assert not driver.closed
