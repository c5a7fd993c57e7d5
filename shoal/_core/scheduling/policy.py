"""Which node should run a shape.

    choose_node(shape, nodes) -> Placed      it fits there now
                                 Wait        some node could run it, none can now
                                 Infeasible  no node could ever run it as things stand; says what to ask for instead
                                 Refused     it asks for a particular node that is gone; waiting cannot help

The default policy is Ray's hybrid one: the local node while at most half used, then the least used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from shoal._core.scheduling import labels, strategies
from shoal._core.scheduling.resources import UNIT, ResourceSet, fits, format_amount, lacking
from shoal._core.wire.messages import NodeRecord, Shape

#: Share of a node's busiest resource up to which the local node is preferred. Ray's figure: spreads early, keeps small work at home.
LOCAL_UNTIL = 0.5

_OPTION = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


@dataclass(frozen=True, slots=True)
class Placed:
    node: NodeRecord


@dataclass(frozen=True, slots=True)
class Wait:
    """``candidates``: the nodes that could run it when they are less busy."""

    candidates: list[NodeRecord]


@dataclass(frozen=True, slots=True)
class Infeasible:
    message: str


@dataclass(frozen=True, slots=True)
class Refused:
    message: str


Choice = Placed | Wait | Infeasible | Refused


def need_of(shape: Shape) -> ResourceSet:
    """Return what must be free for the shape to be placed."""
    return dict(shape.resources if shape.placement_resources is None else shape.placement_resources)


def choose_node(shape: Shape, nodes: Sequence[NodeRecord], *, local: bytes = b"", name: str = "", turn: int = 0) -> Choice:
    """Choose the node for one task or actor of this shape. O(nodes).

    Args:
        local: node that is preferred while at most half used; b"" for none.
        name: how messages call the task or actor.
        turn: SPREAD begins its round at this position; count it up per request.
    """
    strategy = strategies.parse(shape.strategy)
    if isinstance(strategy, strategies.Fallback):
        return _first_possible(shape, strategy, nodes, local=local, name=name, turn=turn)
    what = name or "The request"
    need = need_of(shape)
    alive = [node for node in nodes if node.alive]
    soft: labels.Selector = ()
    if isinstance(strategy, strategies.NodeAffinity):
        named = [node for node in alive if node.node_id == strategy.node_id]
        possible = [node for node in named if fits(need, node.total)]
        if not named and not strategy.soft:
            return Refused(
                f"{what} must run on node {strategy.node_id.hex()}, which is dead or unknown. "
                "Use soft=True to let it run elsewhere; shoal.nodes() lists the nodes."
            )
        if possible or not strategy.soft:
            alive = named
        elif named:
            alive = [node for node in alive if node not in named]
    elif isinstance(strategy, strategies.NodeLabels):
        alive = [node for node in alive if labels.matches(strategy.hard, node.labels)]
        soft = strategy.soft
        if not alive:
            return Infeasible(f"{what} needs a node with the labels {labels.describe(strategy.hard)}; no node has them.")
    if shape.label_selector:
        alive = [node for node in alive if labels.matches(shape.label_selector, node.labels)]
        if not alive:
            return Infeasible(f"{what} needs a node with the labels {labels.describe(shape.label_selector)}; no node has them.")
    feasible = [node for node in alive if fits(need, node.total)]
    if not feasible:
        return Infeasible(explain_infeasible(what, need, alive))
    ready = [node for node in feasible if fits(need, node.available)]
    if not ready:
        return Wait(feasible)
    preferred = [node for node in ready if soft and labels.matches(soft, node.labels)] or ready
    if strategy == "SPREAD":
        return Placed(_next_in_round(preferred, nodes, turn))
    return Placed(_hybrid(need, preferred, local))


def _first_possible(
    shape: Shape, fallback: strategies.Fallback, nodes: Sequence[NodeRecord], *, local: bytes, name: str, turn: int
) -> Choice:
    """Try the selectors in order; when none can ever be met, the first one's answer counts."""
    choices = (
        choose_node(
            msgspec.structs.replace(shape, strategy=fallback.first, label_selector=selector), nodes, local=local, name=name, turn=turn
        )
        for selector in (shape.label_selector, *fallback.selectors)
    )
    first = next(choices)
    return first if isinstance(first, Placed | Wait) else next((one for one in choices if isinstance(one, Placed | Wait)), first)


def explain_infeasible(what: str, need: Mapping[str, int], nodes: Sequence[NodeRecord]) -> str:
    """Say which resource no node has enough of, what the largest node has, and what to do."""
    for name, amount in need.items():
        largest = max((node.total.get(name, 0) for node in nodes), default=0)
        if largest < amount:
            option = _OPTION.get(name, f"resources[{name!r}]")
            instead = f"Ask for {option}<={format_amount(largest)} or add a node with {format_amount(amount)}."
            plural = "s" if name in ("CPU", "GPU") and amount != UNIT else ""
            return (
                f"{what} needs {format_amount(amount)} {name}{plural}; the largest node has {format_amount(largest)}. "
                f"{instead if largest else 'Add a node that has it.'}"
            )
    asked = ", ".join(f"{format_amount(amount)} {name}" for name, amount in need.items())
    return f"{what} needs {asked} on one node; no single node has all of it. Ask for less, or add such a node."


def utilization(node: NodeRecord, need: Mapping[str, int]) -> float:
    """Return the share of the node's busiest resource that would be in use with ``need`` on it."""
    shares = [1 - (node.available.get(name, 0) - need.get(name, 0)) / total for name, total in node.total.items() if total > 0]
    return max(shares, default=0.0)


def could_help(need: Mapping[str, int], free: Mapping[str, int], held: Mapping[str, int]) -> bool:
    """Would giving back ``held`` bring ``need`` closer to fitting into ``free``?"""
    return any(held.get(name) for name in lacking(need, free))


def _hybrid(need: Mapping[str, int], ready: Sequence[NodeRecord], local: bytes) -> NodeRecord:
    for node in ready:
        # A node with nothing to do takes it, however small.
        if node.node_id == local and (utilization(node, need) <= LOCAL_UNTIL or utilization(node, {}) < LOCAL_UNTIL):
            return node
    # Below the threshold nodes count as equal, so that work packs in a fixed order instead of touching every node.
    return min(ready, key=lambda node: (max(utilization(node, need), LOCAL_UNTIL), node.node_id != local, node.node_id))


def _next_in_round(ready: Sequence[NodeRecord], nodes: Sequence[NodeRecord], turn: int) -> NodeRecord:
    order = {node.node_id: position for position, node in enumerate(nodes)}
    start = turn % len(nodes)
    return min(ready, key=lambda node: (order[node.node_id] - start) % len(nodes))
