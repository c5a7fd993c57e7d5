"""The other nodes of the cluster, as this node's agent knows them.

The control store tells what changed, a few times a second, in a large cluster more rarely; in between the view counts what was sent to a
node, so that a burst does not pile up on the one that was free last. An error in it does no harm: the agent of that node has the last word.
What was sent counts until the node's next word, or until that would have come: a lease that began and ended between two words of the node
changes none of its figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from shoal._core.scheduling.resources import add, subtract
from shoal._core.wire.messages import NodeRecord

#: Seconds after which a node has told the control store of what was sent to it, and the control store would have passed it on at once.
REPORTED_S = 0.15
#: Seconds between two words of the control store, as long as it has not said another figure.
PAUSE_S = 0.1


class ClusterView:
    """``own`` is this node's record, whose figures its owner keeps up to date."""

    def __init__(self, own: NodeRecord) -> None:
        self._own = own
        #: This node, then all and only other living nodes; what was promised is subtracted.
        self._nodes: list[NodeRecord] = [own]
        #: Where they stand in it.
        self._at: dict[bytes, int] = {own.node_id: 0}
        #: What was sent to a node, oldest first: end, node, amounts, and the node's news then.
        self._promises: deque[tuple[float, bytes, Mapping[str, int], int]] = deque()
        #: How often a node to which something was sent has told news; its promises of before are void.
        self._news: dict[bytes, int] = {}
        self._pause_s = PAUSE_S
        #: Nodes that have left, or are about to -> who answers for what their agents owned.
        self.heirs: dict[bytes, bytes] = {}

    def update(self, changed: Iterable[NodeRecord]) -> list[bytes]:
        """Take over the control store's word; return the nodes that have died."""
        dead = []
        for record in changed:
            node_id = record.node_id
            if node_id == self._own.node_id:  # all else of it is known better here
                self._own.reachable, self._own.seen_at = record.reachable, record.seen_at
                continue
            self._heard(node_id)
            if record.heir:
                self.heirs[node_id] = record.heir
            if record.alive:
                self._put(record)
            elif node_id in self._at:
                dead.append(node_id)
        if dead:
            gone = set(dead)
            self._nodes = [node for node in self._nodes if node.node_id not in gone]
            self._at = {node.node_id: at for at, node in enumerate(self._nodes)}
        return dead

    def _put(self, record: NodeRecord) -> None:
        at = self._at.setdefault(record.node_id, len(self._nodes))
        if at < len(self._nodes):
            self._nodes[at] = record
        else:
            self._nodes.append(record)

    def used(self, figures: Iterable[tuple[bytes, Mapping[str, int]]], pause_s: float) -> None:
        """Take over the control store's word of what is free: amounts that differ from a node's total. It says no more for ``pause_s``."""
        self._pause_s = pause_s
        for node_id, amounts in figures:
            record = self._other(node_id)
            if record is not None:
                self._heard(node_id)
                self._put(msgspec.structs.replace(record, available={**record.total, **amounts}))

    def promise(self, node_id: bytes, need: Mapping[str, int], now: float) -> None:
        """A request was sent there: count it until the node's next word."""
        record = self._other(node_id)
        if record is not None and need:
            self._put(msgspec.structs.replace(record, available=subtract(record.available, need)))
            self._promises.append((now + REPORTED_S + self._pause_s, node_id, need, self._news.setdefault(node_id, 0)))

    def expire(self, now: float) -> bool:
        """End the promises that are over; return whether any of them still counted."""
        expired = False
        while self._promises and self._promises[0][0] <= now:
            _, node_id, need, news = self._promises.popleft()
            record = self._other(node_id)
            if record is not None and self._news.get(node_id) == news:
                self._put(msgspec.structs.replace(record, available=add(record.available, need)))
                expired = True
        if not self._promises:
            self._news.clear()
        return expired

    def _heard(self, node_id: bytes) -> None:
        """The node has told news: what was sent to it before is in them."""
        if node_id in self._news:
            self._news[node_id] += 1

    @property
    def next_expiry(self) -> float | None:
        """When ``expire`` is due; None when nothing is promised."""
        return self._promises[0][0] if self._promises else None

    def get(self, node_id: bytes) -> NodeRecord | None:
        """Return the record of a living node."""
        at = self._at.get(node_id)
        return None if at is None else self._nodes[at]

    def _other(self, node_id: bytes) -> NodeRecord | None:
        return self.get(node_id) if node_id != self._own.node_id else None

    def nodes(self) -> Sequence[NodeRecord]:
        """Return all living nodes, this one first; not a copy: a burst asks for each of its requests. It is good until the next change."""
        return self._nodes

    @property
    def is_alone(self) -> bool:
        return len(self._nodes) == 1
