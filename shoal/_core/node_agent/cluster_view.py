"""The other nodes of the cluster, as this node's agent knows them.

The control store tells what changed, a few times a second; in between the view counts what was sent to a node, so that a burst does not
pile up on the one that was free last. An error in it does no harm: the agent of that node has the last word. What was sent counts until the
node's next word, or for ``PROMISE_S``: a lease that began and ended between two words of the node changes none of its figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from shoal._core.scheduling.resources import add, subtract
from shoal._core.wire.messages import NodeRecord

#: Seconds after which a node has told of what was sent to it: it reports, and the control store passes on, ten times a second each.
PROMISE_S = 0.25


class ClusterView:
    """``own`` is this node's record, whose figures its owner keeps up to date."""

    def __init__(self, own: NodeRecord) -> None:
        self._own = own
        #: All and only living nodes but this one; what was promised is subtracted.
        self._others: dict[bytes, NodeRecord] = {}
        #: What was sent to a node since its last word, oldest first: end, node, amounts.
        self._promises: deque[tuple[float, bytes, Mapping[str, int]]] = deque()
        #: All and only nodes in ``_promises``, with the number of their promises.
        self._open: dict[bytes, int] = {}

    def update(self, changed: Iterable[NodeRecord]) -> list[bytes]:
        """Take over the control store's word; return the nodes that have died."""
        dead = []
        for record in changed:
            node_id = record.node_id
            if node_id == self._own.node_id:
                continue
            if node_id in self._open:
                del self._open[node_id]
                self._promises = deque(promise for promise in self._promises if promise[1] != node_id)
            if record.alive:
                self._others[node_id] = record
            elif self._others.pop(node_id, None) is not None:
                dead.append(node_id)
        return dead

    def promise(self, node_id: bytes, need: Mapping[str, int], now: float) -> None:
        """A request was sent there: count it until the node's next word."""
        record = self._others.get(node_id)
        if record is not None and need:
            self._others[node_id] = msgspec.structs.replace(record, available=subtract(record.available, need))
            self._promises.append((now + PROMISE_S, node_id, need))
            self._open[node_id] = self._open.get(node_id, 0) + 1

    def expire(self, now: float) -> bool:
        """End the promises that are over; return whether there were any."""
        expired = False
        while self._promises and self._promises[0][0] <= now:
            _, node_id, need = self._promises.popleft()
            record = self._others[node_id]
            self._others[node_id] = msgspec.structs.replace(record, available=add(record.available, need))
            self._open[node_id] -= 1
            if not self._open[node_id]:
                del self._open[node_id]
            expired = True
        return expired

    @property
    def next_expiry(self) -> float | None:
        """When ``expire`` is due; None when nothing is promised."""
        return self._promises[0][0] if self._promises else None

    def get(self, node_id: bytes) -> NodeRecord | None:
        """Return the record of a living node."""
        return self._own if node_id == self._own.node_id else self._others.get(node_id)

    def nodes(self) -> list[NodeRecord]:
        """Return all living nodes, this one first."""
        return [self._own, *self._others.values()]

    @property
    def is_alone(self) -> bool:
        return not self._others
