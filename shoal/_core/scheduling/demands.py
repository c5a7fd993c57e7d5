"""What waits for resources in the cluster, by shape: what ``shoal status`` shows, and what an autoscaler has to make room for.

    node agents: queued tasks, actors sent to them ──┐ NodeResources, when it has changed
    control store: actors and groups to be placed ───┴─▶ one sum

Logical resources only. What waits inside of a placement group asks for nothing that the group does not hold already.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal._core.scheduling.resources import as_tuple
from shoal._core.wire.messages import Demand, GroupDemand, Shape

#: Shapes that one node reports; of more, those of which most wait.
MOST_SHAPES = 32


def demand_of(shape: Shape, count: int) -> Demand | None:
    """Return what ``count`` tasks or actors of this shape ask for; None if they wait for bundles of a group."""
    if shape.placement_group:
        return None
    need = shape.resources if shape.placement_resources is None else shape.placement_resources
    return Demand(as_tuple(dict(need)), count, tuple((key, value) for key, value in shape.label_selector))


def add_up(demands: Iterable[Demand], most: int | None = None) -> list[Demand]:
    """Return one entry per shape, those of which most wait first; ``most`` entries at most."""
    counts: dict[tuple[tuple[tuple[str, int], ...], tuple[tuple[str, str], ...]], int] = {}
    for one in demands:
        # Tuples arrive as lists where the wire knows no better.
        key = (as_tuple(dict(one.resources)), tuple((name, condition) for name, condition in one.label_selector))
        counts[key] = counts.get(key, 0) + one.count
    found = [Demand(resources, count, selector) for (resources, selector), count in counts.items()]
    found.sort(key=lambda one: (-one.count, one.resources, one.label_selector))
    return found[:most]


def add_up_groups(groups: Iterable[tuple[Iterable[Mapping[str, int]], str]]) -> list[GroupDemand]:
    """Return one entry per kind of placement group, given the bundles that each still needs and its strategy."""
    counts: dict[tuple[tuple[tuple[tuple[str, int], ...], ...], str], int] = {}
    for bundles, strategy in groups:
        key = (tuple(as_tuple(bundle) for bundle in bundles), strategy)
        counts[key] = counts.get(key, 0) + 1
    found = [GroupDemand(list(bundles), strategy, count) for (bundles, strategy), count in counts.items()]
    found.sort(key=lambda one: (-one.count, one.strategy, one.bundles))
    return found
