"""How the parts that decide behave at thousands of nodes, in one process: without workers, under a virtual clock, with real costs.

    owners (Submission) ── RequestLease, ReturnLease ──▶ agents (Leases, ResourceReports) ── NodeResources ──▶ ControlStore
       ▲      ◀── LeaseGranted, LeaseSpilled ───────────    │                           ◀── NodesChanged ──────
       └── PushTask, TaskDone: a lease that runs a task for its time

Everything named is the code that runs in production, and its messages are encoded, so that bytes and CPU time are theirs. Simplified: a
message takes ``Plan.wire_s``; the agents of owners have views of their own, all others look at one view, because ten thousand
views of ten thousand nodes do not fit into one process, and do not judge again what waits with them.
"""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from shoal._base.ids import NODE_BYTES, TASK_BYTES, WORKER_BYTES
from shoal._base.settings import Settings
from shoal._core.control_store.nodes import NodeTable
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import MemoryStorage
from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.lease_records import Grant, Lease, Spill, Want
from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.resource_reports import REPORT_S, ResourceReports
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling.policy import choose_node
from shoal._core.scheduling.resources import UNIT, Capacity, ResourceSet
from shoal._core.wire.codec import FrameDecoder, encode
from shoal._core.wire.messages import (
    Address,
    LeaseGranted,
    LeaseSpilled,
    LeaseWanted,
    Message,
    NodeRecord,
    NodeResources,
    NodesChanged,
    NodesUsed,
    PushTask,
    RegisterNode,
    RequestLease,
    ReturnLease,
    Shape,
    TaskDone,
    TaskTemplate,
)
from shoal._core.worker.records import TaskRecord
from shoal._core.worker.submission import Lease as HeldLease
from shoal._core.worker.submission import Submission
from shoal.testing.virtual_loop import VirtualLoop


@dataclass(frozen=True)
class Plan:
    """What to simulate. Times in seconds."""

    nodes: int = 1000
    cpus: int = 4
    owners: int = 10
    tasks: int = 100_000
    task_s: float = 1.0
    wire_s: float = 0.0002


@dataclass
class Figures:
    """What was measured."""

    nodes: int
    #: Seconds of CPU of the control store until all nodes had joined, and bytes that it sent for it.
    join_cpu_s: float = 0.0
    join_bytes: int = 0
    #: All nodes have other resources at once: CPU seconds and bytes of the control store, CPU seconds of one agent that hears of it.
    delta_cpu_s: float = 0.0
    delta_bytes: int = 0
    agent_delta_cpu_s: float = 0.0
    #: Virtual seconds from the changes until the last agent knew.
    convergence_s: float = 0.0
    #: Bytes of memory: the control store's table and an agent's view of all nodes.
    table_bytes: int = 0
    view_bytes: int = 0
    #: CPU seconds to choose a node for one request.
    choose_cpu_s: float = 0.0
    #: Of the tasks: virtual seconds until all were done and at best, CPU seconds per task, messages and bytes per task, and of those of the
    #: control store.
    makespan_s: float = 0.0
    best_makespan_s: float = 0.0
    task_cpu_s: float = 0.0
    messages_per_task: float = 0.0
    bytes_per_task: float = 0.0
    control_bytes_per_task: float = 0.0
    #: Virtual seconds from RequestLease to LeaseGranted, until half of the cluster is in use: median, 99th of a hundred, longest.
    lease_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hops: Counter[int] = field(default_factory=Counter)


