"""What the control store tells of other nodes, and what follows from it here (the shell around ``cluster_view.py``).

control store --NodesChanged, NodesUsed--> the view -> requests that wait are judged again
                                           nodes that died, heirs -> objects, processes of theirs, processes of ours
a request that no known node can run -> --ListNodes--> [which nodes are there?] -> judged by these
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import msgspec

from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.peers import Peer
from shoal._core.node_agent.services import AgentServices
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling.resources import ResourceSet
from shoal._core.wire.messages import ListNodes, Message, NodeRecord, NodesChanged, NodesUsed

_FIGURES = msgspec.msgpack.Decoder(list[tuple[bytes, dict[str, int]]])


class Host(AgentServices, Protocol):
    """The node agent, as far as news of nodes concern it."""

    def tell_processes(self, message: Message) -> None: ...
    def nodes_died(self, dead: Collection[bytes]) -> None: ...


class NodeNews:
    """One agent's."""

    def __init__(self, agent: Host, view: ClusterView) -> None:
        self._agent = agent
        self._view = view
        #: Requests that no node known here can run, until the control store has said which nodes there are.
        self._doubted: list[LeaseRequest] = []
        self._closed = False

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {NodesChanged: self._on_changed, NodesUsed: self._on_used}

    def close(self) -> None:
        self._closed = True

    def nodes(self) -> Sequence[NodeRecord]:
        """Return the living nodes, this one first, with what is free there as far as that is known here."""
        agent = self._agent
        if not self._view.is_alone:  # then what is free here is compared with what is free elsewhere
            agent.node.available = agent.leases.available()
        return self._view.nodes()

    def knows_all(self) -> bool:
        """Whether no node can be there that is not known here."""
        return not self._agent.node.endpoint  # nobody can join

    def promise(self, node_id: bytes, need: ResourceSet) -> None:
        """A request was sent there: its amounts count as used until the node's next word."""
        first = self._view.next_expiry is None
        self._view.promise(node_id, need, self._agent.loop.time())
        if first and self._view.next_expiry is not None:
            self._agent.loop.call_at(self._view.next_expiry, self._promises_over)

    def doubt(self, request: LeaseRequest) -> None:
        """Nothing known here can run it: ask which nodes there are, once for all that are in doubt by then."""
        self._doubted.append(request)
        if len(self._doubted) == 1:
            self._agent.loop.call_soon(self._ask)

    # --- private ---

    def _on_changed(self, connection: Peer, message: NodesChanged) -> None:
        changed = message.nodes
        if message.whole:
            listed = {record.node_id for record in changed}
            gone = [record for record in self._view.nodes() if record.node_id not in listed and record is not self._agent.node]
            changed = changed + [msgspec.structs.replace(record, alive=False) for record in gone]
        self._learn(changed)
        self._judge_again()

    def _on_used(self, connection: Peer, message: NodesUsed) -> None:
        self._view.used(_FIGURES.decode(message.figures), message.pause_s)
        self._judge_again()

    def _judge_again(self) -> None:
        agent = self._agent
        agent.perform_leases(agent.leases.nodes_changed(agent.loop.time()))
        agent.reschedule()

    def _learn(self, records: list[NodeRecord]) -> None:
        named = {record.node_id for record in records if record.heir and self._view.heirs.get(record.node_id) != record.heir}
        dead = self._view.update(records)
        if dead or named:
            # Our processes may have connections to nodes that have died, which may stand for long; and must know the heirs of nodes.
            heirs = self._view.heirs
            words = [
                NodeRecord(node_id, "", "", "", {}, {}, {}, alive=node_id not in dead, heir=heirs.get(node_id, b""))
                for node_id in {*dead, *named}
            ]
            self._agent.tell_processes(NodesChanged(words))
        self._agent.nodes_died(dead)

    def _promises_over(self) -> None:
        agent = self._agent
        if self._closed:
            return
        if self._view.expire(agent.loop.time()):
            agent.perform_leases(agent.leases.nodes_changed(agent.loop.time()))
        if self._view.next_expiry is not None:
            agent.loop.call_at(self._view.next_expiry, self._promises_over)

    def _ask(self) -> None:
        doubted, self._doubted = self._doubted, []
        if self._agent.control is None:
            return  # the session ends
        reply = self._agent.control.request(ListNodes(0, fresh=False))
        reply.add_done_callback(lambda done: self._listed(doubted, done))

    def _listed(self, doubted: list[LeaseRequest], reply: asyncio.Future[Any]) -> None:
        agent = self._agent
        if self._closed or reply.cancelled() or reply.exception() is not None:
            return  # the session ends
        self._learn(reply.result().nodes)
        agent.perform_leases(agent.leases.confirm(doubted, agent.loop.time()))
        agent.reschedule()
