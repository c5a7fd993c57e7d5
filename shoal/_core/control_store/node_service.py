"""Messages of node agents, and what the end of a node or process means for the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, NamedTuple

import msgspec

from shoal._base.version import why_apart
from shoal._core.wire.messages import (
    DRAINED,
    Ack,
    Cause,
    ClusterChanged,
    ControlStores,
    JobFinished,
    ListNodes,
    Message,
    NodeList,
    NodeRecord,
    NodeResources,
    NodesChanged,
    NodesUsed,
    RegisterNode,
    WorkComes,
    WorkerDied,
)

from .core import Core, Handler, Session
from .job_service import JobService
from .membership_service import MembershipService
from .missing_nodes import Tell, seek_missing_nodes
from .nodes import Node
from .rows import encode
from .scheduling_service import SchedulingService
from .sweep_service import SweepService

log = logging.getLogger("shoal.control_store")


class Probe(NamedTuple):
    """How a control store looks at the endpoint of a node."""

    #: Whether the node can be dialled there now.
    is_there: Callable[[NodeRecord], Awaitable[bool]]
    #: Whether it has ended, as its machine refuses connections.
    has_ended: Callable[[NodeRecord], Awaitable[bool]]
    #: Sends it a message there, if that can be done.
    tell: Tell


#: Seconds before each look at the endpoint of a node that joins, as long as it is not found there: what keeps it from being dialled
#: may be over soon.
LOOKS_S = (0.0, 5.0, 60.0)

#: Seconds between two words to the node agents about the others: at least, and about what is used on them also at most in a small cluster.
VIEW_S = 0.1
#: Bytes a second that may be spent on saying what is used. What n nodes report goes to n agents: with 1,000 nodes that change all the time
#: 40 MB each time, so they hear it once a second instead of ten times (benchmarks/core_scale.py).
USED_BYTES_PER_S = 50_000_000
#: Ends in good order of processes that nobody wanted to end: what they created lives on until its job ends.
RETIREMENTS = frozenset({"idle", "max_calls", "retired"})


class NodeService:
    def __init__(
        self,
        core: Core,
        jobs: JobService,
        scheduling: SchedulingService,
        sweeps: SweepService,
        members: MembershipService | None,
        probe: Probe | None,
    ) -> None:
        self._core = core
        self._jobs = jobs
        self._scheduling = scheduling
        self._sweeps = sweeps
        self._members = members
        #: Where control stores of this cluster are, if there are several.
        self._control_stores: list[str] = []
        #: Nodes of which the other agents do not know the newest.
        self._changed: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: The same for what is used on them, and seconds until that may be told again.
        self._used: set[bytes] = set()
        self._used_timer: asyncio.TimerHandle | None = None
        self._used_pause_s = VIEW_S
        self._probe = probe
        self._probing: set[asyncio.Task[None]] = set()
        self._looking = False
        #: What to do when a node registers that drains.
        self.on_draining_back: Callable[[NodeRecord], None] = lambda record: None

    def handlers(self) -> dict[type[Message], Handler]:
        return {
            RegisterNode: self._register, NodeResources: self._resources, ClusterChanged: self._cluster_changed,
            ListNodes: self._list, WorkerDied: self._worker_died,
        }  # fmt: skip

    def tell_control_stores(self, addresses: list[str]) -> None:
        """Have all nodes know where else the control store may be found, now and when they join."""
        self._control_stores = addresses
        for connection in self._core.agents.values():
            self._core.outbox.send(connection, ControlStores(addresses))

    def close(self) -> None:
        """Look at nobody any more."""
        for task in self._probing:
            task.cancel()

    def started(self) -> None:
        """The tables were read back."""
        self._look_later()
        self._sweeps.look_later()
        if self._probe is not None:
            self._begin(seek_missing_nodes(self._core, self._probe.tell, lambda: self._control_stores))

    def disconnected(self, session: Session) -> None:
        node_id, core = session.node_id, self._core
        if not node_id or core.agents.get(node_id) is not session.connection:
            return
        del core.agents[node_id]
        core.nodes.disconnected(node_id)
        node = core.nodes.get(node_id)
        assert node is not None
        if self._probe is None or not node.record.endpoint:
            self.node_died(node_id, "The connection to its node agent was lost.")
        elif node.is_where_it_says:
            self._begin(self._see_whether_it_lives(self._probe, node))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._core.loop.create_task(work)
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

    async def _see_whether_it_lives(self, probe: Probe, node: Node) -> None:
        """Nobody at the port where it was: it is dead at once. Anything else is left to its silence."""
        node_id = node.record.node_id
        if await probe.has_ended(node.record) and node_id not in self._core.agents and self._core.nodes.get(node_id) is node:
            self.node_died(node_id, "The connection to its node agent was lost, and nobody listens at its port.")

    async def _see_whether_it_is_there(self, probe: Probe, node: Node) -> None:
        """Others dial a node that has joined, unless it cannot be: then it dials them."""
        core, node_id = self._core, node.record.node_id
        connection = core.agents[node_id]
        for pause_s in LOOKS_S:
            await asyncio.sleep(pause_s)
            reachable = await probe.is_there(node.record)
            if core.agents.get(node_id) is not connection:
                return
            changed = core.nodes.found(node_id, reachable)
            if changed:
                core.perform(changed)
                self.tell_others(node_id)
            if reachable:
                return
            log.info("Node %s (%s) cannot be dialled at %s.", node_id.hex(), node.record.name, node.record.endpoint)

    def _look_later(self) -> None:
        """Look at who is silent, for as long as there is somebody to look at."""
        silence = self._core.nodes.silence
        if not self._looking and silence:
            self._looking = True
            self._core.loop.call_later(silence.look_s, self._look)

    def _look(self) -> None:
        self._looking = False
        silence = self._core.nodes.silence
        for node_id in silence.look(self._core.loop.time()):
            self.node_died(node_id, "Its node agent has not been heard of for too long: its machine, or the network, is down.")
        self._look_later()

    def _register(self, session: Session, message: RegisterNode) -> None:
        core, record = self._core, message.node
        node_id = record.node_id
        apart = why_apart(message.release)
        if apart:
            core.outbox.fail(session.connection, message.rid, "ConnectionError", f"This node cannot join the cluster. {apart}")
            return
        if core.nodes.is_over(node_id, known=message.known):
            text = (
                f"Node {node_id.hex()} was declared dead, and its work was given to others. It ends what it has and joins under a new id."
            )
            core.outbox.fail(session.connection, message.rid, "NodeDiedError", text)
            return
        before = core.agents.get(node_id)
        if before is not None and before is not session.connection:
            before.tag.node_id = b""
            before.abort()
        session.node_id = node_id
        core.agents[node_id] = session.connection
        record.seen_at = session.connection.host
        core.perform(core.nodes.joined(record, core.loop.time()))
        core.outbox.send(session.connection, Ack(message.rid))
        if self._members is not None:
            self._members.node_joined(session.connection)
        if self._control_stores:
            core.outbox.send(session.connection, ControlStores(self._control_stores))
        if core.jobs.any_running():
            core.outbox.send(session.connection, WorkComes())
        living = core.nodes.living()
        if len(living) > 1 or message.known:
            # Encoded once for all who ever join: with 10,000 nodes these lists are 15 GB.
            core.outbox.send(session.connection, NodesChanged([node.encoded for node in living], whole=True))  # type: ignore[misc]
            core.outbox.send(session.connection, NodesUsed(_figures_of(living), self._used_pause_s))
        self.tell_others(node_id)
        core.publish("nodes", node_id, encode(record))
        for job_id in message.jobs:
            if not core.jobs.running(job_id):
                core.outbox.send(session.connection, JobFinished(job_id))
        core.perform(core.actors.node_back(node_id, message.actors))
        core.perform(core.groups.node_back(node_id, message.groups))
        if record.draining:
            self.on_draining_back(record)
        self._look_later()
        if self._probe is not None and record.endpoint:
            node = core.nodes.get(node_id)
            assert node is not None
            self._begin(self._see_whether_it_is_there(self._probe, node))
        self._scheduling.reschedule()

    def tell_others(self, node_id: bytes) -> None:
        """Have the other node agents told what is new of a node, once for all changes of a moment."""
        self._changed.add(node_id)
        if self._timer is None and self._has_others(node_id):
            self._timer = self._core.loop.call_later(VIEW_S, self._spread)

    def _has_others(self, node_id: bytes) -> bool:
        return len(self._core.agents) > (node_id in self._core.agents)

    def _spread(self) -> None:
        self._timer = None
        core, changed = self._core, self._changed
        self._changed = set()
        records = [record for record in core.nodes.records() if record.node_id in changed]
        message = NodesChanged([msgspec.Raw(encode(record)) for record in records])  # type: ignore[misc]
        for connection in core.agents.values():  # an agent passes over its own record
            core.outbox.send(connection, message)

    def _tell_used(self, node_id: bytes) -> None:
        """The same for what is used on a node, at a pace that costs the same however many nodes there are."""
        self._used.add(node_id)
        if self._used_timer is None and self._has_others(node_id):
            self._used_timer = self._core.loop.call_later(self._used_pause_s, self._spread_used)

    def _spread_used(self) -> None:
        self._used_timer = None
        core, used = self._core, sorted(self._used)
        self._used = set()
        figures = _figures_of(node for node in map(core.nodes.get, used) if node is not None)
        self._used_pause_s = max(VIEW_S, len(memoryview(figures)) * len(core.agents) / USED_BYTES_PER_S)
        message = NodesUsed(figures, self._used_pause_s)
        for connection in core.agents.values():
            core.outbox.send(connection, message)

    def node_died(self, node_id: bytes, reason: str) -> None:
        """The node is gone for good: give what it had to others."""
        core = self._core
        node = core.nodes.get(node_id)
        assert node is not None, "the node is not known"
        connection = core.agents.pop(node_id, None)
        if connection is not None:  # silent: if it is there after all, it hears when it registers again
            connection.tag.node_id = b""
            connection.abort()
        log.warning("Node %s (%s) is dead: %s", node_id.hex(), node.record.hostname, reason)
        self.tell_others(node_id)
        cause = _cause_of_death(node.record, reason)
        core.perform(core.nodes.left(node_id, reason))
        self._sweeps.look_later()
        core.placement.node_left(node_id)
        core.publish("nodes", node_id, encode(node.record))
        for job_id in core.jobs.of_node(node_id):
            self._jobs.finish(job_id)
        core.perform(core.actors.node_died(node_id, cause))
        core.perform(core.groups.node_died(node_id))
        self._scheduling.reschedule()

    def _resources(self, session: Session, message: NodeResources) -> None:
        if message.demands is not None:
            self._core.nodes.demanded(message.node_id, message.demands)
        if message.available is not None and self._core.nodes.resources(message.node_id, message.available, message.total):
            if message.total is not None:
                self.tell_others(message.node_id)
            self._tell_used(message.node_id)
            self._scheduling.reschedule_soon()

    def _cluster_changed(self, session: Session, message: ClusterChanged) -> None:
        self._core.groups.something_changed()
        self._scheduling.refresh()

    def _list(self, session: Session, message: ListNodes) -> None:
        def answer() -> None:
            demands, groups = self._scheduling.demands() if message.demands else ([], [])
            self._core.outbox.send(session.connection, NodeList(message.rid, self._core.nodes.records(), demands, groups))

        if message.fresh:
            self._scheduling.poll(answer)
        else:
            answer()

    def _worker_died(self, session: Session, message: WorkerDied) -> None:
        """A process has ended: what it owned goes, and if it was a driver, its job."""
        core, seen = self._core, message.cause
        core.perform(core.answers.forget(message.worker_id))
        job_id = core.jobs.driven_by(message.worker_id)
        if job_id is not None:
            self._jobs.finish(job_id)
        if seen.kind in RETIREMENTS:
            core.actors.adopted(message.worker_id)
            return
        text = f"The process that created it has ended. {seen.message}".rstrip()
        cause = Cause("owner_died", text, seen.exit_code, seen.signal, seen.pid, seen.node_id, seen.log_tail)
        core.perform(core.actors.owner_died(message.worker_id, cause))


def _cause_of_death(record: NodeRecord, reason: str) -> Cause:
    """Return why what was on the node has died. One that was about to leave takes with it what counts against nothing."""
    name = record.hostname or record.node_id.hex()
    if record.draining:
        return Cause(DRAINED, f"Its node {name} has left the cluster ({reason}).", node_id=record.node_id)
    return Cause("node_died", f"Its node {name} has died: {reason}", node_id=record.node_id)


def _figures_of(nodes: Iterable[Node]) -> msgspec.Raw:
    return msgspec.Raw(encode([node.used for node in nodes]))
