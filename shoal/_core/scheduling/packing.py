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

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import groupby, islice
from typing import Any

import msgspec

from shoal._core.scheduling import labels
from shoal._core.scheduling.policy import explain_infeasible
from shoal._core.scheduling.resources import fits, subtract, total_of
from shoal._core.wire.messages import NodeRecord

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")

Bundles = Sequence[Mapping[str, int]]
Selectors = Sequence[Mapping[str, str]]
Free = dict[bytes, Mapping[str, int]]


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
    alive = [node for node in nodes if node.takes_work]
    if preferred:
        alive.sort(key=lambda node: node.node_id != preferred)
    # Not copied: an entry is replaced when something is taken from it.
    free: Free = {node.node_id: node.total if whole_nodes else node.available for node in alive}
    wishes = [_Wish(index, bundle, _allowed(index, alive, selectors)) for index, bundle in enumerate(bundles) if index not in taken]
    if strategy == "STRICT_PACK":
        found = _one_node(wishes, free, taken)
    elif strategy == "STRICT_SPREAD":
        found = _match(wishes, free, set(taken.values()))
    else:
        found = _greedy(wishes, free, taken, spread=strategy == "SPREAD")
    if found is None:
        return None
    return [taken[index] if index in taken else found[index] for index in range(len(bundles))]


def explain_unplaceable(bundles: Bundles, strategy: str, nodes: Sequence[NodeRecord], selectors: Selectors = ()) -> str:
    """Return why the group can never be placed as things stand; "" when it only has to wait."""
    if place_bundles(bundles, strategy, nodes, selectors, whole_nodes=True) is not None:
        return ""
    alive = [node for node in nodes if node.takes_work]
    for index, bundle in enumerate(bundles):
        allowed = _allowed(index, alive, selectors)
        at = [node for node in alive if allowed is None or node.node_id in allowed]
        if not at:
            return f"No node has the labels that bundle {index} asks for: {labels.describe(selectors[index].items())}."
        if not any(fits(bundle, node.total) for node in at):
            return explain_infeasible(f"Bundle {index}", bundle, at)
    if strategy == "STRICT_PACK":
        return explain_infeasible("The STRICT_PACK placement group", total_of(bundles), alive)
    if strategy == "STRICT_SPREAD":
        return f"STRICT_SPREAD needs {len(bundles)} nodes that fit a bundle each; the cluster has {len(alive)}. Add nodes or use SPREAD."
    return "The bundles do not fit into the cluster together. Ask for less, or add a node."


class _Wish(msgspec.Struct, frozen=True):
    """One bundle to be placed."""

    index: int
    need: Mapping[str, int]
    #: Nodes that meet its selector; None: all.
    allowed: frozenset[bytes] | None

    def options(self, free: Free) -> Iterator[bytes]:
        """The nodes that it fits into, found one by one."""
        for node_id, room in free.items():
            if (self.allowed is None or node_id in self.allowed) and fits(self.need, room):
                yield node_id

    @property
    def kind(self) -> tuple[Any, ...]:
        """What two wishes have in common that any node treats alike."""
        return (sorted(self.need.items()), sorted(self.allowed or ()))


def _allowed(index: int, nodes: Sequence[NodeRecord], selectors: Selectors) -> frozenset[bytes] | None:
    selector = selectors[index] if index < len(selectors) else {}
    return frozenset(node.node_id for node in nodes if labels.matches(selector.items(), node.labels)) if selector else None


def _one_node(wishes: list[_Wish], free: Free, taken: Mapping[int, bytes]) -> dict[int, bytes] | None:
    bound = set(taken.values())
    if len(bound) > 1:
        return None
    allowed = [wish.allowed for wish in wishes if wish.allowed is not None] + ([frozenset(bound)] if bound else [])
    together = _Wish(0, total_of(wish.need for wish in wishes), frozenset.intersection(*allowed) if allowed else None)
    node_id = next(together.options(free), None)
    return None if node_id is None else {wish.index: node_id for wish in wishes}


def _match(wishes: list[_Wish], free: Free, used: set[bytes]) -> dict[int, bytes] | None:
    """Bipartite matching by augmenting paths (Kuhn, 1955).

    As many options as there are wishes are enough for each: one that has them can be given what the others leave. So the look at the nodes
    ends early, and the matching costs O(wishes ** 3) however many nodes there are.
    """
    room = {node_id: amounts for node_id, amounts in free.items() if node_id not in used} if used else free
    options = {wish.index: list(islice(wish.options(room), len(wishes))) for wish in wishes}
    holder: dict[bytes, int] = {}

    def augment(index: int, seen: set[bytes]) -> bool:
        for node_id in options[index]:
            if node_id not in seen:
                seen.add(node_id)
                if node_id not in holder or augment(holder[node_id], seen):
                    holder[node_id] = index
                    return True
        return False

    if not all(augment(wish.index, set()) for wish in wishes):
        return None
    return {index: node_id for node_id, index in holder.items()}


def _greedy(wishes: list[_Wish], free: Free, taken: Mapping[int, bytes], *, spread: bool) -> dict[int, bytes] | None:
    """Largest bundle first. O(nodes) per kind of bundle, O(log nodes) per bundle."""
    if not spread and (together := _one_node(wishes, free, taken)) is not None:
        return together
    count = dict.fromkeys(free, 0)
    for node_id in taken.values():
        count[node_id] = count.get(node_id, 0) + 1

    def rank(node_id: bytes) -> tuple[int, int]:
        room = sum(free[node_id].values())
        return (count[node_id], -room) if spread else (count[node_id] == 0, room)

    placed: dict[int, bytes] = {}
    order = sorted(wishes, key=lambda wish: (len(free if wish.allowed is None else wish.allowed), -sum(wish.need.values()), wish.kind))
    for _, alike in groupby(order, key=lambda wish: wish.kind):
        heap: list[tuple[tuple[int, int], int, bytes]] | None = None
        for wish in alike:
            if heap is None:
                heap = [(rank(node_id), place, node_id) for place, node_id in enumerate(wish.options(free))]
                heapify(heap)
            if not heap:
                return None
            _, place, best = heap[0]
            placed[wish.index] = best
            count[best] += 1
            free[best] = subtract(free[best], wish.need)
            if fits(wish.need, free[best]):
                heapreplace(heap, (rank(best), place, best))
            else:
                heappop(heap)
    return placed
