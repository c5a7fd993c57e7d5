"""Which finished tasks are kept so that lost objects can be computed again.

Owns: the finished records whose stored results may still be needed, oldest first, bounded in bytes.
Must not know: how tasks run. Called by ``tasks.py`` on the I/O thread.

A result that travelled inline cannot get lost while its owner lives, so only tasks with a stored result are kept. Their stored
arguments that we own are held by lineage (the value may go, the record that makes it stays); inline and foreign ones by their
value.
"""

from __future__ import annotations

from collections import OrderedDict

from .entries import STORED, BorrowedEntry, Entry
from .ownership import Ownership
from .records import TaskRecord

#: What a record costs besides its arguments, measured with 100,000 records of a one-argument task.
RECORD_BYTES = 700


class Lineage:
    def __init__(self, own: Ownership, limit_bytes: int) -> None:
        self._own = own
        self._limit = limit_bytes
        self._records: OrderedDict[bytes, tuple[TaskRecord, list[Entry], list[Entry]]] = OrderedDict()
        self.nbytes = 0
        self.evicted = 0

    def keep(self, record: TaskRecord) -> None:
        """Take over the pins of a finished task's arguments."""
        by_lineage: list[Entry] = []
        by_value: list[Entry] = []
        for entry in (*record.deps, *record.held):
            if entry.kind == STORED and not isinstance(entry, BorrowedEntry) and entry.task is not None:
                self._own.keep_lineage(entry)
                by_lineage.append(entry)
            else:
                by_value.append(entry)
        for entry in by_lineage:
            self._own.unpin(entry)
        self._records[record.task_id] = (record, by_lineage, by_value)
        self.nbytes += RECORD_BYTES + len(record.args)
        while self.nbytes > self._limit and len(self._records) > 1:
            oldest = next(iter(self._records.values()))[0]
            self.evicted += 1
            self.drop(oldest)

    def drop(self, record: TaskRecord) -> None:
        """The results are gone, or the bound was passed: the task cannot be run again."""
        kept = self._records.pop(record.task_id, None)
        if kept is None:
            return
        self.nbytes -= RECORD_BYTES + len(record.args)
        for entry in record.returns:
            entry.task = None
        for entry in kept[1]:
            self._own.drop_lineage(entry)
        for entry in kept[2]:
            self._own.unpin(entry)

    def take(self, record: TaskRecord) -> bool:
        """The task runs again: its arguments are pinned by their values once more. False if it is not kept."""
        kept = self._records.pop(record.task_id, None)
        if kept is None:
            return False
        self.nbytes -= RECORD_BYTES + len(record.args)
        for entry in kept[1]:
            entry.count += 1
            self._own.drop_lineage(entry)
        return True

    def __contains__(self, record: TaskRecord) -> bool:
        return record.task_id in self._records

    def __len__(self) -> int:
        return len(self._records)
