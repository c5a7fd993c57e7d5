"""What a process without references, tasks and actors should not hold, in words."""

from __future__ import annotations

import os
from typing import Any

from shoal._core.wire.messages import Address
from shoal._core.worker.actors import ActorToken
from shoal._core.worker.core import Core
from shoal._core.worker.entries import BorrowedEntry, Entry


def core_leftovers(core: Core) -> list[str]:
    """Name every table of a process that is not empty."""
    objects, actors = core.objects, core.actors
    tables: dict[str, Any] = {
        "objects": [_text(entry) for entry in objects.own.entries.values()],
        "operations": objects.operations,
        "unregistered": objects._unregistered,
        "freed and not told": objects._freed,
        "leases": core.leasing.submission.leases,
        "queues": core.leasing.submission.queues,
        "lineage": list(core.recovery.lineage._records),
        "lease requests": core.leasing._requests,
        "children": core.cancellation._children,
        "actors": [f"{one.actor_id[:4].hex()} state {one.state} waiting {len(one.waiting)}" for one in actors.calls.values()],
        "constructor arguments": actors._creation_args,
        "actor names": actors._names,
        "streams": core.streams.by_task,
        "pins": core.store._pins,
    }
    return [f"{name}: {table}" for name, table in tables.items() if table]


def _text(entry: Entry) -> str:
    """Describe an object shortly: the maker's number and index, the kind, and who holds it."""
    object_id = entry.object_id
    name = f"{int.from_bytes(object_id[:8], 'big')}.{int.from_bytes(object_id[-4:], 'big')}"
    if isinstance(entry, ActorToken):
        name = f"handle of {object_id[:4].hex()}"
    holders = {_process(address): count for address, count in (entry.borrowers or {}).values()}
    grants = f" registered {entry.grants} at {_process(entry.owner)}" if isinstance(entry, BorrowedEntry) else ""
    return f"{name}{grants} kind {entry.kind} count {entry.count} lineage {entry.lineage} held by {holders or 'nobody'}"


def _process(address: Address) -> str:
    return os.path.basename(address.address)
