"""Messages of node agents, and what the end of a node or process means for the rest."""

from __future__ import annotations

import asyncio

from shoal._core.wire.messages import (
    Ack,
    Cause,
    ClusterChanged,
    ListNodes,
    Message,
    NodeList,
    NodeResources,
    NodesChanged,
    RegisterNode,
    WorkerDied,
)

from .core import Core, Handler, Session
from .job_service import JobService
from .rows import encode
from .scheduling_service import SchedulingService

#: Seconds between two words to the node agents about the resources of the others.
VIEW_S = 0.1
#: Ends in good order of processes that nobody wanted to end: what they created lives on until its job ends.
RETIREMENTS = frozenset({"idle", "max_calls", "retired"})


class NodeService:
    def __init__(self, core: Core, jobs: JobService, scheduling: SchedulingService) -> None:
        self._core = core
        self._jobs = jobs
        self._scheduling = scheduling
        #: Nodes of which the other agents do not know the newest.
        self._changed: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None

    def handlers(self) -> dict[type[Message], Handler]:
        return {
            RegisterNode: self._register, NodeResources: self._resources, ClusterChanged: self._cluster_changed,
            ListNodes: self._list, WorkerDied: self._worker_died,
        }  # fmt: skip

    def disconnected(self, session: Session) -> None:
        node_id = session.node_id
        if node_id and self._core.agents.get(node_id) is session.connection:
            self._node_died(node_id, "The connection to its node agent was lost.")

    def _register(self, session: Session, message: RegisterNode) -> None:
        core, record = self._core, message.node
        if record.node_id in core.agents:
            self._node_died(record.node_id, "It registered again.")
        session.node_id = record.node_id
        core.agents[record.node_id] = session.connection
        core.perform(core.nodes.joined(record))
        core.outbox.send(session.connection, Ack(message.rid))
        others = [known for known in core.nodes.records() if known.alive and known.node_id != record.node_id]
        if others:
            core.outbox.send(session.connection, NodesChanged(others))
        self._tell_others(record.node_id)
        core.publish("nodes", record.node_id, encode(record))
        core.unpark(record.node_id)
        self._scheduling.reschedule()

    def _tell_others(self, node_id: bytes) -> None:
        """Have the other node agents told what is new of a node, once for all changes of a moment."""
        self._changed.add(node_id)
        if self._timer is None and self._core.agents.keys() - {node_id}:
            self._timer = self._core.loop.call_later(VIEW_S, self._spread)

    def _spread(self) -> None:
        self._timer = None
        core, changed = self._core, self._changed
        self._changed = set()
        records = {record.node_id: record for record in core.nodes.records() if record.node_id in changed}
        for node_id, connection in core.agents.items():
            if mine := [record for key, record in records.items() if key != node_id]:
                core.outbox.send(connection, NodesChanged(mine))

    def _node_died(self, node_id: bytes, reason: str) -> None:
        core = self._core
        node = core.nodes.get(node_id)
        assert node is not None, "an agent is connected and its node is not known"
        del core.agents[node_id]
        self._tell_others(node_id)
        core.forget_parked(node_id)
        core.perform(core.nodes.left(node_id, reason))
        core.placement.node_left(node_id)
        core.publish("nodes", node_id, encode(node.record))
        cause = Cause("node_died", f"Its node {node.record.hostname or node_id.hex()} has died: {reason}", node_id=node_id)
        core.perform(core.actors.node_died(node_id, cause))
        core.perform(core.groups.node_died(node_id))
        self._scheduling.reschedule()

    def _resources(self, session: Session, message: NodeResources) -> None:
        if self._core.nodes.resources(message.node_id, message.available, message.total):
            self._tell_others(message.node_id)
            self._scheduling.reschedule()

    def _cluster_changed(self, session: Session, message: ClusterChanged) -> None:
        self._core.groups.something_changed()
        self._scheduling.refresh()

    def _list(self, session: Session, message: ListNodes) -> None:
        def answer() -> None:
            self._core.outbox.send(session.connection, NodeList(message.rid, self._core.nodes.records()))

        if message.fresh:
            self._scheduling.poll(answer)
        else:
            answer()

    def _worker_died(self, session: Session, message: WorkerDied) -> None:
        """A process has ended: what it owned goes, and if it was a driver, its job."""
        core, seen = self._core, message.cause
        job_id = core.jobs.driven_by(message.worker_id)
        if job_id is not None:
            self._jobs.finish(job_id)
        if seen.kind in RETIREMENTS:
            core.actors.adopted(message.worker_id)
            return
        text = f"The process that created it has ended. {seen.message}".rstrip()
        cause = Cause("owner_died", text, seen.exit_code, seen.signal, seen.pid, seen.node_id, seen.log_tail)
        core.perform(core.actors.owner_died(message.worker_id, cause))
