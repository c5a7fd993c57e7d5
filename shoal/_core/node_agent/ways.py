"""Which ways there are from this node to another, and in which order they are tried.

    DIRECT      this node dials the other one's port
    CALL_BACK   the other one is asked, over the control store, to dial this one's
    THROUGH     both dial a third, which joins the two sockets

The control store tells who can be dialled, at least by itself (``NodeRecord.reachable``); two nodes that it sees at the same address are
behind the same translation of addresses, and may well reach each other. What has failed comes last for a while, so that a pair of nodes
that cannot reach each other for a reason of their own does not wait for that each time. Pure: times are passed in.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from shoal._core.wire.messages import NodeRecord

#: Seconds for which a way that has failed comes behind those that have not; doubles each time, up to the second value.
FIRST_REST_S, LONGEST_REST_S = 10.0, 300.0
#: Third nodes that are tried.
THIRDS = 2
_HEAD = "node:__internal_head__"


class Kind(enum.Enum):
    DIRECT = "dialled"
    CALL_BACK = "asked to call back"
    THROUGH = "met at another node"


class Way(NamedTuple):
    kind: Kind
    #: The third node.
    third: NodeRecord | None = None

    @property
    def key(self) -> tuple[Kind, bytes]:
        return self.kind, self.third.node_id if self.third is not None else b""


class Ways:
    """``own``: this node's record, kept up to date by its owner."""

    def __init__(self, own: NodeRecord) -> None:
        self._own = own
        #: Node -> way -> (how long it rests, until when).
        self._resting: dict[bytes, dict[tuple[Kind, bytes], tuple[float, float]]] = {}

    def to(self, node: NodeRecord, others: Iterable[NodeRecord], now: float) -> list[Way]:
        """Return the ways to a node, the first to be tried first. ``others``: all living nodes."""
        own = self._own
        together = bool(own.seen_at) and own.seen_at == node.seen_at
        ways = [Way(Kind.DIRECT)] if node.reachable or together else []
        if own.reachable or together:
            ways.append(Way(Kind.CALL_BACK))
        ways += [Way(Kind.THROUGH, third) for third in self._thirds(node, others)]
        resting = self._resting.get(node.node_id, {})
        return sorted(ways, key=lambda way: max(now, resting.get(way.key, (0.0, 0.0))[1]))

    def failed(self, node_id: bytes, way: Way, now: float) -> None:
        resting = self._resting.setdefault(node_id, {})
        rest_s, until = resting.get(way.key, (0.0, now))
        if until <= now:  # else it is the same failure, seen by another who tried at the same time
            rest_s = min(2 * rest_s, LONGEST_REST_S) or FIRST_REST_S
            resting[way.key] = rest_s, now + rest_s

    def worked(self, node_id: bytes, way: Way) -> None:
        self._resting.get(node_id, {}).pop(way.key, None)

    def forget(self, living: Iterable[bytes]) -> None:
        """Keep only what is known of nodes that live."""
        kept = set(living)
        self._resting = {node_id: resting for node_id, resting in self._resting.items() if node_id in kept}

    def _thirds(self, node: NodeRecord, others: Iterable[NodeRecord]) -> list[NodeRecord]:
        """The head's, and another one that differs from pair to pair."""
        pair = self._own.node_id, node.node_id
        low, high = sorted(pair)

        def rank(third: NodeRecord) -> tuple[bool, int]:
            return not third.total.get(_HEAD), zlib.crc32(low + high + third.node_id)

        return sorted((third for third in others if third.reachable and third.endpoint and third.node_id not in pair), key=rank)[:THIRDS]
