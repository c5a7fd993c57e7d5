"""What the control store knows of one placement group."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shoal._core.scheduling.resources import ResourceSet, total_of
from shoal._core.wire.messages import PlacementGroupRecord

PENDING, PREPARED, CREATED, RESCHEDULING, REMOVED = "PENDING", "PREPARED", "CREATED", "RESCHEDULING", "REMOVED"


class GroupNameTaken(Exception):
    """A live group has this name in this namespace."""


class Group(msgspec.Struct):
    record: PlacementGroupRecord
    #: Node -> bundles asked for, while its answer to PrepareBundles is open.
    preparing: dict[bytes, list[int]] = msgspec.field(default_factory=dict)
    #: Node -> bundles it said yes to, not committed yet.
    prepared: dict[bytes, list[int]] = msgspec.field(default_factory=dict)
    #: Nodes that were told to commit and have not answered.
    committing: dict[bytes, list[int]] = msgspec.field(default_factory=dict)
    #: Node -> resources that it gives back; its answer to ReleaseBundles is open.
    releasing: dict[bytes, ResourceSet] = msgspec.field(default_factory=dict)
    #: A node said no in this attempt.
    refused: bool = False
    #: ``PlacementGroupTable.changes`` when the attempt began.
    attempt_at: int = 0
    passed: int = 0
    #: Nodes that hold bundles from an attempt before a restart, and are told to give them back.
    in_vain: set[bytes] = msgspec.field(default_factory=set)
    #: Read back with bundles to place again: a node that is not back yet may hold some from an attempt that is forgotten.
    was_interrupted: bool = False
    #: Attempts in a row that a node refused although its figures said yes.
    refusals: int = 0

    def busy(self) -> bool:
        return bool(self.preparing or self.prepared or self.committing or self.releasing)

    def nodes_asked(self) -> set[bytes]:
        return {*self.preparing, *self.prepared, *self.committing, *filter(None, self.record.nodes)}

    def resources(self, indices: Iterable[int]) -> ResourceSet:
        return total_of(self.record.spec.bundles[index] for index in indices)


class GroupStatistics(msgspec.Struct, frozen=True):
    waiting: int
    created: int
    removed: int


def with_state(record: PlacementGroupRecord, state: str, nodes: list[bytes]) -> PlacementGroupRecord:
    """A new record: the old one may be on its way to somebody."""
    return PlacementGroupRecord(record.spec, state, nodes, record.created_at)
