"""Cancelling tasks: before they start, while they run, and with what they started. I/O thread only.

waiting, queued -> fails at once
pushed          -> CancelTask: interrupted or handed back; killed with its worker after ``cancel_grace_s``, or at once by ``force``
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal import exceptions
from shoal._core.serialization import serialize_system_error
from shoal._core.wire.messages import CancelTask, Cause, KillProcess

from .entries import BorrowedEntry
from .records import FINISHED, PUSHED, QUEUED, WAITING, TaskRecord
from .submission import Lease

if TYPE_CHECKING:
    from .core import Core

#: Seconds between two looks whether the task to be killed is the one that runs.
_LOOK_S = 0.01


class Cancellation:
    """Owns who started what, as recursive cancels need it."""

    def __init__(self, core: Core) -> None:
        self.core = core
        #: Parent task id -> its unfinished children. Only in workers.
        self._children: dict[bytes, dict[TaskRecord, None]] = {}

    def started(self, record: TaskRecord) -> None:
        """A task was submitted, or is submitted again."""
        if record.parent:
            self._children.setdefault(record.parent, {})[record] = None

    def ended(self, record: TaskRecord) -> None:
        if record.parent:
            siblings = self._children.get(record.parent)
            if siblings is not None:
                siblings.pop(record, None)
                if not siblings:
                    del self._children[record.parent]

    def cancel(self, asked: tuple[bytes, bool, bool]) -> None:
        """``(task id, force, recursive)``: the task never starts, or is interrupted, or its worker is killed."""
        task_id, force, recursive = asked
        entry = self.core.objects.own.entries.get(task_id + b"\0\0\0\0")
        record = entry.task if entry is not None else None
        if isinstance(entry, BorrowedEntry):
            if entry.owner.worker_id == entry.owner.node_id:
                return  # whose task it was has ended, and the task with it
            self.core.owner_channel(entry.owner).send(CancelTask(task_id, force, recursive))
        elif record is not None:
            self.cancel_record(record, force, recursive)
        self.core.flush()

    def cancel_record(self, record: TaskRecord, force: bool, recursive: bool) -> None:
        if record.state == FINISHED:
            return
        record.cancelled = True
        if record.template.actor_id:
            self.core.actors.cancel(record, recursive)
        elif record.state == WAITING or (record.state == QUEUED and self.core.leasing.submission.remove(record)):
            self.core.tasks.fail(record, cancelled_error(record))
        elif record.state == PUSHED and record.lease is not None:
            lease: Lease = record.lease
            peer: Any = lease.channel
            peer.send(CancelTask(record.task_id, force, recursive))
            if force:
                self._kill_when_first(record, lease)
            else:
                self.core.loop.call_later(self.core.settings.cancel_grace_s, self._kill, record, lease)

    def _kill_when_first(self, record: TaskRecord, lease: Lease) -> None:
        """Force: kill the worker, but not while it runs an innocent task before this one, which the worker then hands back."""
        if record.state != PUSHED or record.lease is not lease or lease.key not in self.core.leasing.submission.leases:
            return
        if next(iter(lease.in_flight.values()), None) is record:
            self._kill(record, lease)
        else:
            self.core.loop.call_later(_LOOK_S, self._kill_when_first, record, lease)

    def _kill(self, record: TaskRecord, lease: Lease) -> None:
        """The task could not be interrupted (or must not be asked): its worker dies; what was queued behind it runs elsewhere."""
        if record.state == PUSHED and record.lease is lease and lease.key in self.core.leasing.submission.leases:
            cause = Cause("killed", f"Task {record.display_name} was cancelled.")
            self.core.agents.get(lease.worker.node_id).send(KillProcess(lease.worker.worker_id, cause))

    def has_unfinished(self) -> bool:
        """Whether calls that a task of this process submitted are still to be answered."""
        return bool(self._children)

    def cancel_children(self, task_id: bytes, force: bool) -> None:
        """Recursive cancel: everything that the cancelled task started here."""
        self.core.drain_inbox()  # what it has sent itself (``express.py``)
        for record in list(self._children.get(task_id, ())):
            self.cancel_record(record, force, True)

    def on_cancel_task(self, _channel: Any, message: CancelTask) -> None:
        """A borrower asks the owner to cancel."""
        self.cancel((message.task_id, message.force, message.recursive))


def cancelled_error(record: TaskRecord) -> bytes:
    text = f"Task {record.display_name} (id {record.task_id.hex()}) was cancelled."
    return serialize_system_error(exceptions.TaskCancelledError(record.task_id.hex(), text))
