"""A node leaves in good order, as the control store sees it.

    somebody --DrainNode--> [known?] --Drain--> node agent: it decides, and drains by itself
             <----Ack------ [nothing new is placed there; actors that may restart and bundles move] <--Ack--
    node agent --NameHeir--> [its record says who answers for its objects; spread] --Ack--> it may leave
    node agent --NodeDrained--> [dead, "drained: ..."; what dies of it counts against no budget] --Ack--> it ends

The agent is the one that knows: it comes back with ``draining`` in its record after a restart of the control store, and goes on meanwhile.
"""

from __future__ import annotations

import logging
from functools import partial

from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import DRAINED, Ack, Cause, Drain, DrainNode, Message, NameHeir, NodeDrained, NodeRecord, describe_drain

from .core import Core, Handler, Session
from .node_service import NodeService
from .rows import encode
from .scheduling_service import SchedulingService

log = logging.getLogger("shoal.control_store")

#: Seconds between two looks whether a node is back.
RETURN_S = 0.1


class DrainService:
    def __init__(self, core: Core, scheduling: SchedulingService, nodes: NodeService) -> None:
        self._core = core
        self._scheduling = scheduling
        self._nodes = nodes
        nodes.on_draining_back = self._move_away

    def handlers(self) -> dict[type[Message], Handler]:
        return {DrainNode: self._drain, NameHeir: self._name_heir, NodeDrained: self._drained}

    def _drain(self, session: Session, message: DrainNode) -> None:
        core, node_id = self._core, message.node_id
        known = core.nodes.get(node_id)
        agent = core.agents.get(node_id)
        if known is None:
            text = f"There is no living node {node_id.hex()}: it has died, or was never here. 'shoal status -v' lists the nodes."
            core.outbox.fail(session.connection, message.rid, "ValueError", text)
        elif agent is None:  # it comes back, or is declared dead
            if not session.connection.closed:
                core.loop.call_later(RETURN_S, self._drain, session, message)
        else:
            leaves_at = core.clock() + message.deadline_s
            ask = Drain(0, message.reason, message.text, message.deadline_s, leaves_at)
            core.outbox.request(agent, ask, partial(self._answered, session, message, leaves_at))

    def _answered(self, session: Session, message: DrainNode, leaves_at: float, reply: Ack | None, error: BaseException | None, /) -> None:
        core, node = self._core, self._core.nodes.get(message.node_id)
        if isinstance(error, RequestFailed):
            core.outbox.fail(session.connection, message.rid, error.kind, error.message)
            return
        if reply is None:
            text = f"Node {message.node_id.hex()} was lost while it was asked to leave: {error}"
            core.outbox.fail(session.connection, message.rid, "RuntimeError", text)
            return
        if node is not None:  # else it had nothing to wait for, and has left
            record = node.record
            why = record.draining or describe_drain(message.reason, message.text)
            core.perform(core.nodes.draining(message.node_id, why, min(leaves_at, record.leaves_at or leaves_at)))
            log.info("Node %s leaves: %s.", message.node_id.hex(), record.draining)
            self._nodes.tell_others(message.node_id)
            core.publish("nodes", message.node_id, encode(record))
            self._move_away(record)
            self._scheduling.reschedule()
        core.outbox.send(session.connection, Ack(message.rid))

    def _move_away(self, record: NodeRecord) -> None:
        core = self._core
        cause = Cause(DRAINED, f"Its node {record.hostname} leaves the cluster ({record.draining}).", node_id=record.node_id)
        core.perform(core.actors.node_drains(record.node_id, cause))
        core.perform(core.groups.node_drains(record.node_id))

    def _name_heir(self, session: Session, message: NameHeir) -> None:
        if session.node_id == message.node_id:
            self._core.perform(self._core.nodes.name_heir(message.node_id, message.heir))
            self._nodes.tell_others(message.node_id)
        self._core.outbox.send(session.connection, Ack(message.rid))

    def _drained(self, session: Session, message: NodeDrained) -> None:
        node = self._core.nodes.get(message.node_id)
        if node is not None and session.node_id == message.node_id:
            session.node_id = b""  # the end of its connection is no news
            del self._core.agents[message.node_id]
            self._core.perform(self._core.nodes.draining(message.node_id, message.why, node.record.leaves_at))
            self._nodes.node_died(message.node_id, f"drained: {message.why}")
        self._core.outbox.send(session.connection, Ack(message.rid))
