"""The other nodes of the cluster, as this node's agent knows them.

The control store tells what changed, a few times a second, in a large cluster more rarely; in between the view counts what was sent to a
node, so that a burst does not pile up on the one that was free last. An error in it does no harm: the agent of that node has the last word.
What was sent counts until the node's next word, or until that would have come: a lease that began and ended between two words of the node
changes none of its figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

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
        #: All and only living nodes but this one; what was promised is subtracted.
        self._others: dict[bytes, NodeRecord] = {}
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
                self._others[node_id] = record
            elif self._others.pop(node_id, None) is not None:
                dead.append(node_id)
        return dead

    def used(self, figures: Iterable[tuple[bytes, Mapping[str, int]]], pause_s: float) -> None:
        """Take over the control store's word of what is free: amounts that differ from a node's total. It says no more for ``pause_s``."""
        self._pause_s = pause_s
        for node_id, amounts in figures:
            record = self._others.get(node_id)
            if record is not None:
                self._heard(node_id)
                self._others[node_id] = msgspec.structs.replace(record, available={**record.total, **amounts})

    def promise(self, node_id: bytes, need: Mapping[str, int], now: float) -> None:
        """A request was sent there: count it until the node's next word."""
        record = self._others.get(node_id)
        if record is not None and need:
            self._others[node_id] = msgspec.structs.replace(record, available=subtract(record.available, need))
            self._promises.append((now + REPORTED_S + self._pause_s, node_id, need, self._news.setdefault(node_id, 0)))

    def expire(self, now: float) -> bool:
        """End the promises that are over; return whether any of them still counted."""
        expired = False
        while self._promises and self._promises[0][0] <= now:
            _, node_id, need, news = self._promises.popleft()
            record = self._others.get(node_id)
            if record is not None and self._news.get(node_id) == news:
                self._others[node_id] = msgspec.structs.replace(record, available=add(record.available, need))
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
        return self._own if node_id == self._own.node_id else self._others.get(node_id)

    def nodes(self) -> list[NodeRecord]:
        """Return all living nodes, this one first."""
        return [self._own, *self._others.values()]

    @property
    def is_alone(self) -> bool:
        return not self._others
