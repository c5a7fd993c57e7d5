"""Tasks as their owner's I/O thread sees them: dependencies, leases, replies, retries, cancellation, recovery.

Decides nothing about leases (``submission.py``), counts (``ownership.py``) or lineage (``lineage.py``); it connects them to messages.

    submit -> dependencies ready -> Submission -> push -> TaskDone -> complete the returns
                                                      -> worker lost -> retry or WorkerCrashedError
    object lost -> recover -> submit again, its arguments first
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from shoal import exceptions
from shoal._core.serialization import describe_cause, error_named, serialize_system_error, worker_crashed
from shoal._core.transport import RequestFailed
from shoal._core.wire.messages import (
    FAILED,
    LOST,
    AskHandBack,
    BeginLease,
    CancelRequest,
    CancelTask,
    Cause,
    Dep,
    HandBack,
    KillProcess,
    LeaseGranted,
    LeaseInfeasible,
    LeaseWanted,
    PushTask,
    RequestLease,
    ReturnLease,
    Shape,
    TaskDone,
    Value,
    WorkerDied,
)

from .entries import INLINE, PENDING, RELEASED, STORED, BorrowedEntry, Entry
from .lineage import Lineage
from .peers import Peer
from .records import FINISHED, PUSHED, QUEUED, WAITING, TaskRecord
from .submission import Lease, ShapeQueue, Submission

if TYPE_CHECKING:
    from .core import Core

#: Seconds between two looks at idle and stalled leases, while there are any.
TICK_S = 0.01
#: Seconds to wait for the node agent's word about a worker whose connection is gone.
DEATH_NOTICE_S = 2.0
#: Seconds to wait for the end of a dead worker's connection, behind which nothing more can come.
LAST_WORDS_S = 0.1


class Tasks:
    """The shell around submission. I/O thread only."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.submission = Submission(core.settings, self)
        self.lineage = Lineage(core.objects.own, core.settings.lineage_limit_bytes)
        self._dirty: dict[Shape, ShapeQueue] = {}
        self._request_rids: dict[int, Any] = {}
        self._next_request = 0
        self._ticking = False
        #: Parent task id -> its unfinished children, for recursive cancel. Only in workers.
        self._children: dict[bytes, set[TaskRecord]] = {}
        self._warned: set[str] = set()
        self.finished_count = 0

    # --- submission ----------------------------------------------------------------------------------------

    def submit(self, submitted: tuple[TaskRecord, list[bytes], list[bytes]]) -> None:
        """A user thread has made a record: ``(record, ids of top-level references, ids of nested references)``."""
        record, dep_ids, held_ids = submitted
        self.hold_arguments(record, dep_ids, held_ids)
        if not record.unready:
            self.ready(record)

    def hold_arguments(self, record: TaskRecord, dep_ids: list[bytes], held_ids: list[bytes]) -> None:
        """Pin the arguments and wait for those that are not there."""
        if record.parent:
            self._children.setdefault(record.parent, set()).add(record)
        if held_ids:
            record.held = self._pin_ids(held_ids)
        if dep_ids:
            record.deps = self._pin_ids(dep_ids)
            self.await_deps(record)

    def _pin_ids(self, object_ids: list[bytes]) -> list[Entry]:
        own = self.core.objects.own
        entries = [own.lookup(object_id, None) for object_id in object_ids]
        for entry in entries:
            entry.count += 1
        return entries

    def await_deps(self, record: TaskRecord) -> None:
        """Count the arguments that are not ready; ``_dep_done`` is called for each."""
        record.state = WAITING
        record.unready = sum(entry.kind < 0 for entry in record.deps)
        if not record.unready:
            return
        for entry in record.deps:
            if entry.kind < 0:
                self.core.objects.when_done(entry, self._dep_done, record)

    def _dep_done(self, _entry: Entry, record: TaskRecord) -> None:
        record.unready -= 1
        if record.unready == 0 and record.state != FINISHED:
            if record.template.actor_id:
                self.core.actors.ready(record)
            else:
                self.ready(record)

    def ready(self, record: TaskRecord) -> None:
        """All arguments have a value or an error."""
        if record.cancelled:
            self.fail(record, self._cancelled_error(record))
            return
        for entry in record.deps:
            if entry.kind == FAILED:
                entry.seen = True
                self.fail(record, entry.data)
                return
        queue = self.submission.enqueue(record)
        self._dirty[queue.shape] = queue

    def flush(self) -> None:
        """Push what this turn of the loop made ready."""
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            now = self.core.loop.time()
            for queue in dirty.values():
                self.submission.pump(queue, now)
        if not self._ticking and self.submission.leases and self.submission.restless():
            self._ticking = True
            self.core.loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        if self.core.closing:
            return
        if self.submission.tick(self.core.loop.time()):
            self._ticking = True
            self.core.loop.call_later(TICK_S, self._tick)

    # --- effects of submission -----------------------------------------------------------------------------

    def request_lease(self, shape: Shape, backlog: int, name: str, retriable: bool) -> int:
        self._next_request += 1
        number = self._next_request
        message = RequestLease(0, shape, backlog, retriable, name)
        future = self.core.agent.request(message)
        self._request_rids[number] = message
        future.add_done_callback(lambda done: self._lease_answered(shape, number, done))
        return number

    def cancel_lease_request(self, request: int) -> None:
        # Not future.cancel(): a grant that is already on its way must still be seen, or the lease would be lost.
        message = self._request_rids.get(request)
        if message is not None:
            self.core.agent.send(CancelRequest(message.rid))

    def _lease_answered(self, shape: Shape, number: int, done: asyncio.Future[Any]) -> None:
        self._request_rids.pop(number, None)
        if done.cancelled() or self.core.closing:
            return
        error = done.exception()
        if error is None:
            grant: LeaseGranted = done.result()
            lease = self.submission.granted(shape, number, grant, self.core.loop.time())
            peer = self.core.peers.get(grant.worker)
            peer.lease = lease
            lease.channel = peer
            peer.send(BeginLease(grant.lease_id, self.core.me, shape.job_id, grant.resource_ids, grant.placement_group, grant.bundle_index))
            self._dirty[shape] = lease.queue
        elif isinstance(error, RequestFailed) and error.kind == "Cancelled":
            queue = self.submission.queues.get(shape)
            if queue is not None and number in queue.requests:
                queue.requests.remove(number)
                self._dirty[shape] = queue
        else:
            kind = error.kind if isinstance(error, RequestFailed) else "RaySystemError"
            text = error.message if isinstance(error, RequestFailed) else f"The node agent cannot be reached: {error}"
            data = serialize_system_error(error_named(kind, text))
            for record in self.submission.refused(shape, number):
                self.fail(record, data)
        self.core.flush()

    def push(self, lease: Lease, records: list[TaskRecord]) -> None:
        peer: Any = lease.channel
        for record in records:
            peer.send(self.wire_task(peer, record))

    def wire_task(self, peer: Peer, record: TaskRecord) -> PushTask:
        message = PushTask(record.task_id, peer.template_index(record.template), record.args)
        if record.deps:
            message.deps = [
                Dep(entry.object_id, entry.owner or self.core.me, entry.data if entry.kind == INLINE else None) for entry in record.deps
            ]
            message.stored_args = record.stored_args
        if record.attempt:
            message.attempt = record.attempt
        if record.parent:
            message.parent = record.parent
        if record.name:
            message.name = record.name
        message.seq = record.seq
        return message

    def return_lease(self, lease: Lease) -> None:
        peer: Any = lease.channel
        if peer is not None and peer.lease is lease:
            peer.lease = None
        self.core.agent.send(ReturnLease(lease.id))

    def ask_hand_back(self, lease: Lease) -> None:
        peer: Any = lease.channel
        peer.send(AskHandBack(lease.id))

    # --- messages from the node agent and from workers -----------------------------------------------------

    def on_lease_wanted(self, _channel: Any, message: LeaseWanted) -> None:
        self.submission.wanted(message.lease_id)

    def on_lease_infeasible(self, _channel: Any, message: LeaseInfeasible) -> None:
        if message.message not in self._warned:
            self._warned.add(message.message)
            print(f"(shoal) WARNING: {message.message}", file=sys.stderr)

    def on_task_done(self, peer: Peer, message: TaskDone) -> None:
        lease: Lease | None = peer.lease
        if lease is None:
            return
        record = self.submission.finished(message.task_id, lease, message.duration_us * 1e-6, self.core.loop.time())
        if message.exiting:
            self.submission.retire(lease)
        self._dirty[lease.queue.shape] = lease.queue
        if record is not None:
            self.finish(record, message)
        if lease.wanted or lease.dead:
            self.submission.settle(lease)

    def on_hand_back(self, peer: Peer, message: HandBack) -> None:
        lease: Lease | None = peer.lease
        if lease is not None:
            cancelled = [r for task_id in message.task_ids if (r := lease.in_flight.get(task_id)) is not None and r.cancelled]
            self.submission.handed_back(lease, message.task_ids, self.core.loop.time())
            for record in cancelled:
                if self.submission.remove(record):
                    self.fail(record, self._cancelled_error(record))
            self._dirty[lease.queue.shape] = lease.queue
            self.submission.settle(lease)

    def peer_lost(self, peer: Peer) -> None:
        """A leased worker's connection is gone: wait for the node agent to say why."""
        lease: Lease | None = peer.lease
        if lease is not None and not self.core.closing:
            lease.dead = True
            if lease.cause is not None:
                self._worker_gone(lease, lease.cause)
            else:
                self.core.loop.call_later(DEATH_NOTICE_S, self._worker_gone, lease, None)

    def on_worker_died(self, _channel: Any, message: WorkerDied) -> None:
        lease = self.submission.leases.get(message.lease_id)
        if lease is not None:
            peer: Any = lease.channel
            if peer is None or peer.lost or lease.dead:
                self._worker_gone(lease, message.cause)
            else:
                # Its last replies may still be unread: the end of its connection comes after them. (A child may hold that open.)
                lease.cause, lease.dead = message.cause, True
                self.core.loop.call_later(LAST_WORDS_S, self._worker_gone, lease, message.cause)
            self.core.flush()

    def _worker_gone(self, lease: Lease, cause: Cause | None) -> None:
        if lease.id not in self.submission.leases:
            return
        records = self.submission.lost(lease)
        peer: Any = lease.channel
        if peer is not None:
            peer.lease = None
        if not (cause is not None and cause.pid):
            self.core.agent.send(ReturnLease(lease.id, worker_failed=True))
        started = cause.started if cause is not None else b""
        order = [record.task_id for record in records]
        maybe_run = len(records)
        if started:
            maybe_run = order.index(started) + 1 if started in order else 0
        for record in reversed(records[maybe_run:]):
            self._requeue(record)
        for record in records[:maybe_run]:
            self._lost_with_worker(record, cause or Cause("worker_exit", "Its connection was lost."))
        self.core.flush()

    def _lost_with_worker(self, record: TaskRecord, cause: Cause) -> None:
        if record.cancelled:
            self.fail(record, self._cancelled_error(record))
        elif record.retries != 0:
            self.core.note(f"Task {record.display_name} lost its worker ({_short(cause)}); running it again, attempt {record.attempt + 2}.")
            self._retry(record)
        else:
            tries = record.attempt + 1
            error = worker_crashed(cause, task_name=record.display_name, attempt=tries, max_attempts=tries)
            self.fail(record, serialize_system_error(error))

    def _retry(self, record: TaskRecord) -> None:
        if record.retries > 0:
            record.retries -= 1
        record.attempt += 1
        self._requeue(record)

    def _requeue(self, record: TaskRecord) -> None:
        if record.cancelled:
            self.fail(record, self._cancelled_error(record))
            return
        queue = self.submission.enqueue(record, front=True)
        self._dirty[queue.shape] = queue

    # --- the end of a task ---------------------------------------------------------------------------------

    def finish(self, record: TaskRecord, message: TaskDone) -> None:
        """The executor's reply."""
        results = message.results
        if len(results) == 1 and results[0].kind in (FAILED, LOST):
            value = results[0]
            if value.kind == LOST:
                self._argument_lost(record, value)
                return
            if message.retry and record.retries != 0 and not record.cancelled:
                for entry in self.core.objects.own.receive(value.refs):
                    self.core.objects.own.unpin(entry)
                if record.template.actor_id:
                    self.core.actors.retry(record)
                else:
                    self._retry(record)
                return
            self.fail(record, value.data, self.core.objects.own.receive(value.refs) if value.refs else None)
            return
        if record.generator is not None:
            record.generator.ended(message.num_items)
            if record.template.num_returns == -2:
                self.core.streams.complete_dynamic(record)
                self.retire(record, stored=False)
                return
        stored = False
        objects = self.core.objects
        for entry, value in zip(record.returns, results, strict=True):
            inner: list[Entry] | None = objects.own.receive(value.refs) if value.refs else None
            if entry.kind >= 0:  # run again for the sake of another return; this one was never lost
                for held in inner or ():
                    objects.own.unpin(held)
                continue
            if value.kind == STORED:
                stored = True
                objects.complete(entry, STORED, value.nbytes, inner)
            else:
                objects.complete(entry, value.kind, value.data, inner)
        self.retire(record, stored or (record.generator is not None and record.generator.stored))

    def fail(self, record: TaskRecord, error: bytes, inner: list[Entry] | None = None) -> None:
        """Every return gets the error."""
        if record.state == FINISHED:
            return
        objects = self.core.objects
        if record.generator is not None:
            record.generator.failed(error)
        for entry in record.returns:
            if inner:
                for held in inner:
                    held.count += 1
            if entry.kind < 0:
                objects.complete(entry, FAILED, error, list(inner) if inner else None)
        for held in inner or ():
            objects.own.unpin(held)
        if record.generator is not None and record.template.num_returns == -1 and not record.generator.dropped:
            record.returns[0].seen = True  # the error is an item of the stream, which is where it is looked for
        self.retire(record, stored=False)

    def retire(self, record: TaskRecord, stored: bool) -> None:
        """The task is over: give back its arguments, or keep them as lineage."""
        record.state = FINISHED
        if record.template.actor_id:
            answered = self.core.actors.answered
            answered[record.template.actor_id] = answered.get(record.template.actor_id, 0) + 1
        if record.generator is not None:
            self.core.streams.task_over(record)
        record.lease = None
        self.finished_count += 1
        if record.parent:
            siblings = self._children.get(record.parent)
            if siblings is not None:
                siblings.discard(record)
                if not siblings:
                    del self._children[record.parent]
        if stored and record.template.max_retries != 0 and not record.template.actor_id:
            held = [entry for entry in record.returns if self.core.objects.own.entries.get(entry.object_id) is entry]
            if held or record.generator is not None:
                self.lineage.keep(record)
                return
        unpin = self.core.objects.own.unpin
        for entry in record.deps:
            unpin(entry)
        for entry in record.held:
            unpin(entry)
        for entry in record.returns:
            entry.task = None

    def entry_released(self, entry: Entry) -> None:
        """An object is gone for good; when it was the last of its task's results, so is the lineage."""
        record = entry.task
        if record is None or record.state != FINISHED:
            return
        own = self.core.objects.own
        if all(own.entries.get(other.object_id) is not other for other in record.returns) and (
            record.generator is None or record.generator.drained
        ):
            self.lineage.drop(record)

    # --- recovery ------------------------------------------------------------------------------------------

    def _argument_lost(self, record: TaskRecord, value: Value) -> None:
        lost = {info.object_id for info in value.refs}
        for entry in record.deps:
            if entry.object_id in lost and entry.kind == STORED:
                self.core.objects.lost(entry)
        self.await_deps(record)
        if not record.unready:
            self.ready(record)

    def recover(self, entry: Entry) -> None:
        """Compute a lost object again, and before it whatever it needs that is lost too. Iterative."""
        todo, again = [entry], []
        while todo:
            lost = todo.pop()
            if lost.kind == PENDING:
                continue
            record = lost.task
            reason = self._unrecoverable(lost, record)
            if reason or record is None or not self.lineage.take(record):
                self._give_up(lost, reason or "its lineage is gone")
                continue
            record.attempt += 1
            if record.retries > 0:
                record.retries -= 1
            for other in record.returns:
                if other is lost or other.kind == RELEASED:
                    self.core.objects.own.reset(other)
            if lost.kind != PENDING:
                self.core.objects.own.reset(lost)  # an item of a stream
            if record.parent:
                self._children.setdefault(record.parent, set()).add(record)
            todo.extend(dep for dep in record.deps if dep.kind == RELEASED)
            again.append(record)
        for record in reversed(again):
            self._resubmit_now(record)
        self.core.flush()

    def _resubmit_now(self, record: TaskRecord) -> None:
        self.await_deps(record)
        if not record.unready:
            self.ready(record)

    def _unrecoverable(self, entry: Entry, record: TaskRecord | None) -> str:
        if isinstance(entry, BorrowedEntry):
            return "another process owns it"
        if record is None:
            return "it was made by put, or its lineage was dropped to stay within the bound"
        if record.retries == 0:
            return "its task may not be retried any more (max_retries)"
        if record.cancelled:
            return "its task was cancelled"
        return ""

    def _give_up(self, entry: Entry, reason: str) -> None:
        hexid = entry.object_id.hex()
        text = (
            f"The object {hexid} was lost from the object store and cannot be computed again: {reason}. "
            "Keep results of tasks (with max_retries > 0) rather than values of put where they must survive."
        )
        self.core.objects.own.reset(entry)
        error = exceptions.ObjectReconstructionFailedError(hexid, reason, text)
        self.core.objects.complete(entry, FAILED, serialize_system_error(error))

    # --- cancellation --------------------------------------------------------------------------------------

    def cancel(self, asked: tuple[bytes, bool, bool]) -> None:
        """``(task id, force, recursive)``: the task never starts, or is interrupted, or its worker is killed."""
        task_id, force, recursive = asked
        entry = self.core.objects.own.entries.get(task_id + b"\0\0\0\0")
        record = entry.task if entry is not None else None
        if isinstance(entry, BorrowedEntry):
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
        elif record.state == WAITING or (record.state == QUEUED and self.submission.remove(record)):
            self.fail(record, self._cancelled_error(record))
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
        if record.state != PUSHED or record.lease is not lease or lease.id not in self.submission.leases:
            return
        if next(iter(lease.in_flight.values()), None) is record:
            self._kill(record, lease)
        else:
            self.core.loop.call_later(TICK_S, self._kill_when_first, record, lease)

    def _kill(self, record: TaskRecord, lease: Lease) -> None:
        """The task could not be interrupted (or must not be asked): its worker dies; what was queued behind it runs elsewhere."""
        if record.state == PUSHED and record.lease is lease and lease.id in self.submission.leases:
            cause = Cause("killed", f"Task {record.display_name} was cancelled.")
            self.core.agent.send(KillProcess(lease.worker.worker_id, cause))

    def has_unfinished(self) -> bool:
        """Whether calls that a task of this process submitted are still to be answered."""
        return bool(self._children)

    def cancel_children(self, task_id: bytes, force: bool) -> None:
        """Recursive cancel: everything that the cancelled task started here."""
        for record in list(self._children.get(task_id, ())):
            self.cancel_record(record, force, True)

    def on_cancel_task(self, _channel: Any, message: CancelTask) -> None:
        """A borrower asks the owner to cancel."""
        self.cancel((message.task_id, message.force, message.recursive))

    def _cancelled_error(self, record: TaskRecord) -> bytes:
        text = f"Task {record.display_name} (id {record.task_id.hex()}) was cancelled."
        return serialize_system_error(exceptions.TaskCancelledError(record.task_id.hex(), text))

    # --- the end of this process ---------------------------------------------------------------------------

    def fail_all(self, error: bytes) -> None:
        """The node agent is gone: nothing will be answered any more."""
        for queue in self.submission.queues.values():
            while queue.ready:
                self.fail(queue.ready.popleft(), error)
        for lease in list(self.submission.leases.values()):
            for record in self.submission.lost(lease):
                self.fail(record, error)


def _short(cause: Cause) -> str:
    """One line for a notice."""
    return describe_cause(cause).splitlines()[0]
