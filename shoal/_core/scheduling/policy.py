"""Which node should run a shape.

    choose_node(shape, nodes) -> Placed      it fits there now
                                 Wait        some node could run it, none can now
                                 Infeasible  no node could ever run it as things stand; says what to ask for instead
                                 Refused     it asks for a particular node that is gone; waiting cannot help

The default policy is Ray's hybrid one: the local node while at most half used, then the least used of a few. The node where large arguments
lie comes first, if it has room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from shoal._core.scheduling import labels, strategies
from shoal._core.scheduling.resources import UNIT, ResourceSet, fits, format_amount, lacking
from shoal._core.wire.messages import NodeRecord, Shape

#: Share of a node's busiest resource up to which the local node is preferred. Ray's figure: spreads early, keeps small work at home.
LOCAL_UNTIL = 0.5
#: Nodes with room among which the least used is taken. More would hardly change how even the load is ("power of two choices").
FEW = 8

_OPTION = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


class Placed(msgspec.Struct, frozen=True):
    node: NodeRecord


class Wait(msgspec.Struct, frozen=True):
    """``candidates``: the nodes that could run it when they are less busy."""

    candidates: list[NodeRecord]


class Infeasible(msgspec.Struct, frozen=True):
    message: str


class Refused(msgspec.Struct, frozen=True):
    message: str


Choice = Placed | Wait | Infeasible | Refused


def need_of(shape: Shape) -> ResourceSet:
    """Return what must be free for the shape to be placed."""
    return dict(shape.resources if shape.placement_resources is None else shape.placement_resources)


class Search(msgspec.Struct):
    """How far the look for room for one shape has come in its round of the nodes.

    Good as long as no node but the local one comes free, and none joins or dies: in a burst each request goes on where the one before has
    found room. Without it a burst that filled 1,000 nodes looked at 300 of them for each request.
    """

    #: Places in the round that had room, the first ones.
    found: list[int] = msgspec.field(default_factory=list)
    #: Places that were looked at.
    looked: int = 0


def choose_node(
    shape: Shape,
    nodes: Sequence[NodeRecord],
    *,
    local: bytes = b"",
    name: str = "",
    turn: int = 0,
    whole_nodes: bool = False,
    search: Search | None = None,
) -> Choice:
    """Choose the node for one task or actor of this shape.

    Looks at nodes until it has found ``FEW`` with room; at all of them only when fewer have it. Deterministic.

    Args:
        local: node that is preferred while at most half used; b"" for none. Also where the look begins, so that agents that see the same
            cluster do not all choose the same node.
        name: how messages call the task or actor.
        turn: SPREAD begins its round at this position; count it up per request.
        whole_nodes: SPREAD, and the way to a named node or to large arguments, judge by what nodes have, not by what is free.
        search: where the look for this shape goes on; None: it begins anew.
    """
    strategy = strategies.parse(shape.strategy)
    if isinstance(strategy, strategies.Fallback):
        return _first_possible(shape, strategy, nodes, local=local, name=name, turn=turn, whole_nodes=whole_nodes)
    what = name or "The request"
    need = need_of(shape)
    conditions = shape.label_selector
    soft: labels.Selector = ()
    if isinstance(strategy, strategies.NodeAffinity):
        choice = _on_named_node(strategy, what, need, conditions, nodes, whole_nodes=whole_nodes)
        if choice is not None:
            return choice
        nodes = [node for node in nodes if node.node_id != strategy.node_id]
    elif isinstance(strategy, strategies.NodeLabels):
        conditions, soft = strategy.hard + conditions, strategy.soft
    if strategy == "SPREAD":
        if conditions:  # a round over those that are meant, or they would not have equal shares
            nodes = [node for node in nodes if labels.matches(conditions, node.labels)]
        found = _with_room(need, (), nodes, turn, 1, whole_nodes=whole_nodes)
        return Placed(found[0]) if found else _none_has_room(what, need, conditions, nodes)
    home = _home(need, conditions, nodes, shape.near, local, whole_nodes=whole_nodes) if not soft else None
    if home is not None:
        return Placed(home)
    start = int.from_bytes(local[:4], "big")
    if soft or isinstance(strategy, strategies.NodeAffinity):  # these are not all the nodes that the search has passed
        search = None
    found = _with_room(need, conditions + soft, nodes, start, FEW) if soft else []
    found = found or _with_room(need, conditions, nodes, start, FEW, search=search)
    own = _find(nodes, local) if search is not None else None
    if own is not None and all(one is not own for one in found):
        found += _with_room(need, conditions, [own], 0, 1)
    return Placed(_least_used(need, found, local)) if found else _none_has_room(what, need, conditions, nodes)


def _on_named_node(
    affinity: strategies.NodeAffinity,
    what: str,
    need: ResourceSet,
    conditions: labels.Selector,
    nodes: Sequence[NodeRecord],
    *,
    whole_nodes: bool,
) -> Choice | None:
    """Answer for a request that names its node; None: another node may run it."""
    node = next((node for node in nodes if node.node_id == affinity.node_id and node.takes_work), None)
    if node is None or not fits(need, node.total):
        if affinity.soft:
            return None
        leaves = node is None and any(one.node_id == affinity.node_id and one.alive for one in nodes)
        why = (
            "leaves the cluster and takes no more work"
            if leaves
            else "is dead or unknown"
            if node is None
            else f"can never hold it: {_missing(need, node)}"
        )
        return Refused(
            f"{what} must run on node {affinity.node_id.hex()}, which {why}. "
            "Use soft=True to let it run elsewhere; shoal.nodes() lists the nodes."
        )
    if whole_nodes or fits(need, node.available):
        return Placed(node)
    if affinity.must_run_now:
        have = ", ".join(f"{format_amount(node.available.get(name, 0))} of {format_amount(amount)} {name}" for name, amount in need.items())
        return Refused(f"{what} must run on node {affinity.node_id.hex()} at once, and what it needs is not free there now: {have}.")
    others = [other for other in nodes if other is not node]
    if affinity.may_leave and _with_room(need, conditions, others, 0, 1):
        return None
    return Wait([node])


def _first_possible(
    shape: Shape,
    fallback: strategies.Fallback,
    nodes: Sequence[NodeRecord],
    *,
    local: bytes,
    name: str,
    turn: int,
    whole_nodes: bool,
) -> Choice:
    """Try the selectors in order; when none can ever be met, the first one's answer counts."""

    def choose(selector: labels.Selector) -> Choice:
        single = msgspec.structs.replace(shape, strategy=fallback.first, label_selector=selector)
        return choose_node(single, nodes, local=local, name=name, turn=turn, whole_nodes=whole_nodes)

    choices = (choose(selector) for selector in (shape.label_selector, *fallback.selectors))
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
    busiest = 0.0
    available = node.available
    for name, total in node.total.items():
        if total > 0:
            used = 1 - (available.get(name, 0) - need.get(name, 0)) / total
            if used > busiest:
                busiest = used
    return busiest


