"""Placement groups: reserve several bundles of resources, all or none, and run tasks and actors inside.

Example:
    >>> group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK")
    >>> group.wait(timeout_seconds=10)
    True
    >>> strategy = PlacementGroupSchedulingStrategy(group)
    >>> f.options(scheduling_strategy=strategy).remote()
    >>> remove_placement_group(group)
"""

from __future__ import annotations

from shoal.placement import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]

for _public in (
    PlacementGroup, get_current_placement_group, get_placement_group, placement_group, placement_group_table, remove_placement_group,
):  # fmt: skip
    _public.__module__ = __name__
del _public
