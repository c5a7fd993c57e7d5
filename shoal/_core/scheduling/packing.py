"""Where the bundles of a placement group go: all of them or none.

    PACK           as few nodes as possible
    SPREAD         as evenly as possible
    STRICT_PACK    one node
    STRICT_SPREAD  every bundle on a node of its own

STRICT placements are found whenever they exist (a sum; a bipartite matching). PACK and SPREAD are greedy, largest bundle first: bin packing
is NP-hard, and a group that greed cannot place waits like any other.

Devices count by amount here: half of each of two GPUs looks like one. The node that is asked to reserve knows better, and says no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal._core.scheduling import labels
from shoal._core.scheduling.policy import explain_infeasible
from shoal._core.scheduling.resources import ResourceSet, fits, subtract, total_of
from shoal._core.wire.messages import NodeRecord

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")

Bundles = Sequence[Mapping[str, int]]
Selectors = Sequence[Mapping[str, str]]
Free = dict[bytes, ResourceSet]


def place_bundles(
    bundles: Bundles,
    strategy: str,
    nodes: Sequence[NodeRecord],
    selectors: Selectors = (),
    *,
    whole_nodes: bool = False,
    taken: Mapping[int, bytes] | None = None,
    preferred: bytes = b"",
) -> list[bytes] | None:
    """Return a node id per bundle, or None when the group does not fit.

    Args:
        selectors: label selector per bundle; empty for none.
        whole_nodes: judge by what nodes have, not by what is free: could it ever fit?
        taken: bundles that stay where they are (a group that lost some of its nodes), by index.
        preferred: STRICT_PACK takes this node if all bundles fit there.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown placement strategy {strategy!r}; valid are {', '.join(STRATEGIES)}.")
    taken = taken or {}
    alive = sorted((node for node in nodes if node.alive), key=lambda node: node.node_id != preferred)
    free: Free = {node.node_id: dict(node.total if whole_nodes else node.available) for node in alive}
    allowed = [_allowed(index, alive, selectors) for index in range(len(bundles))]
    todo = [index for index in range(len(bundles)) if index not in taken]
    if strategy == "STRICT_PACK":
        found = _one_node(bundles, todo, free, allowed, taken)
    elif strategy == "STRICT_SPREAD":
        found = _match(bundles, todo, free, allowed, set(taken.values()))
    else:
        found = _greedy(bundles, todo, free, allowed, taken, spread=strategy == "SPREAD")
    if found is None:
        return None
    return [taken[index] if index in taken else found[index] for index in range(len(bundles))]


def explain_unplaceable(bundles: Bundles, strategy: str, nodes: Sequence[NodeRecord], selectors: Selectors = ()) -> str:
    """Return why the group can never be placed as things stand; "" when it only has to wait."""
    if place_bundles(bundles, strategy, nodes, selectors, whole_nodes=True) is not None:
        return ""
    alive = [node for node in nodes if node.alive]
    for index, bundle in enumerate(bundles):
        at = [node for node in alive if node.node_id in _allowed(index, alive, selectors)]
        if not at:
            return f"No node has the labels that bundle {index} asks for: {labels.describe(selectors[index].items())}."
        if not any(fits(bundle, node.total) for node in at):
            return explain_infeasible(f"Bundle {index}", bundle, at)
    if strategy == "STRICT_PACK":
        return explain_infeasible("The STRICT_PACK placement group", total_of(bundles), alive)
    if strategy == "STRICT_SPREAD":
        return f"STRICT_SPREAD needs {len(bundles)} nodes that fit a bundle each; the cluster has {len(alive)}. Add nodes or use SPREAD."
    return "The bundles do not fit into the cluster together. Ask for less, or add a node."


def _allowed(index: int, nodes: Sequence[NodeRecord], selectors: Selectors) -> set[bytes]:
    selector = selectors[index] if index < len(selectors) else {}
    return {node.node_id for node in nodes if labels.matches(selector.items(), node.labels)}


def _one_node(
    bundles: Bundles, todo: list[int], free: Free, allowed: list[set[bytes]], taken: Mapping[int, bytes]
) -> dict[int, bytes] | None:
    need = total_of(bundles[index] for index in todo)
    bound = set(taken.values())
    for node_id, room in free.items():
        if (not bound or bound == {node_id}) and fits(need, room) and all(node_id in allowed[index] for index in todo):
            return dict.fromkeys(todo, node_id)
    return None


def _match(bundles: Bundles, todo: list[int], free: Free, allowed: list[set[bytes]], used: set[bytes]) -> dict[int, bytes] | None:
    """Bipartite matching by augmenting paths (Kuhn, 1955): O(bundles * edges)."""
    options = {
        index: [node_id for node_id in free if node_id in allowed[index] - used and fits(bundles[index], free[node_id])] for index in todo
    }
    holder: dict[bytes, int] = {}

    def augment(index: int, seen: set[bytes]) -> bool:
        for node_id in options[index]:
            if node_id not in seen:
                seen.add(node_id)
                if node_id not in holder or augment(holder[node_id], seen):
                    holder[node_id] = index
                    return True
        return False

    if not all(augment(index, set()) for index in todo):
        return None
    return {index: node_id for node_id, index in holder.items()}


def _greedy(
    bundles: Bundles, todo: list[int], free: Free, allowed: list[set[bytes]], taken: Mapping[int, bytes], *, spread: bool
) -> dict[int, bytes] | None:
    count = dict.fromkeys(free, 0)
    for node_id in taken.values():
        count[node_id] = count.get(node_id, 0) + 1
    if not spread and (together := _one_node(bundles, todo, free, allowed, taken)) is not None:
        return together
    placed: dict[int, bytes] = {}
    for index in sorted(todo, key=lambda one: (len(allowed[one]), -sum(bundles[one].values()), one)):
        options = [node_id for node_id, room in free.items() if node_id in allowed[index] and fits(bundles[index], room)]
        if not options:
            return None
        if spread:
            best = min(options, key=lambda node_id: (count[node_id], -sum(free[node_id].values())))
        else:
            best = min(options, key=lambda node_id: (count[node_id] == 0, sum(free[node_id].values())))
        placed[index] = best
        count[best] += 1
        free[best] = subtract(free[best], bundles[index])
    return placed
