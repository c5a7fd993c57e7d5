"""Scheduling strategies, for ``scheduling_strategy=`` of tasks and actors; the strings are "DEFAULT" and "SPREAD"."""

from __future__ import annotations

from shoal.placement import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]

for _public in (
    DoesNotExist, Exists, In, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn, PlacementGroupSchedulingStrategy,
):  # fmt: skip
    _public.__module__ = __name__
del _public