def could_help(need: Mapping[str, int], free: Mapping[str, int], held: Mapping[str, int]) -> bool:
    """Would giving back ``held`` bring ``need`` closer to fitting into ``free``?"""
    return any(held.get(name) for name in lacking(need, free))


def _home(
    need: ResourceSet, conditions: labels.Selector, nodes: Sequence[NodeRecord], near: bytes, local: bytes, *, whole_nodes: bool
) -> NodeRecord | None:
    """Return the node where large arguments lie, if it has room; else the local one, while it is half empty."""
    if near:
        node = _find(nodes, near)
        if node is not None and fits(need, node.total if whole_nodes else node.available) and labels.matches(conditions, node.labels):
            return node
    node = _find(nodes, local) if local else None
    if node is None or not fits(need, node.available) or not labels.matches(conditions, node.labels):
        return None
    # A node with nothing to do takes it, however small.
    return node if utilization(node, need) <= LOCAL_UNTIL or utilization(node, {}) < LOCAL_UNTIL else None


def _missing(need: ResourceSet, node: NodeRecord) -> str:
    short = lacking(need, node.total)
    return "; ".join(
        f"it needs {format_amount(need[name])} {name}, the node has {format_amount(node.total.get(name, 0))}" for name in short
    )


def _find(nodes: Sequence[NodeRecord], node_id: bytes) -> NodeRecord | None:
    return next((node for node in nodes if node.node_id == node_id and node.takes_work), None)


def _with_room(
    need: ResourceSet,
    conditions: labels.Selector,
    nodes: Sequence[NodeRecord],
    start: int,
    enough: int,
    *,
    whole_nodes: bool = False,
    search: Search | None = None,
) -> list[NodeRecord]:
    """Return the first ``enough`` nodes with room, in the round from ``start`` on; fewer when there are no more."""
    search = search or Search()
    count = len(nodes)
    at = start % count if count else 0

    def has_room(step: int) -> bool:
        node = nodes[(at + step) % count]
        return node.takes_work and fits(need, node.total if whole_nodes else node.available) and labels.matches(conditions, node.labels)

    found = search.found = [step for step in search.found if has_room(step)]
    while len(found) < enough and search.looked < count:
        if has_room(search.looked):
            found.append(search.looked)
        search.looked += 1
    return [nodes[(at + step) % count] for step in found]


def _least_used(need: ResourceSet, ready: Sequence[NodeRecord], local: bytes) -> NodeRecord:
    # Below the threshold nodes count as equal, so that work packs in a fixed order instead of touching every node.
    return min(ready, key=lambda node: (max(utilization(node, need), LOCAL_UNTIL), node.node_id != local, node.node_id))


def _none_has_room(what: str, need: ResourceSet, conditions: labels.Selector, nodes: Sequence[NodeRecord]) -> Wait | Infeasible:
    meant = [node for node in nodes if node.takes_work and labels.matches(conditions, node.labels)]
    feasible = [node for node in meant if fits(need, node.total)]
    if feasible:
        return Wait(feasible)
    if conditions and not meant:
        return Infeasible(f"{what} needs a node with the labels {labels.describe(conditions)}; no node has them.")
    return Infeasible(explain_infeasible(what, need, meant))