class _Wire:
    """Counts what is sent."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def count(self, message: Message) -> int:
        nbytes = sum(map(len, encode([message])))
        name = type(message).__name__
        self.messages[name] += 1
        self.bytes[name] += nbytes
        return nbytes


class _ToAgent:
    """The control store's end of an agent's connection. Only ``listen`` agents get what is sent; all of it is encoded and counted."""

    def __init__(self, wire: _Wire, deliver: Callable[[Message], None] | None) -> None:
        self.peer = "an agent"
        self.host = ""
        self.closed = False
        self.tag: Any = None
        self.on_message: Callable[[Any, Any], None]
        self.on_close: Any = None
        self.deliver = deliver
        self._wire = wire

    def send(self, message: Message) -> None:
        self._wire.count(message)
        if self.deliver is not None:
            self.deliver(message)


class _Agent:
    """One node's."""

    def __init__(self, cluster: ScaleCluster, number: int) -> None:
        self.cluster = cluster
        self.node_id = number.to_bytes(8, "big").rjust(NODE_BYTES, b"\1")
        resources = {"CPU": cluster.plan.cpus * UNIT, "memory": 64 << 30, "object_store_memory": 16 << 30}
        self.record = NodeRecord(
            self.node_id, f"unix:/run/shoal/n{number}/agent.sock", f"machine-{number}", "10.0.0.1", resources, dict(resources),
            {"shoal.io/node-id": self.node_id.hex()}, name=f"n{number}", endpoint=f"tcp:10.0.{number >> 8}.{number & 255}:6380",
        )  # fmt: skip
        self.view: ClusterView | None = None
        self.leases = Leases(Capacity(resources), self.node_id, self._nodes, promise=self._promise)
        self.reports = ResourceReports(cluster.loop, self.record, self.leases)
        self.connection = _ToAgent(cluster.wire, None)
        self.reports.control = _ToControl(self)  # type: ignore[assignment]
        self._turn = False
        self._owners: dict[int, _Owner] = {}

    def keep_view(self) -> None:
        """It is an owner's: it hears of all nodes."""
        self.view = ClusterView(self.record)
        self.connection.deliver = self.hear

    def hear(self, message: Message) -> None:
        if isinstance(message, NodesChanged | NodesUsed) and self.view is not None:
            self.cluster.loop.call_later(self.cluster.plan.wire_s, self._learn, message)

    def _learn(self, message: NodesChanged | NodesUsed) -> None:
        assert self.view is not None
        _tell(self.view, message)
        self._perform(self.leases.nodes_changed(self.cluster.loop.time()))
        self.reschedule()

    def _nodes(self) -> list[NodeRecord]:
        self.record.available = self.leases.available()
        return self.view.nodes() if self.view is not None else [self.record]

    def _promise(self, node_id: bytes, need: ResourceSet) -> None:
        if self.view is not None:
            self.view.promise(node_id, need, self.cluster.loop.time())

    # --- leases ---

    def on_request(self, owner: _Owner, message: RequestLease) -> None:
        self._owners[owner.number] = owner
        if self.view is not None:
            self.view.expire(self.cluster.loop.time())
        request = LeaseRequest(owner.number, message.rid, message.shape, self.cluster.loop.time(), hops=message.hops)
        self._perform(self.leases.add(request))
        self.reschedule()

    def on_return(self, lease_id: int) -> None:
        self.leases.end(lease_id)
        self.reschedule()

    def on_cancel(self, owner: int, rid: int) -> None:
        self.leases.cancel(owner, rid)

    def reschedule(self) -> None:
        self.reports.changed()
        if not self._turn:
            self._turn = True
            self.cluster.loop.call_soon(self._schedule)

    def _schedule(self) -> None:
        self._turn = False
        self._perform(self.leases.schedule(self.cluster.loop.time()))

    def _perform(self, instructions: list[Any]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Grant):
                self._grant(instruction.lease)
            elif isinstance(instruction, Want):
                lease = instruction.lease
                self.cluster.post(LeaseWanted(lease.lease_id), partial(self._owners[lease.owner].on_wanted, self.node_id))
            elif isinstance(instruction, Spill):
                request = instruction.request
                self.cluster.post(LeaseSpilled(request.rid, instruction.node_id), self._owners[request.owner].on_spilled)

    def _grant(self, lease: Lease) -> None:
        worker = Address(lease.lease_id.to_bytes(WORKER_BYTES, "big"), self.node_id, f"unix:/run/shoal/w{lease.lease_id}.sock")
        granted = LeaseGranted(lease.request.rid, lease.lease_id, worker, 1234, {}, b"", -1)
        self.cluster.post(granted, self._owners[lease.owner].on_granted)


class _ToControl:
    """The agent's end of its connection to the control store."""

    closed = False

    def __init__(self, agent: _Agent) -> None:
        self._agent = agent

    def send(self, message: Message) -> None:
        cluster, connection = self._agent.cluster, self._agent.connection
        cluster.wire.count(message)
        # What the control store does with it belongs to its CPU time, not to that of tasks.
        cluster.loop.call_later(cluster.plan.wire_s, cluster.in_control_store, connection.on_message, connection, message)


