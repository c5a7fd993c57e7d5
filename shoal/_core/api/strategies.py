"""Scheduling strategies that users pass as ``scheduling_strategy``.

``shapes`` turns them into the tuples that travel on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal._base.ids import NodeID

from .node_ids import check_node_id

if TYPE_CHECKING:
    from .placement import PlacementGroup


class PlacementGroupSchedulingStrategy:
    """Run inside a placement group.

    Args:
        placement_group: the group whose reservation is used.
        placement_group_bundle_index: which of its bundles; -1 means any that fits.
        placement_group_capture_child_tasks: tasks and actors started from inside go into the group too.
    """

    def __init__(
        self,
        placement_group: PlacementGroup | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy:
    """Run on one node.

    Args:
        node_id: hexadecimal id as in ``shoal.nodes()``, or a ``NodeID``.
        soft: run elsewhere when the node is gone; otherwise that is an error.
    """

    def __init__(self, node_id: str | NodeID, soft: bool, _spill_on_unavailable: bool = False, _fail_on_unavailable: bool = False) -> None:
        self.node_id = node_id.hex() if isinstance(node_id, NodeID) else node_id
        self.soft = soft
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable
        check_node_id(self.node_id)
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable only makes sense with soft=True: a hard affinity never runs elsewhere.")
        if _fail_on_unavailable and soft:
            raise ValueError("_fail_on_unavailable only makes sense with soft=False: a soft affinity runs elsewhere instead.")


class NodeLabelSchedulingStrategy:
    """Run on nodes with certain labels.

    Args:
        hard: label -> In, NotIn, Exists or DoesNotExist; a node must meet all of them.
        soft: the same, preferred and not required.
    """

    def __init__(self, hard: dict[str, LabelOperator] | None, *, soft: dict[str, LabelOperator] | None = None) -> None:
        self.hard = _checked_labels(hard, "hard")
        self.soft = _checked_labels(soft, "soft")
        if not self.hard and not self.soft:
            raise ValueError("NodeLabelSchedulingStrategy needs at least one condition in 'hard' or 'soft'; both are empty.")


class LabelOperator:
    """A condition on one label of a node."""

    #: The operator's word on the wire.
    WORD = ""

    def __init__(self, *values: str) -> None:
        for position, value in enumerate(values):
            if not isinstance(value, str):
                raise ValueError(
                    f"{type(self).__name__} takes strings, got {value!r} of type {type(value).__name__} at position {position}."
                )
        self.values = list(values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.values == self.values

    def __hash__(self) -> int:
        return hash((type(self), *self.values))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"


class In(LabelOperator):
    """The label has one of the values."""

    WORD = "in"


class NotIn(LabelOperator):
    """The label is absent or has none of the values."""

    WORD = "not_in"


class Exists(LabelOperator):
    """The node has the label."""

    WORD = "exists"

    def __init__(self) -> None:
        super().__init__()


class DoesNotExist(LabelOperator):
    """The node does not have the label."""

    WORD = "does_not_exist"

    def __init__(self) -> None:
        super().__init__()


STRATEGY_CLASSES = (PlacementGroupSchedulingStrategy, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy)


def _checked_labels(labels: Mapping[Any, Any] | None, which: str) -> dict[str, LabelOperator]:
    if labels is None:
        return {}
    if not isinstance(labels, dict):
        raise ValueError(f"The {which!r} conditions are a dict of label -> operator, got {type(labels).__name__}: {labels!r}.")
    for key, operator in labels.items():
        if not isinstance(key, str):
            raise ValueError(f"The labels of the {which!r} conditions are strings, got {key!r}.")
        if not isinstance(operator, LabelOperator):
            raise ValueError(f"The {which!r} condition on {key!r} must be In, NotIn, Exists or DoesNotExist, got {operator!r}.")
        if isinstance(operator, In | NotIn) and not operator.values:
            raise ValueError(f'{type(operator).__name__} needs at least one value, for example {type(operator).__name__}("a", "b").')
    return dict(labels)
