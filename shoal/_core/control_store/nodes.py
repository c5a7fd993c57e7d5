"""The nodes of the cluster and the view of their resources.

    RegisterNode -> joined -> ALIVE -- nobody at its port, or silent for node_timeout_s --> left -> DEAD, listed for a while -> dropped
                      ^-- again --- connection lost: known, not connected

A node that drains is listed as living and connected, and placement passes it over. It says itself when it has left.
A node that has left never comes back as itself: its agent is told so when it registers again, and joins under a new id.
``available`` of a record is what the agent said last. What the control store has asked of the node since (starts and reservations that are
not answered yet) is kept beside it in ``promised``, so that a burst of placements does not pile up on one node. An error in this view does
no harm: the agent has the last word, and whoever waits in vain asks for fresh figures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from shoal._core.scheduling.resources import add, subtract
from shoal._core.transport.silence import Silence
from shoal._core.wire.messages import Demand, NodeRecord

from .instructions import Instruction
from .rows import NODES, decode_node, encode
from .storage.interface import Change


@dataclass(slots=True)
class Node:
    """``view`` is what placement reads: the agent's last report less what was promised since."""

    record: NodeRecord
    #: Whether its agent is connected. Not so after a restart of the control store, or a loss of the connection, until it comes back.
    connected: bool = True
    #: It has been dialled at its endpoint, so that a refusal there says that it has ended.
    found: bool = False
    #: Fixed-point amounts asked of the agent and not answered yet.
    promised: dict[str, int] = field(default_factory=dict)
    #: Starts of actors that wait for the agent's answer.
    starts: int = 0
    #: What waits there for resources, by its agent's last word.
    demands: list[Demand] = field(default_factory=list)
    view: NodeRecord = field(init=False)
    #: The record as it goes over the wire, with what was free when the node joined.
    encoded: msgspec.Raw = field(init=False)
    #: Its entry in ``NodesUsed``, as it goes over the wire: made once for all who join.
    used: msgspec.Raw = field(init=False)

    def __post_init__(self) -> None:
        self.encoded = msgspec.Raw(encode(self.record))
        self.used = _used(self.record)
        self.view = msgspec.structs.replace(self.record, available=subtract(self.record.available, {}))

    @property
    def is_where_it_says(self) -> bool:
        """Whether a refusal at its endpoint says that it has ended: it was found there, or it connects from that very address."""
        host = self.record.endpoint.removeprefix("tcp:").rpartition(":")[0].strip("[]")
        return self.found or (host != "" and host == self.record.seen_at)

    def back(self, record: NodeRecord) -> None:
        """The agent has registered again."""
        self.demands = []
        self.connected, self.record = True, record
        self.encoded = msgspec.Raw(encode(record))
        self.used = _used(record)
        self.view = msgspec.structs.replace(record, available=subtract(record.available, self.promised))

    def report(self, available: dict[str, int], total: dict[str, int] | None) -> None:
        """Take over the agent's figures."""
        self.record.available = available
        if total is not None:
            self.record.total = self.view.total = total
            self.encoded = msgspec.Raw(encode(self.record))
        self.used = _used(self.record)
        self.view.available = subtract(available, self.promised)

    def promise(self, need: Mapping[str, int]) -> None:
        self.promised = add(self.promised, need)
        self.view.available = subtract(self.view.available, need)

    def settle(self, need: Mapping[str, int], *, taken: bool) -> None:
        """The promise was answered: the agent holds it now (``taken``), or it does not."""
        self.promised = subtract(self.promised, need)
        if taken:
            self.record.available = subtract(self.record.available, need)
            self.used = _used(self.record)
        else:
            self.view.available = add(self.view.available, need)

    def credit(self, need: Mapping[str, int]) -> None:
        """The agent has given it back; its next report will say so, too."""
        self.record.available = add(self.record.available, need)
        self.view.available = add(self.view.available, need)


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    connected: int
    missing: int
    dead: int


#: Looks at the silence of nodes per timeout; their agents beat as often.
LOOKS_PER_TIMEOUT = 10