class _Owner:
    """A driver on one of the nodes: its queue and its leases."""

    def __init__(self, cluster: ScaleCluster, number: int, agent: _Agent) -> None:
        self.cluster = cluster
        self.number = number
        self.agent = agent
        self.submission = Submission(cluster.settings, self)
        self.left = 0
        self._rid = 0
        self._asked: dict[int, tuple[RequestLease, _Agent, float]] = {}
        self._shape = Shape(number.to_bytes(4, "big"), (("CPU", UNIT),))

    def submit(self, count: int) -> None:
        template = TaskTemplate(b"f" * 28, "task", "module.task", self._shape)
        self.left = count
        for number in range(count):
            queue = self.submission.enqueue(TaskRecord(number.to_bytes(TASK_BYTES, "big"), template, b"", []))
        self.submission.pump(queue, self.cluster.loop.time())

    # --- what Submission asks ---

    def request_lease(self, shape: Shape, backlog: int, name: str, retriable: bool) -> int:
        self._rid += 1
        self._ask(RequestLease(self._rid, shape, backlog, name=name, retriable=retriable), self.agent, self.cluster.loop.time())
        return self._rid

    def cancel_lease_request(self, request: int) -> None:
        asked = self._asked.pop(request, None)
        if asked is not None:
            asked[1].on_cancel(self.number, request)

    def push(self, lease: HeldLease, records: list[TaskRecord]) -> None:
        cluster = self.cluster
        for position, record in enumerate(records):
            cluster.wire.count(PushTask(record.task_id, 0, b""))
            cluster.loop.call_later((position + 1) * cluster.plan.task_s + 2 * cluster.plan.wire_s, self._done, lease, record.task_id)

    def withdraw(self, lease: HeldLease) -> bool:
        return True

    def return_lease(self, lease: HeldLease) -> None:
        agent = self.cluster.agents[lease.worker.node_id]
        self.cluster.post(ReturnLease(lease.id), lambda message: agent.on_return(message.lease_id))

    def ask_hand_back(self, lease: HeldLease) -> None:
        """Tasks are as long as they are."""

    # --- what comes ---

    def _ask(self, message: RequestLease, agent: _Agent, since: float) -> None:
        self._asked[message.rid] = message, agent, since
        self.cluster.post(message, lambda request: agent.on_request(self, request))

    def on_spilled(self, message: LeaseSpilled) -> None:
        asked = self._asked.get(message.rid)
        if asked is not None:
            again = msgspec.structs.replace(asked[0], hops=asked[0].hops + 1)
            self._ask(again, self.cluster.agents[message.node_id], asked[2])

    def on_granted(self, message: LeaseGranted) -> None:
        now = self.cluster.loop.time()
        asked = self._asked.pop(message.rid, None)
        lease = self.submission.granted(self._shape, message.rid, message, now)
        if asked is not None:
            self.cluster.granted(now - asked[2], asked[0].hops)
        self.submission.pump(lease.queue, now)
        self.submission.settle(lease)
        if not lease.in_flight and lease.key in self.submission.leases:
            self.submission.wanted(lease.key)  # nothing is left for it

    def on_wanted(self, node_id: bytes, message: LeaseWanted) -> None:
        self.submission.wanted((node_id, message.lease_id))

    def _done(self, lease: HeldLease, task_id: bytes) -> None:
        now = self.cluster.loop.time()
        self.cluster.wire.count(TaskDone(task_id, []))
        self.submission.finished(task_id, lease, self.cluster.plan.task_s, now)
        self.left -= 1
        self.submission.pump(lease.queue, now)
        if not lease.in_flight and not lease.queue.ready:
            self.submission.wanted(lease.key)
        self.submission.settle(lease)
        if not self.left:
            self.cluster.finished += 1


