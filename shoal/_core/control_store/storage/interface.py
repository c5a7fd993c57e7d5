"""The contract of a storage backend: named tables of key -> bytes, changed by atomic and durable batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class TablesDamaged(Exception):
    """The tables cannot be read back; the message says what was found."""


class Change(NamedTuple):
    """One row gets a new value, or goes (``value`` is None)."""

    table: str
    key: bytes
    value: bytes | None


class StorageUnavailable(Exception):
    """The storage does not answer now. What was to be written may be there or not: the caller writes it again."""


class Deposed(Exception):
    """Somebody else writes these tables now: nothing was written, and nothing will be any more."""


class Storage(Protocol):
    """Called by one thread at a time; no method may start a thread or keep a reference to its arguments' containers.

    Table names are identifiers chosen by the caller; a table exists from the first touch on and an unknown one reads as empty.
    """

    #: Whether ``apply`` waits for another machine. It is called in a thread then; a local one is called on the loop, where a change of
    #: thread would cost more than the write (``outbox.py`` has the figures).
    is_remote: bool

    def is_current(self) -> bool:
        """Whether nobody else can have written since the last ``apply``. Without it nobody may be told anything. Asked on the loop."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the row's value, or None."""

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield all rows in the order of their keys. Called at the start, and must see every applied batch."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Make all changes or none, durably, before returning; the later of two changes of one row wins.

        Called once per loop iteration that changed anything, so its cost is shared by all changes of that iteration.
        Raises OSError or the backend's own error when nothing was written, StorageUnavailable when that is not known; the caller keeps the
        batch and tries again. Raises Deposed when there is no use in that.
        """

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """``apply`` of one row."""

    def delete(self, table: str, key: bytes) -> None:
        """``apply`` of one row's end; deleting what is not there is fine."""

    def compact(self) -> None:
        """Give a bounded amount of free space back. Called after every few thousand deletions; must take milliseconds, not seconds."""

    def close(self) -> None:
        """Release files. Nothing is called afterwards."""