class NodeTable:
    """``timeout_s``: silence after which a node is dead; ``return_s``: that of a node known from before a restart, at first."""

    def __init__(self, history_limit: int, timeout_s: float = 10.0, return_s: float = 10.0) -> None:
        self._history_limit = history_limit
        self._return_s = return_s
        self._nodes: dict[bytes, Node] = {}
        #: Dead nodes, oldest first. Disjoint from ``_nodes``.
        self._dead: OrderedDict[bytes, NodeRecord] = OrderedDict()
        #: Of nodes that others can reach; one inside of this process has no beat.
        self.silence = Silence(timeout_s, timeout_s / LOOKS_PER_TIMEOUT)

    def is_over(self, node_id: bytes, *, known: bool) -> bool:
        """Whether the node was declared dead, and must not come back. ``known``: it was there before, maybe too long ago for the list."""
        return node_id in self._dead or (known and node_id not in self._nodes)

    def joined(self, record: NodeRecord, now: float = 0.0) -> list[Instruction]:
        """A node agent has registered, for the first time or again."""
        record.alive, record.death_reason = True, ""
        node = self._nodes.get(record.node_id)
        if node is None:
            self._nodes[record.node_id] = Node(record)
        else:
            node.back(record)
        self.heard(record.node_id, now)
        return [Change(NODES, record.node_id, bytes(self._nodes[record.node_id].encoded))]

    def heard(self, node_id: bytes, now: float) -> None:
        """The agent has said something."""
        node = self._nodes.get(node_id)
        if node is not None and node.record.endpoint:
            self.silence.hear(node_id, now)
        else:
            self.silence.forget(node_id)

    def disconnected(self, node_id: bytes) -> None:
        """The connection to its agent was lost."""
        self._nodes[node_id].connected = False

    def found(self, node_id: bytes, reachable: bool) -> list[Instruction]:
        """Its endpoint was dialled, and it was there or not. Empty: the others know so already."""
        node = self._nodes[node_id]
        node.found = reachable
        if node.record.reachable == reachable:
            return []
        node.record.reachable = node.view.reachable = reachable
        node.encoded = msgspec.Raw(encode(node.record))
        return [Change(NODES, node_id, bytes(node.encoded))]

    def missing(self) -> bool:
        """Whether a node is known and not connected."""
        return any(not node.connected for node in self._nodes.values())

    def draining(self, node_id: bytes, why: str, leaves_at: float) -> list[Instruction]:
        """Its agent has agreed to leave: nothing new is placed there."""
        node = self._nodes[node_id]
        for record in (node.record, node.view):
            record.draining, record.leaves_at = why, leaves_at
        node.encoded = msgspec.Raw(encode(node.record))
        return [Change(NODES, node_id, bytes(node.encoded))]

    def name_heir(self, node_id: bytes, heir: bytes) -> list[Instruction]:
        """Another node answers for what this one's agent owns, when it has left."""
        node = self._nodes.get(node_id)
        if node is None:
            return []
        node.record.heir = heir
        node.encoded = msgspec.Raw(encode(node.record))
        return [Change(NODES, node_id, bytes(node.encoded))]

    def takes_work(self, node_id: bytes) -> bool:
        """Whether something may be placed there."""
        node = self._nodes.get(node_id)
        return node is not None and node.record.takes_work

    def left(self, node_id: bytes, reason: str) -> list[Instruction]:
        node = self._nodes.pop(node_id, None)
        self.silence.forget(node_id)
        if node is None:
            return []
        record = node.record
        record.alive, record.death_reason, record.available = False, reason, {}
        self._dead[node_id] = record
        changes: list[Instruction] = [Change(NODES, node_id, encode(record))]
        while len(self._dead) > self._history_limit:
            oldest, _ = self._dead.popitem(last=False)
            changes.append(Change(NODES, oldest, None))
        return changes

    def unswept(self) -> list[NodeRecord]:
        """Return the dead nodes that may have left files behind a URL."""
        return [record for record in self._dead.values() if record.spill_url]

    def swept(self, node_id: bytes) -> list[Instruction]:
        """Nothing of a dead node is left there."""
        record = self._dead.get(node_id)
        if record is None:
            return []
        record.spill_url = record.spill_directory = ""
        return [Change(NODES, node_id, encode(record))]

    def resources(self, node_id: bytes, available: dict[str, int], total: dict[str, int] | None) -> bool:
        """Note the agent's figures; return whether the node is known. Not stored: they are of now."""
        node = self._nodes.get(node_id)
        if node is None:
            return False
        node.report(available, total)
        return True

    def demanded(self, node_id: bytes, demands: list[Demand]) -> None:
        """Note what waits at the node. Not stored either, and no news for the others."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.demands = demands

    def demands(self) -> Iterator[Demand]:
        """Return what waits at the living nodes."""
        for node in self._nodes.values():
            yield from node.demands

    def get(self, node_id: bytes) -> Node | None:
        return self._nodes.get(node_id)

    def connected(self) -> list[Node]:
        """Nodes that can be asked, in the order in which they joined."""
        return [node for node in self._nodes.values() if node.connected]

    def views(self) -> list[NodeRecord]:
        """What ``scheduling`` chooses from."""
        return [node.view for node in self._nodes.values() if node.connected]

    def living(self) -> list[Node]:
        return list(self._nodes.values())

    def records(self) -> list[NodeRecord]:
        """All nodes, the living first. Copies: what is sent must not change afterwards."""
        records = [node.record for node in self._nodes.values()] + list(self._dead.values())
        return [msgspec.structs.replace(r, total=dict(r.total), available=dict(r.available)) for r in records]

    def load(self, rows: Iterable[tuple[bytes, bytes]], now: float = 0.0) -> None:
        """Read back: those that lived have a while to come back."""
        for node_id, value in rows:
            record = decode_node(value)
            if record.alive:
                self._nodes[node_id] = Node(record, connected=False)
                self.silence.hear(node_id, now, limit_s=self._return_s)
            else:
                self._dead[node_id] = record

    def statistics(self) -> NodeStatistics:
        connected = sum(node.connected for node in self._nodes.values())
        return NodeStatistics(connected, len(self._nodes) - connected, len(self._dead))

    def check(self) -> None:
        assert not self._nodes.keys() & self._dead.keys()
        assert all(node.record.alive for node in self._nodes.values())
        assert not any(record.alive for record in self._dead.values())
        assert len(self._dead) <= self._history_limit
        for node in self._nodes.values():
            assert node.starts >= 0
            assert all(amount > 0 for amount in node.promised.values()), node.promised
            assert node.view.available == subtract(node.record.available, node.promised)


def _used(record: NodeRecord) -> msgspec.Raw:
    """Return (node, the amounts that differ from its total), encoded."""
    free = record.available
    return msgspec.Raw(
        encode((record.node_id, {name: left for name, total in record.total.items() if (left := free.get(name, 0)) != total}))
    )
