"""From options to the ``Shape`` that a lease is asked for: resources, strategy, placement group, runtime environment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from shoal._base.runtime import Runtime
from shoal._core.scheduling.labels import parse_selector
from shoal._core.scheduling.resources import UNIT, ResourceSet, as_tuple, fits, parse_resources, to_floats
from shoal._core.wire.messages import Shape

from . import strategies
from .options import ACTOR_OPTIONS, RESOURCE_DECIMALS, TASK_OPTIONS, Option, value_of
from .placement import PlacementGroup
from .runtime_envs import runtime_env_of

#: Resource that an ``accelerator_type`` asks a sliver of, so that only nodes with such a device match.
ACCELERATOR_PREFIX = "accelerator_type:"
ACCELERATOR_SLIVER = 0.001


def task_shape(runtime: Runtime, options: Mapping[str, Any], name: str, inherited_group: bytes) -> tuple[Shape, bool]:
    """Return the shape of a task and whether its children go into its placement group. A task needs one CPU unless told otherwise.

    Args:
        name: of the task, for messages.
        inherited_group: what ``captured_group`` says; used where the options name no place.
    """
    held = _held(TASK_OPTIONS, options, default_cpus=1)
    return _shape(runtime, TASK_OPTIONS, options, name, held, None, inherited_group)


def actor_shape(runtime: Runtime, options: Mapping[str, Any], name: str, inherited_group: bytes) -> tuple[Shape, bool]:
    """Return the shape of an actor and whether its children go into its placement group; arguments as for ``task_shape``.

    An actor that asks for nothing is placed as if it needed one CPU and holds none; one that names devices or resources holds one CPU
    unless ``num_cpus`` says otherwise.
    """
    explicit = any(options.get(key) is not None for key in ("num_cpus", "num_gpus", "resources"))
    held = _held(ACTOR_OPTIONS, options, default_cpus=1 if explicit else 0)
    placed_by = None if explicit else {**held, "CPU": UNIT}
    return _shape(runtime, ACTOR_OPTIONS, options, name, held, placed_by, inherited_group)


def _held(table: dict[str, Option], options: Mapping[str, Any], default_cpus: float) -> ResourceSet:
    cpus = options.get("num_cpus")
    wanted: dict[str, float] = {"CPU": default_cpus if cpus is None else cpus}
    wanted["GPU"] = value_of(table, options, "num_gpus") or 0
    wanted["memory"] = value_of(table, options, "memory") or 0
    wanted |= value_of(table, options, "resources") or {}
    accelerator = value_of(table, options, "accelerator_type")
    if accelerator:
        wanted[ACCELERATOR_PREFIX + accelerator] = ACCELERATOR_SLIVER
    return parse_resources({key: round(amount, RESOURCE_DECIMALS) for key, amount in wanted.items()})


def _shape(
    runtime: Runtime,
    table: dict[str, Option],
    options: Mapping[str, Any],
    name: str,
    held: ResourceSet,
    placed_by: ResourceSet | None,
    inherited_group: bytes,
) -> tuple[Shape, bool]:
    group, bundle_index, capture, strategy = _place(runtime, table, options, inherited_group)
    if group is not None and not group.is_empty:
        _check_fits(name, placed_by or held, group, bundle_index)
    shape = Shape(
        job_id=runtime.job_id,
        resources=as_tuple(held),
        strategy=strategy,
        runtime_env=runtime_env_of(runtime, value_of(table, options, "runtime_env")),
        placement_group=group.id.binary() if group is not None and not group.is_empty else b"",
        bundle_index=bundle_index,
        label_selector=parse_selector(options.get("label_selector")),
        placement_resources=None if placed_by is None else as_tuple(placed_by),
    )
    return shape, capture


def _place(
    runtime: Runtime, table: dict[str, Option], options: Mapping[str, Any], inherited_group: bytes
) -> tuple[PlacementGroup | None, int, bool, tuple[Any, ...]]:
    """Return (group, bundle index, capture children, strategy on the wire)."""
    strategy = _with_deprecated_spelling(table, options)
    if isinstance(strategy, strategies.PlacementGroupSchedulingStrategy):
        capture = strategy.placement_group_capture_child_tasks
        if capture is None:
            context = runtime.task_context()
            capture = context is not None and context.capture_child_tasks
        group: Any = strategy.placement_group
        index: Any = strategy.placement_group_bundle_index
        if not isinstance(group, PlacementGroup | None) or type(index) is not int:
            raise TypeError(f"PlacementGroupSchedulingStrategy takes a PlacementGroup and the index of a bundle, got {group!r}, {index!r}.")
        if group is not None and not -1 <= index < group.bundle_count:
            raise ValueError(
                f"placement group bundle index {index} is invalid: the group has {group.bundle_count} bundles, from 0 on; -1 means any."
            )
        return group, index, capture, ()
    if strategy is None and inherited_group:
        return PlacementGroup(inherited_group), -1, True, ()
    fallbacks = value_of(table, options, "fallback_strategy") or []
    encoded = _encode(strategy)
    if fallbacks:
        encoded = ("FALLBACK", encoded, *(parse_selector(item["label_selector"]) for item in fallbacks))
    return None, -1, False, encoded


def captured_group(runtime: Runtime) -> bytes:
    """Return the placement group that the running task hands on to its children, or nothing."""
    context = runtime.task_context()
    return context.placement_group if context is not None and context.capture_child_tasks else b""


def _with_deprecated_spelling(table: dict[str, Option], options: Mapping[str, Any]) -> Any:
    strategy = options.get("scheduling_strategy")
    group = value_of(table, options, "placement_group")
    if group == "default":
        return strategy
    if strategy is not None:
        raise ValueError("Give the placement group in scheduling_strategy=PlacementGroupSchedulingStrategy(...), not in both options.")
    if isinstance(group, str):
        raise ValueError(f"Option placement_group={group!r} is not valid: it is a PlacementGroup, None or 'default'.")
    warnings.warn(
        "The option 'placement_group' is deprecated. Use scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=...).",
        DeprecationWarning,
        stacklevel=2,
    )
    return strategies.PlacementGroupSchedulingStrategy(
        group,
        value_of(table, options, "placement_group_bundle_index"),
        options.get("placement_group_capture_child_tasks"),
    )


def _encode(strategy: Any) -> tuple[Any, ...]:
    """Return the strategy as ``scheduling.strategies`` describes it."""
    if strategy is None or strategy == "DEFAULT":
        return ()
    if strategy == "SPREAD":
        return ("SPREAD",)
    if isinstance(strategy, strategies.NodeAffinitySchedulingStrategy):
        node_id = bytes.fromhex(strategy.node_id)
        return ("NODE_AFFINITY", node_id, strategy.soft, strategy._spill_on_unavailable, strategy._fail_on_unavailable)
    if isinstance(strategy, strategies.NodeLabelSchedulingStrategy):
        return ("NODE_LABEL", _conditions(strategy.hard), _conditions(strategy.soft))
    raise ValueError(
        f"Invalid scheduling_strategy value {strategy!r}. Valid are 'DEFAULT', 'SPREAD', PlacementGroupSchedulingStrategy, "
        "NodeAffinitySchedulingStrategy and NodeLabelSchedulingStrategy."
    )


def _conditions(labels: Mapping[str, strategies.LabelOperator]) -> tuple[Any, ...]:
    return tuple((key, operator.WORD, tuple(operator.values)) for key, operator in sorted(labels.items()))


def _check_fits(name: str, needed: ResourceSet, group: PlacementGroup, bundle_index: int) -> None:
    """Raise ValueError if no bundle (or not the one asked for) can ever hold the request."""
    bundles = group.bundle_units
    candidates = bundles if bundle_index < 0 else bundles[bundle_index : bundle_index + 1]
    if any(fits(needed, bundle) for bundle in candidates):
        return
    where = "any bundle" if bundle_index < 0 else f"bundle {bundle_index}"
    raise ValueError(
        f"Cannot schedule {name} with the placement group: its request {to_floats(needed)} cannot fit {where} of {group.bundle_specs}. "
        "Ask for less, or make the group with larger bundles."
    )
