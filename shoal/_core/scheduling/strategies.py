"""The scheduling strategies as they stand in ``Shape.strategy``.

()                                                 default: local until half full, then the least used
("SPREAD",)                                        round robin over the nodes
("NODE_AFFINITY", node id, soft, may leave, now)   that node (bytes or hex); soft: another one when it is gone or can never fit;
                                                   may leave: also when it has no room now; now: an error when it has no room now
("NODE_LABEL", hard, soft)                         each ((label, "in" | "not_in" | "exists" | "does_not_exist", (value, ...)), ...)
("FALLBACK", strategy, selector, selector, ...)    the strategy with the shape's label selector; if no node can ever meet it, with the
                                                   first of these selectors that one can; selector: ((label, condition), ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shoal._core.scheduling import labels
from shoal._core.scheduling.labels import Selector
from shoal._core.wire.messages import Shape

Strategy = tuple[Any, ...]

DEFAULT: Strategy = ()
SPREAD: Strategy = ("SPREAD",)


class NodeAffinity(msgspec.Struct, frozen=True):
    node_id: bytes
    soft: bool
    may_leave: bool = False
    must_run_now: bool = False


class NodeLabels(msgspec.Struct, frozen=True):
    hard: Selector
    soft: Selector


class Fallback(msgspec.Struct, frozen=True):
    first: Strategy
    selectors: tuple[Selector, ...]


def node_affinity(node_id: str | bytes, soft: bool) -> Strategy:
    """Make the strategy that names a node. ValueError when the id is not a node id."""
    try:
        binary = bytes.fromhex(node_id) if isinstance(node_id, str) else node_id
    except ValueError:
        raise ValueError(f"node_id must be a node id in hex, got {node_id!r}. shoal.nodes() lists them.") from None
    if not binary.strip(b"\xff"):
        raise ValueError("node_id must name a node, got the nil id.")
    return ("NODE_AFFINITY", binary, bool(soft))


def parse(strategy: Sequence[Any]) -> NodeAffinity | NodeLabels | Fallback | str:
    """Return what a strategy tuple says: "DEFAULT", "SPREAD", or a record."""
    if not strategy:
        return "DEFAULT"
    kind = strategy[0]
    if kind == "SPREAD":
        return "SPREAD"
    if kind == "NODE_AFFINITY":
        node_id = strategy[1]
        return NodeAffinity(bytes.fromhex(node_id) if isinstance(node_id, str) else node_id, *map(bool, strategy[2:5]))
    if kind == "NODE_LABEL":
        hard, soft = (tuple((key, _condition(operator, values)) for key, operator, values in part) for part in strategy[1:3])
        return NodeLabels(hard, soft)
    if kind == "FALLBACK":
        selectors = tuple(tuple((key, condition) for key, condition in selector) for selector in strategy[2:])
        return Fallback(tuple(strategy[1]), selectors)
    raise ValueError(f"Unknown scheduling strategy {kind!r}; known are SPREAD, NODE_AFFINITY, NODE_LABEL and FALLBACK.")


def is_spread(strategy: Sequence[Any]) -> bool:
    return bool(strategy) and (strategy[0] == "SPREAD" or (strategy[0] == "FALLBACK" and is_spread(strategy[1])))


def freeze(shape: Shape) -> Shape:
    """Return the shape with tuples where the wire made lists, so that it can be hashed. The same shape when there is nothing to do."""
    if any(isinstance(part, list) for part in shape.strategy):
        return msgspec.structs.replace(shape, strategy=_as_tuples(shape.strategy))
    return shape


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def _condition(operator: str, values: Sequence[str]) -> str:
    if operator == "exists":
        return labels.EXISTS
    if operator == "does_not_exist":
        return labels.ABSENT
    if operator not in ("in", "not_in"):
        raise ValueError(f"Unknown label operator {operator!r}; the operators are in, not_in, exists, does_not_exist.")
    return f"{'!' if operator == 'not_in' else ''}in({', '.join(values)})"