class ScaleCluster:
    """Control store, agents and owners of one plan."""

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        self.plan = plan
        # Agents send no heartbeats here.
        self.settings = Settings(node_timeout_s=1e9)
        self.loop = VirtualLoop(seed)
        self.wire = _Wire()
        self.finished = 0
        self.control_cpu_s = 0.0
        self._lease_s: list[float] = []
        self._hops: Counter[int] = Counter()
        self.figures = Figures(plan.nodes)
        self.control = ControlStore(self.loop, MemoryStorage(), self.settings, clock=self.loop.time)
        self._agents = [_Agent(self, number) for number in range(plan.nodes)]
        self.agents = {agent.node_id: agent for agent in self._agents}
        self._join()

    def close(self) -> None:
        self.control.close()
        self.loop.close()

    def post(self, message: Any, deliver: Callable[[Any], None]) -> None:
        """Send a message between an owner and an agent."""
        self.wire.count(message)
        self.loop.call_later(self.plan.wire_s, deliver, message)

    def in_control_store(self, handle: Callable[..., None], *args: Any) -> None:
        begin = time.process_time()
        handle(*args)
        self.control_cpu_s += time.process_time() - begin

    def granted(self, seconds: float, hops: int) -> None:
        self._lease_s.append(seconds)
        self._hops[hops] += 1

    def _bytes_of_views(self) -> int:
        return sum(self.wire.bytes[name] for name in ("NodesChanged", "NodesUsed", "NodeResources"))

    # --- measurements ---

    def _join(self) -> None:
        begin = time.process_time()
        for agent in self._agents:
            self.control.accept(agent.connection)  # type: ignore[arg-type]
            agent.connection.on_message(agent.connection, RegisterNode(0, msgspec.structs.replace(agent.record)))
            self.loop.settle()
        self.loop.advance(1.0)
        self.figures.join_cpu_s = time.process_time() - begin
        self.figures.join_bytes = sum(self.wire.bytes.values())

    def measure_delta(self) -> None:
        """Let all nodes have other resources at the same moment."""
        figures, agent = self.figures, self._agents[0]
        heard: list[NodesChanged | NodesUsed] = []
        times: list[float] = []

        def hear(message: Message) -> None:
            if isinstance(message, NodesChanged | NodesUsed):
                heard.append(message)
                times.append(self.loop.time())

        agent.connection.deliver = hear
        before, begin, now = sum(self.wire.bytes.values()), time.process_time(), self.loop.time()
        self.report_change(UNIT)
        self.loop.advance(1.0)
        figures.delta_cpu_s = time.process_time() - begin
        figures.delta_bytes = sum(self.wire.bytes.values()) - before
        self.report_change(0)
        self.loop.advance(1.0)
        # Agents gather changes for REPORT_S before they report; what the control store computes takes its time, too.
        figures.convergence_s = REPORT_S + times[0] - now + self.plan.wire_s + figures.delta_cpu_s
        frames = [b"".join(bytes(piece) for piece in encode([message])) for message in heard]
        everybody = NodesChanged([one.record for one in self._agents[1:]], whole=True)
        tracemalloc.start()
        table = NodeTable(1000)
        for one in self._agents:
            [copy] = msgspec.msgpack.decode(msgspec.msgpack.encode([one.record]), type=list[NodeRecord])
            table.joined(copy)
        figures.table_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        tracemalloc.start()
        view = ClusterView(agent.record)
        whole = FrameDecoder().feed(b"".join(bytes(piece) for piece in encode([everybody])))
        assert whole is not None
        view.update(whole[0].nodes)  # type: ignore[union-attr]
        del whole
        figures.view_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        begin = time.process_time()
        for frame in frames:
            for message in FrameDecoder().feed(frame) or ():
                _tell(view, message)  # type: ignore[arg-type]
        figures.agent_delta_cpu_s = time.process_time() - begin
        shape = Shape(b"\0" * 4, (("CPU", self.plan.cpus * UNIT),))
        nodes, rounds = view.nodes(), 20
        agent.record.available = dict(agent.record.available, CPU=0)
        begin = time.process_time()
        for turn in range(rounds):
            choose_node(shape, nodes, local=agent.node_id, turn=turn)
        figures.choose_cpu_s = (time.process_time() - begin) / rounds
        agent.record.available = agent.leases.available()
        agent.connection.deliver = None

    def report_change(self, less: int) -> None:
        """Have every agent report so much less CPU than it has."""
        for one in self._agents:
            available = dict(one.record.available, CPU=one.record.available["CPU"] - less)
            one.connection.on_message(one.connection, NodeResources(one.node_id, available))

    def run_tasks(self) -> None:
        """Run the plan's tasks to their end."""
        plan, figures = self.plan, self.figures
        step = plan.nodes // plan.owners
        owners = [_Owner(self, number + 1, self._agents[number * step]) for number in range(plan.owners)]
        everybody = [one.record for one in self._agents]
        for owner in owners:
            owner.agent.keep_view()
            assert owner.agent.view is not None
            owner.agent.view.update(everybody)
        messages, nbytes = sum(self.wire.messages.values()), sum(self.wire.bytes.values())
        told = self._bytes_of_views()
        self.control_cpu_s, start, begin = 0.0, self.loop.time(), time.process_time()
        for owner in owners:
            owner.submit(plan.tasks // plan.owners)
        while self.finished < plan.owners:
            self.loop.advance(0.1)
        figures.makespan_s = self.loop.time() - start
        figures.best_makespan_s = plan.tasks / (plan.nodes * plan.cpus) * plan.task_s
        figures.task_cpu_s = (time.process_time() - begin) / plan.tasks
        figures.messages_per_task = (sum(self.wire.messages.values()) - messages) / plan.tasks
        figures.bytes_per_task = (sum(self.wire.bytes.values()) - nbytes) / plan.tasks
        figures.control_bytes_per_task = (self._bytes_of_views() - told) / plan.tasks
        waits = sorted(self._lease_s[: plan.nodes * plan.cpus // 2])
        figures.lease_s = waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1]
        figures.hops = self._hops


def _tell(view: ClusterView, message: NodesChanged | NodesUsed) -> None:
    if isinstance(message, NodesChanged):
        view.update(message.nodes)
    else:
        view.used(msgspec.msgpack.decode(message.figures, type=list[tuple[bytes, dict[str, int]]]), message.pause_s)


def measure(plan: Plan) -> Figures:
    """Simulate one plan. Takes seconds to minutes of real time."""
    with closing(ScaleCluster(plan)) as cluster:
        cluster.measure_delta()
        cluster.run_tasks()
        return cluster.figures
