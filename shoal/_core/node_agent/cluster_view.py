"""The other nodes of the cluster, as this node's agent knows them.

The control store tells what changed, a few times a second; in between the view counts what was sent to a node, so that a burst does not
pile up on the one that was free last. An error in it does no harm: the agent of that node has the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from shoal._core.scheduling.resources import subtract
from shoal._core.wire.messages import NodeRecord


class ClusterView:
    """``own`` is this node's record, whose figures its owner keeps up to date."""

    def __init__(self, own: NodeRecord) -> None:
        self._own = own
        #: All and only living nodes but this one.
        self._others: dict[bytes, NodeRecord] = {}

    def update(self, changed: Iterable[NodeRecord]) -> list[bytes]:
        """Take over the control store's word; return the nodes that have died."""
        dead = []
        for record in changed:
            if record.node_id == self._own.node_id:
                continue
            if record.alive:
                self._others[record.node_id] = record
            elif self._others.pop(record.node_id, None) is not None:
                dead.append(record.node_id)
        return dead

    def promise(self, node_id: bytes, need: Mapping[str, int]) -> None:
        """A request was sent there: count it until the node's next word."""
        record = self._others.get(node_id)
        if record is not None:
            self._others[node_id] = msgspec.structs.replace(record, available=subtract(record.available, need))

    def get(self, node_id: bytes) -> NodeRecord | None:
        """Return the record of a living node."""
        return self._own if node_id == self._own.node_id else self._others.get(node_id)

    def nodes(self) -> list[NodeRecord]:
        """Return all living nodes, this one first."""
        return [self._own, *self._others.values()]

    @property
    def is_alone(self) -> bool:
        return not self._others
