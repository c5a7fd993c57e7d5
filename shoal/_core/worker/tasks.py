"""Tasks as their owner's I/O thread sees them: their arguments, and their end.

submit -> dependencies ready -> leasing.py -> TaskDone -> complete the returns
                                           -> worker lost -> retry or WorkerCrashedError
cancelled: cancellation.py; a result lost later: recovery.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal._base.ids import TaskId, object_id
from shoal._core.serialization import describe_cause, serialize_dependent_error, serialize_system_error, worker_crashed
from shoal._core.wire.messages import DRAINED, FAILED, LOST, Cause, PushTask, TaskDone, Value

from .cancellation import cancelled_error
from .entries import STORED, Entry, Stored, data_of, dep_of
from .peers import Peer
from .records import FINISHED, WAITING, TaskRecord

if TYPE_CHECKING:
    from .core import Core


class Tasks:
    """What this process submitted, from its arguments to its results. I/O thread only."""

    def __init__(self, core: Core) -> None:
        self.core = core
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
        self.core.cancellation.started(record)
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
            self.fail(record, cancelled_error(record))
            return
        for entry in record.deps:
            if entry.kind == FAILED:
                entry.seen = True
                self.fail(record, serialize_dependent_error(entry.data, record.display_name))
                return
        self.core.leasing.enqueue(record)

    def wire_task(self, peer: Peer, record: TaskRecord) -> PushTask:
        message = wire_message(peer.template_index(record.template), record)
        if record.deps:
            message.deps = [dep_of(entry, self.core.me) for entry in record.deps]
            for entry in record.deps:
                self.core.objects.told(entry, peer.address.node_id)
            message.stored_args = record.stored_args
        return message

    # --- again ---------------------------------------------------------------------------------------------

    def lost_with_worker(self, record: TaskRecord, cause: Cause) -> None:
        if record.cancelled:
            self.fail(record, cancelled_error(record))
        elif record.retries != 0 or (cause.kind == DRAINED and record.template.max_retries != 0):
            self.core.note(f"Task {record.display_name} lost its worker ({_short(cause)}); running it again, attempt {record.attempt + 2}.")
            self._retry(record, free=cause.kind == DRAINED)
        else:
            tries = record.attempt + 1
            error = worker_crashed(cause, task_name=record.display_name, attempt=tries, max_attempts=tries)
            self.fail(record, serialize_system_error(error))

    def _retry(self, record: TaskRecord, *, free: bool = False) -> None:
        if record.retries > 0 and not free:
            record.retries -= 1
        record.next_attempt()
        self.requeue(record)

    def requeue(self, record: TaskRecord) -> None:
        if record.cancelled:
            self.fail(record, cancelled_error(record))
            return
        self.core.leasing.enqueue(record, front=True)

    # --- the end of a task ---------------------------------------------------------------------------------

    def discard(self, message: TaskDone, sender: bytes) -> None:
        """A reply to a call that is over already: give back what came with it."""
        objects = self.core.objects
        for index, value in enumerate(message.results):
            for held in objects.own.receive(value.refs, sender):
                objects.own.unpin(held)
            if value.kind == STORED:
                returned = object_id(TaskId(message.task_id), index)
                entry = objects.own.entries.get(returned)
                if entry is None or entry.kind == FAILED:
                    objects.free_leftover(returned, value.node_id)

    def finish(self, record: TaskRecord, message: TaskDone, sender: bytes) -> None:
        """The executor's reply. ``sender``: its worker id."""
        results = message.results
        if len(results) == 1 and results[0].kind in (FAILED, LOST):
            value = results[0]
            if value.kind == LOST:
                self.core.recovery.argument_lost(record, value)
                return
            if message.retry and record.retries != 0 and not record.cancelled:
                for entry in self.core.objects.own.receive(value.refs, sender):
                    self.core.objects.own.unpin(entry)
                if record.template.actor_id:
                    self.core.actors.retry(record)
                else:
                    self._retry(record)
                return
            self.fail(record, value.data, self.core.objects.own.receive(value.refs, sender) if value.refs else None)
            return
        if record.generator is not None:
            record.generator.ended(message.num_items)
            if record.template.num_returns == -2:
                self.core.streams.complete_dynamic(record)
                self.retire(record, stored=False)
                return
        stored = False
        objects = self.core.objects
        if record.former_nodes:
            self._free_leftovers(record, results)
        for entry, value in zip(record.returns, results, strict=True):
            inner: list[Entry] | None = objects.own.receive(value.refs, sender) if value.refs else None
            if entry.kind >= 0:  # run again for the sake of another return; nobody has missed this one
                if value.kind == STORED and entry.kind == STORED:
                    stored = True
                    place = Stored(value.node_id, value.nbytes)
                    if value.kept:
                        objects.moved(entry, place)
                    else:
                        inner = objects.replaced(entry, place, inner)
                elif value.kind == STORED:
                    objects.free_leftover(entry.object_id, value.node_id)
                for held in inner or ():
                    objects.own.unpin(held)
                continue
            if value.kind == STORED:
                stored = True
                objects.complete(entry, STORED, data_of(value), inner)
            else:
                objects.complete(entry, value.kind, value.data, inner)
        self.retire(record, stored or (record.generator is not None and record.generator.stored))

    def _free_leftovers(self, record: TaskRecord, results: list[Value]) -> None:
        """Earlier attempts may have stored results where they ran, which is not where they lie now."""
        for entry, value in zip(record.returns, results, strict=True):
            for node_id in record.former_nodes:
                if node_id != value.node_id and not (entry.kind == STORED and node_id == entry.data.node_id):
                    self.core.objects.free_leftover(entry.object_id, node_id)

    def fail(self, record: TaskRecord, error: bytes, inner: list[Entry] | None = None) -> None:
        """Every return gets the error."""
        if record.state == FINISHED:
            return
        objects = self.core.objects
        if record.generator is not None:
            record.generator.failed(error)
        # A worker may have stored results before it failed, or before it died without a word.
        nodes = dict.fromkeys((*record.former_nodes, record.node_id)) if record.node_id else ()
        for entry in record.returns:
            if inner:
                for held in inner:
                    held.count += 1
            if entry.kind < 0:
                for node_id in nodes:
                    objects.free_leftover(entry.object_id, node_id)
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
            self.core.actors.call_over(record.template.actor_id)
        if record.generator is not None:
            self.core.streams.task_over(record)
        record.lease = None
        self.finished_count += 1
        self.core.cancellation.ended(record)
        if stored and record.template.max_retries != 0 and not (record.template.actor_id and record.generator is not None):
            if record.template.actor_id:
                self.core.actors.let_go(record)
            held = [entry for entry in record.returns if self.core.objects.own.entries.get(entry.object_id) is entry]
            if held or record.generator is not None:
                self.core.recovery.lineage.keep(record)
                return
        unpin = self.core.objects.own.unpin
        for entry in record.deps:
            unpin(entry)
        for entry in record.held:
            unpin(entry)
        for entry in record.returns:
            entry.task = None

    # --- the end of this process ---------------------------------------------------------------------------

    def fail_all(self, error: bytes) -> None:
        """The node agent is gone: nothing will be answered any more."""
        for queue in self.core.leasing.submission.queues.values():
            while queue.ready:
                self.fail(queue.ready.popleft(), error)
        for lease in list(self.core.leasing.submission.leases.values()):
            for record in self.core.leasing.submission.lost(lease):
                self.fail(record, error)


def wire_message(template: int, record: TaskRecord) -> PushTask:
    """Return the message of a call, but for the references among its arguments. Any thread."""
    message = PushTask(record.task_id, template, record.args)
    if record.attempt:
        message.attempt = record.attempt
    if record.parent:
        message.parent = record.parent
    if record.name:
        message.name = record.name
    return message


def _short(cause: Cause) -> str:
    """One line for a notice."""
    return describe_cause(cause).splitlines()[0]
