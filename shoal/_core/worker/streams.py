"""Streaming tasks on the consumer's side: items arrive, are taken in order, and pause the producer when too many wait.

Owns: per streaming task the items that arrived. An item's entry is held by the stream until ``next`` takes it or the generator is dropped.

    worker: GeneratorItem(index) ... TaskDone(num_items)         owner: GeneratorConsumed(count) back, for backpressure
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from shoal._base.ids import TASK_BYTES, ObjectId, TaskId, object_id, task_of
from shoal._base.references import DynamicObjectRefGenerator
from shoal._core.serialization import serialize
from shoal._core.wire.messages import FAILED, INLINE, STORED, GeneratorConsumed, GeneratorItem

from .entries import Entry, data_of
from .records import FINISHED, TaskRecord

if TYPE_CHECKING:
    from .core import Core


class Stream:
    """One streaming task as its consumer sees it. Item ``i`` has return index ``i + 1``; index 0 is the end of the task."""

    def __init__(self, record: TaskRecord) -> None:
        self.record = record
        #: Items that arrived and were not taken, by index.
        self.items: dict[int, Entry] = {}
        self.received = 0
        self.taken = 0
        #: Number of items, once the task has ended.
        self.length: int | None = None
        self.error: bytes | None = None
        self.dropped = False
        #: An item lies in the object store, so the task's lineage matters.
        self.stored = False
        #: All entries ever made, while they live: the task can be run again for any of them.
        self.living: dict[bytes, Entry] = {}
        self.lock = threading.Condition()

    @property
    def drained(self) -> bool:
        return not self.living and (self.dropped or self.length is not None)

    def ended(self, num_items: int) -> None:
        with self.lock:
            self.length = num_items
            self.lock.notify_all()

    def failed(self, error: bytes) -> None:
        """The error is the value of one more item, after which the stream ends."""
        with self.lock:
            if self.length is None:
                self.error = error
                self.length = self.received + 1
            self.lock.notify_all()


class Streams:
    """All streams that this process consumes."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.by_task: dict[bytes, Stream] = {}
        self._futures: dict[bytes, list[tuple[int, Future[Any]]]] = {}
        self._watched: dict[bytes, list[tuple[int, Future[Any]]]] = {}

    def open(self, record: TaskRecord) -> Stream:
        """Any thread, before the record is submitted."""
        stream = record.generator = self.by_task[record.task_id] = Stream(record)
        return stream

    # --- I/O thread ----------------------------------------------------------------------------------------

    def on_item(self, channel: Any, message: GeneratorItem) -> None:
        stream = self.by_task.get(message.task_id)
        inner = self.core.objects.own.receive(message.value.refs, channel.address.worker_id) if message.value.refs else []
        item_id = object_id(TaskId(message.task_id), message.index + 1)
        known = stream.living.get(item_id) if stream is not None else None
        if known is not None and known.kind < 0:  # computed again
            self._complete(known, message, inner)
            return
        if stream is None or stream.dropped or message.index < stream.received:
            # Replayed by a retry, or nobody will read it.
            for held in inner:
                self.core.objects.own.unpin(held)
            value = message.value
            if value.kind == STORED and not (known is not None and known.kind == STORED and known.data.node_id == value.node_id):
                self.core.objects.free_leftover(item_id, value.node_id)
            return
        entry = self.core.objects.own.new_owned(item_id, 1)
        entry.task = stream.record
        stream.living[item_id] = entry
        stream.stored = stream.stored or message.value.kind == STORED
        self._complete(entry, message, inner)
        with stream.lock:
            stream.items[message.index] = entry
            stream.received = message.index + 1
            stream.lock.notify_all()
        self._wake(stream)

    def _complete(self, entry: Entry, message: GeneratorItem, inner: list[Entry]) -> None:
        value = message.value
        self.core.objects.complete(entry, value.kind, data_of(value), inner)

    def task_over(self, record: TaskRecord) -> None:
        """The end is known: wake whoever waits for it."""
        stream: Stream = record.generator
        if stream.error is not None and stream.received not in stream.items and not stream.dropped:
            entry = self.core.objects.own.new_owned(object_id(TaskId(record.task_id), stream.received + 1), 1)
            self.core.objects.complete(entry, FAILED, stream.error)
            with stream.lock:
                stream.items[stream.received] = entry
                stream.lock.notify_all()
        self._wake(stream)
        if stream.dropped:
            self.by_task.pop(record.task_id, None)

    def awaits(self, item_id: bytes) -> bool:
        """Whether it is an item that was not received yet, and may still come."""
        stream = self.by_task.get(task_of(ObjectId(item_id)))
        index = int.from_bytes(item_id[TASK_BYTES:], "little") - 1
        return stream is not None and not stream.dropped and index >= stream.received and (stream.length is None or index < stream.length)

    def item_released(self, entry: Entry) -> None:
        stream = getattr(entry.task, "generator", None)
        if stream is not None:
            stream.living.pop(entry.object_id, None)

    def want(self, asked: tuple[bytes, int, Future[Any]]) -> None:
        task_id, index, future = asked
        stream = self.by_task.get(task_id)
        if stream is None:
            future.set_result(None)
            return
        self._futures.setdefault(task_id, []).append((index, future))
        self._wake(stream)

    def watch(self, asked: tuple[bytes, int, Future[Any]]) -> None:
        """Settle the future when item ``index`` or the end is there; takes nothing."""
        task_id, index, future = asked
        stream = self.by_task.get(task_id)
        if stream is None or self.ready(task_id, index):
            future.set_result(None)
        else:
            self._watched.setdefault(task_id, []).append((index, future))

    def _wake(self, stream: Stream) -> None:
        watched = self._watched.pop(stream.record.task_id, None)
        for index, future in watched or ():
            if self.ready(stream.record.task_id, index):
                future.set_result(None)
            else:
                self._watched.setdefault(stream.record.task_id, []).append((index, future))
        waiting = self._futures.pop(stream.record.task_id, None)
        if not waiting:
            return
        left = []
        for index, future in waiting:
            if index in stream.items or (stream.length is not None and index >= stream.length):
                if future.set_running_or_notify_cancel():
                    future.set_result(self.take(stream, index))
            else:
                left.append((index, future))
        if left:
            self._futures[stream.record.task_id] = left

    def consumed(self, told: tuple[bytes, int]) -> None:
        task_id, count = told
        stream = self.by_task.get(task_id)
        if stream is not None:
            stream.taken = max(stream.taken, count)
            if stream.record.template.backpressure > 0:
                self._tell(stream, GeneratorConsumed(task_id, count))
            self._forget_if_done(stream)

    def dropped(self, task_id: bytes) -> None:
        """The generator object is gone: free what was not taken; the task itself runs on."""
        stream = self.by_task.get(task_id)
        if stream is None:
            return
        with stream.lock:
            stream.dropped = True
            items, stream.items = stream.items, {}
        for entry in items.values():
            self.core.objects.own.unpin(entry)
        self._tell(stream, GeneratorConsumed(task_id, stream.taken, dropped=True))
        if stream.length is not None:
            self.by_task.pop(task_id, None)
        self.core.flush()

    def _forget_if_done(self, stream: Stream) -> None:
        if stream.length is not None and stream.taken >= stream.length and stream.record.state == FINISHED:
            self.by_task.pop(stream.record.task_id, None)

    def _tell(self, stream: Stream, message: GeneratorConsumed) -> None:
        record = stream.record
        if record.template.actor_id:
            calls = self.core.actors.calls.get(record.template.actor_id)
            channel: Any = calls.channel if calls is not None else None
        else:
            channel = record.lease.channel if record.lease is not None else None
        if channel is not None:
            channel.send(message)

    def complete_dynamic(self, record: TaskRecord) -> None:
        """``num_returns="dynamic"``: the one return is the collection of references to all items."""
        stream: Stream = record.generator
        refs = [self.core.make_ref(entry) for _, entry in sorted(stream.items.items())]
        value = serialize(DynamicObjectRefGenerator(refs))
        inner = list(stream.items.values())
        for entry in inner:
            entry.count += 1
        self.core.objects.complete(record.returns[0], INLINE, value.to_bytes(), inner)
        stream.items.clear()
        self.by_task.pop(record.task_id, None)

    # --- any thread ----------------------------------------------------------------------------------------

    def next(self, task_id: bytes, index: int, timeout_s: float | None) -> Any:
        """Return the reference of item ``index``; None at the end. Raises TimeoutError."""
        stream = self.by_task.get(task_id)
        if stream is None:
            return None
        with stream.lock:
            if not stream.lock.wait_for(lambda: index in stream.items or (stream.length is not None and index >= stream.length), timeout_s):
                raise TimeoutError
        return self.take(stream, index)

    def ready(self, task_id: bytes, index: int) -> bool:
        stream = self.by_task.get(task_id)
        return stream is None or index in stream.items or (stream.length is not None and index >= stream.length)

    def take(self, stream: Stream, index: int) -> Any:
        """The stream's hold on the item becomes the reference's."""
        with stream.lock:
            entry = stream.items.pop(index, None)
        return None if entry is None else self.core.make_ref(entry)
