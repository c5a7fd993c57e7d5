"""What a process knows of one object: its state, its value and who holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal._core.wire.messages import FAILED, INLINE, STORED, Address, Dep, Value

if TYPE_CHECKING:
    from .records import TaskRecord

__all__ = ["FAILED", "INLINE", "PENDING", "RELEASED", "STORED", "BorrowedEntry", "Entry", "Stored", "data_of", "dep_of"]


class Stored(NamedTuple):
    """Where a value lies."""

    #: Node of the primary copy.
    node_id: bytes
    nbytes: int


def data_of(value: Value) -> Any:
    """Return what an entry keeps of a value that came in a message."""
    return Stored(value.node_id, value.nbytes) if value.kind == STORED else value.data


#: Not computed yet.
PENDING = -1
#: The value was given up, but lineage may compute it again for another object that needs it.
RELEASED = -2


class Entry:
    """An object that this process owns.

    ``kind`` is written last when an object completes, and user threads may read an entry whose ``kind >= 0`` without asking the I/O
    thread. All other writes happen on the I/O thread, except to entries that nobody else has seen yet.
    """

    __slots__ = ("borrowers", "count", "data", "inner", "kind", "lineage", "object_id", "seen", "task", "waiters")

    def __init__(self, object_id: bytes, count: int, task: Any = None) -> None:
        self.object_id = object_id
        self.kind = PENDING
        #: INLINE: serialized value. FAILED: serialized error. STORED: a ``Stored``.
        self.data: Any = None
        #: Live ObjectRefs of this process, plus pins: task arguments, containers, results on their way.
        self.count = count
        #: Finished tasks whose results may have to be computed again from this object.
        self.lineage = 0
        #: worker id -> [address, registrations], or None while there are none.
        self.borrowers: dict[bytes, list[Any]] | None = None
        #: The task that makes the object; None: made by ``put``, or its lineage is gone.
        self.task: TaskRecord | None = task
        #: Entries of the references pickled inside the value; each is pinned by one.
        self.inner: list[Entry] | None = None
        #: Called as ``fn(entry, arg)`` on the I/O thread when the object completes.
        self.waiters: list[tuple[Callable[[Entry, Any], None], Any]] | None = None
        #: An error was delivered to somebody.
        self.seen = False

    owner: Address | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.object_id.hex()[:16]}, kind={self.kind}, count={self.count}, borrowers={self.borrowers})"


class BorrowedEntry(Entry):
    """An object that another process owns."""

    __slots__ = ("fetching", "grants", "owner", "registering")

    owner: Address

    def __init__(self, object_id: bytes, owner: Address) -> None:
        super().__init__(object_id, 0)
        self.owner = owner
        #: Registrations that the owner counts for this process. 0 only while a running task's arguments protect the object.
        self.grants = 0
        #: An AddBorrower of ours is on its way.
        self.registering = False
        #: A GetObject of ours is on its way.
        self.fetching = False


def dep_of(entry: Entry, me: Address) -> Dep:
    """Return what an executor needs to know of a complete argument."""
    dep = Dep(entry.object_id, entry.owner or me)
    if entry.kind == INLINE:
        dep.value = entry.data
    elif entry.kind == STORED:
        dep.node_id, dep.nbytes = entry.data
    return dep
