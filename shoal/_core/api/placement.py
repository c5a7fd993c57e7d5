"""Placement groups: reservations of several bundles of resources, all or none.

``shoal.util.placement_group`` is the public name. The control store decides; everything here is requests to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from shoal._base.ids import JOB_BYTES, PLACEMENT_GROUP_BYTES, PlacementGroupID
from shoal._base.references import ObjectRef
from shoal._base.runtime import Runtime
from shoal._core.scheduling.labels import parse_selector
from shoal._core.scheduling.resources import ResourceSet, parse_resources, to_floats
from shoal._core.wire.messages import (
    CreatePlacementGroup,
    GetPlacementGroup,
    ListPlacementGroups,
    PlacementGroupRecord,
    PlacementGroupSpec,
    RemovePlacementGroup,
    WaitPlacementGroup,
)
from shoal.exceptions import RayError

from .lifecycle import ensure_runtime
from .node_ids import check_node_id
from .wire_check import checked_record

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroup:
    """A handle to a placement group; can be passed to tasks and pickled."""

    def __init__(self, id: PlacementGroupID | bytes, bundle_units: list[ResourceSet] | None = None) -> None:
        self.id = id if isinstance(id, PlacementGroupID) else PlacementGroupID(id)
        #: Fixed-point; None until the control store was asked.
        self._bundle_units = bundle_units

    @staticmethod
    def empty() -> PlacementGroup:
        """Return the group that stands for "no placement group"."""
        return PlacementGroup(PlacementGroupID.nil(), [])

    @property
    def is_empty(self) -> bool:
        """This is the group that stands for "no placement group"."""
        return self.id.is_nil()

    def ready(self) -> ObjectRef[PlacementGroup]:
        """Return a reference that becomes this group when all bundles are reserved.

        Its value is TaskPlacementGroupRemoved if the group is removed before.
        """
        ref: ObjectRef[PlacementGroup] = ensure_runtime().promise(WaitPlacementGroup(0, self.id.binary()), self)
        return ref

    def wait(self, timeout_seconds: float | None = 30) -> bool:
        """Block until all bundles are reserved; False when that did not happen in time, or the group was removed."""
        runtime = ensure_runtime()
        ready, _ = runtime.wait([self.ready()], 1, None if timeout_seconds is None else max(timeout_seconds, 0), True)
        if not ready:
            return False
        try:
            runtime.get(ready, 0)
        except RayError:  # removed meanwhile
            return False
        return True

    @property
    def bundle_units(self) -> list[ResourceSet]:
        """The bundles in fixed point; asks the control store the first time if this handle does not know them."""
        if self._bundle_units is None:
            self._bundle_units = _record(ensure_runtime(), self.id.binary()).spec.bundles
        return self._bundle_units

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The resources of each bundle."""
        return [to_floats(bundle) for bundle in self.bundle_units]

    @property
    def bundle_count(self) -> int:
        """The number of bundles."""
        return len(self.bundle_units)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id, self._bundle_units)


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: list[dict[str, str]] | None = None,
) -> PlacementGroup:
    """Reserve bundles of resources, all or none; returns at once, the reservation happens in the background.

    Args:
        bundles: one dict of resources per bundle.
        strategy: "PACK" (default) prefers few nodes, "SPREAD" many; "STRICT_PACK" and "STRICT_SPREAD" insist.
        name: under which ``get_placement_group`` finds it within the namespace.
        lifetime: "detached" keeps it after this job's end.
        _soft_target_node_id: hexadecimal id of the node that a STRICT_PACK group takes if all of it fits there.
        bundle_label_selector: one label selector per bundle.
        topology_strategy: only None: nodes have no topology.

    Raises:
        ValueError: a bad bundle, strategy, lifetime or selector.
        TypeError: a name, an amount or a condition of the wrong type.
    """
    if topology_strategy is not None:
        raise ValueError("topology_strategy is not supported: nodes have no topology here. Use strategy or bundle_label_selector.")
    runtime = ensure_runtime()
    units = _checked_bundles(bundles)
    strategy = "PACK" if strategy is None else strategy
    if strategy not in STRATEGIES:
        raise ValueError(f"Invalid placement group strategy {strategy!r}. Supported are {', '.join(STRATEGIES)}.")
    if lifetime not in (None, "detached"):
        raise ValueError(f"The placement group's lifetime must be None or 'detached', got {lifetime!r}.")
    if not isinstance(name, str | None):
        raise TypeError(f"A placement group's name is a string, got {type(name).__name__}: {name!r}.")
    if _soft_target_node_id is not None:
        _check_soft_target(_soft_target_node_id, strategy)
    context = runtime.task_context()
    spec = PlacementGroupSpec(
        placement_group_id=os.urandom(PLACEMENT_GROUP_BYTES - JOB_BYTES) + runtime.job_id,
        job_id=runtime.job_id,
        bundles=units,
        strategy=strategy,
        name=name or "",
        detached=lifetime == "detached",
        creator_actor=context.actor_id if context is not None else b"",
        bundle_label_selector=_checked_selectors(bundle_label_selector, len(units)),
        namespace=runtime.namespace,
        target_node=bytes.fromhex(_soft_target_node_id) if _soft_target_node_id is not None else b"",
    )
    runtime.request_control_store(CreatePlacementGroup(0, checked_record(spec, "the placement group's arguments")))
    return PlacementGroup(spec.placement_group_id, units)


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give the reservation back; kills the tasks and actors inside. Idempotent."""
    _check_group(placement_group)
    ensure_runtime().request_control_store(RemovePlacementGroup(0, placement_group.id.binary()))


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """Return the group of that name in this namespace; ValueError if there is none."""
    if not placement_group_name:
        raise ValueError("Please supply a non-empty value to get_placement_group")
    if not isinstance(placement_group_name, str):
        raise TypeError(f"A placement group's name is a string, got {type(placement_group_name).__name__}: {placement_group_name!r}.")
    record = _record(ensure_runtime(), b"", placement_group_name)
    return PlacementGroup(record.spec.placement_group_id, record.spec.bundles)


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """Return what the control store knows of one group, or of all by hexadecimal id."""
    runtime = ensure_runtime()
    if placement_group is not None:
        _check_group(placement_group)
        return _describe(_record(runtime, placement_group.id.binary()))
    records: list[PlacementGroupRecord] = runtime.request_control_store(ListPlacementGroups(0)).groups
    return {record.spec.placement_group_id.hex(): _describe(record) for record in records}


def get_current_placement_group() -> PlacementGroup | None:
    """Return the group in which the running task or actor was placed; None in a driver or outside of groups."""
    context = ensure_runtime().task_context()
    return PlacementGroup(context.placement_group) if context is not None and context.placement_group else None


def _record(runtime: Runtime, group_id: bytes, name: str = "") -> PlacementGroupRecord:
    wanted = f"with name {name!r}" if name else f"with id {group_id.hex()}"
    try:
        groups: list[PlacementGroupRecord] = runtime.request_control_store(
            GetPlacementGroup(0, group_id, name, runtime.namespace)
        ).groups  # fmt: skip
    except ValueError:
        groups = []
    if not groups:
        raise ValueError(f"Failed to look up placement group {wanted} in namespace {runtime.namespace!r}: there is none.")
    return groups[0]


def _describe(record: PlacementGroupRecord) -> dict[str, Any]:
    spec = record.spec
    return {
        "placement_group_id": spec.placement_group_id.hex(),
        "name": spec.name,
        "bundles": {i: to_floats(bundle) for i, bundle in enumerate(spec.bundles)},
        "bundles_to_node_id": {i: node.hex() for i, node in enumerate(record.nodes)},
        "strategy": spec.strategy,
        "state": record.state,
        "stats": {"created_at": record.created_at},
    }


def _check_group(placement_group: object) -> None:
    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"A PlacementGroup is needed, got {type(placement_group).__name__}: {placement_group!r}.")


def _check_soft_target(node_id: object, strategy: str) -> None:
    if strategy != "STRICT_PACK":
        raise ValueError(f"_soft_target_node_id only makes sense with strategy STRICT_PACK, got {strategy}.")
    check_node_id(node_id)


def _checked_bundles(bundles: Sequence[Mapping[str, float]]) -> list[ResourceSet]:
    if not isinstance(bundles, list):
        raise ValueError(f"Placement group bundles must be a list, got {type(bundles).__name__}: {bundles!r}.")
    if not bundles:
        raise ValueError('Placement group bundles must be a non-empty list of resources, for example [{"CPU": 1}, {"GPU": 1}].')
    for bundle in bundles:
        if not isinstance(bundle, dict):
            raise ValueError(f"Each bundle is a dict of resources, got {type(bundle).__name__}: {bundle!r}.")
    units = [parse_resources(bundle) for bundle in bundles]
    if not all(units):
        raise ValueError(f"Bundles cannot be empty or hold amounts of 0 only: {bundles!r}.")
    return units


def _checked_selectors(selectors: list[dict[str, str]] | None, count: int) -> list[dict[str, str]]:
    if selectors is None:
        return []
    if not isinstance(selectors, list):
        raise ValueError(f"bundle_label_selector must be a list of label selectors, got {type(selectors).__name__}: {selectors!r}.")
    if len(selectors) != count:
        raise ValueError(f"bundle_label_selector needs one selector per bundle: {count} bundles, {len(selectors)} selectors.")
    return [dict(parse_selector(selector)) for selector in selectors]
