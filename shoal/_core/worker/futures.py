"""Values as futures: ``await ref`` on any asyncio loop, ``ref.future()`` for ``concurrent.futures``.

The I/O thread brings the entry; the value is unpickled on the thread that the future belongs to, because unpickling runs user code.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

from shoal._base.references import ObjectRef
from shoal._core.serialization import deserialize, deserialize_error

from .bridge import Bridge
from .core import Core
from .entries import FAILED, INLINE, STORED, Entry
from .values import Values


class _Refusal(NamedTuple):
    """Instead of a place: this node has no room for a copy of the value."""

    #: Serialized.
    error: bytes


#: (future, entry, place of a stored value, the reference, which lives until then)
_Delivered = tuple[Any, Entry, Any, Any]
_FINISHED = object()


class Futures:
    """Makes futures and settles them."""

    def __init__(self, core: Core, bridge: Bridge, values: Values) -> None:
        self._core = core
        self._post = bridge.post
        self._check_open = bridge.check_open
        self._load = values.load
        self._entries = core.objects.own.entries
        self._deliveries: dict[int, _LoopDelivery] = {}
        self._thread: _FutureThread | None = None

    def close(self) -> None:
        if self._thread is not None:
            self._thread.close()

    def object_future(self, ref: ObjectRef[Any]) -> Future[Any]:
        self._check_open()
        if self._thread is None:
            self._thread = _FutureThread(self)
        future: Future[Any] = Future()
        self._post(self._when_readable, (ref, self._thread.deliver, future))
        return future

    def asyncio_future(self, ref: ObjectRef[Any]) -> asyncio.Future[Any]:
        self._check_open()
        loop = asyncio.get_running_loop()
        delivery = self._deliveries.get(id(loop))
        if delivery is None or delivery.loop is not loop:
            delivery = self._deliveries[id(loop)] = _LoopDelivery(self, loop)
        future = loop.create_future()
        entry = self._entries.get(ref._id)
        if entry is not None and entry.kind == INLINE:
            future.set_result(deserialize(entry.data))
        else:
            self._post(self._when_readable, (ref, delivery.deliver, future))
        return future

    def _when_readable(self, wanted: tuple[ObjectRef[Any], Callable[[_Delivered], None], Any]) -> None:
        """I/O thread: deliver ``(future, entry, place, reference)`` when the value is readable here."""
        ref, deliver, future = wanted
        entry = self._core.objects.own.lookup(ref._id, ref._owner)

        def done(entry: Entry, _arg: Any) -> None:
            if entry.kind == STORED:
                self._core.objects.pin(
                    [entry],
                    lambda entry, place: deliver((future, entry, place, ref)),
                    lambda error: deliver((future, entry, _Refusal(error), ref)),
                    lost=lambda entry: self._core.objects.when_done(entry, done, None),
                )
            else:
                deliver((future, entry, None, ref))

        self._core.objects.when_done(entry, done, None)

    def settle(self, delivered: _Delivered) -> None:
        """Give a future its value. Runs on the thread that the future belongs to."""
        future, entry, place, _ref = delivered
        try:
            if future.done():
                return
            if isinstance(place, _Refusal):
                future.set_exception(_raisable(deserialize_error(place.error)))
            elif entry.kind == FAILED:
                entry.seen = True
                future.set_exception(_raisable(deserialize_error(entry.data)))
            else:
                try:
                    value = self._load(entry, {entry.object_id: place})
                except Exception as error:  # the user's class may raise while it is unpickled
                    future.set_exception(error)
                else:
                    future.set_result(value)
        finally:
            self.give_back(delivered)

    def give_back(self, delivered: _Delivered) -> None:
        """Nobody reads the value any more."""
        if delivered[2] is not None and not isinstance(delivered[2], _Refusal):
            self._post(self._core.store.unpin, delivered[1].object_id)


def _raisable(error: BaseException) -> BaseException:
    """A future cannot carry StopIteration: asyncio would turn it into a hang."""
    if isinstance(error, StopIteration):
        return RuntimeError(f"The task raised StopIteration: {error}")
    return error


class _LoopDelivery:
    """Brings values to one asyncio loop, many per wake-up."""

    def __init__(self, futures: Futures, loop: asyncio.AbstractEventLoop) -> None:
        self._futures = futures
        self.loop = loop
        self._arrived: deque[_Delivered] = deque()
        self._scheduled = False

    def deliver(self, item: _Delivered) -> None:
        """I/O thread."""
        self._arrived.append(item)
        if not self._scheduled:
            self._scheduled = True
            try:
                self.loop.call_soon_threadsafe(self._settle)
            except RuntimeError:  # the loop is closed, and its futures with it
                self._scheduled = False
                while self._arrived:
                    self._futures.give_back(self._arrived.popleft())

    def _settle(self) -> None:
        self._scheduled = False
        while self._arrived:
            self._futures.settle(self._arrived.popleft())


class _FutureThread:
    """Settles ``concurrent.futures`` futures: unpickling runs user code, which must not run on the I/O thread."""

    def __init__(self, futures: Futures) -> None:
        self._futures = futures
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="shoal-futures", daemon=True)
        self._thread.start()

    def deliver(self, item: _Delivered) -> None:
        self._queue.put(item)

    def _run(self) -> None:
        while (item := self._queue.get()) is not _FINISHED:
            if item[0].set_running_or_notify_cancel():
                self._futures.settle(item)
            else:
                self._futures.give_back(item)
            item = None  # it holds a reference

    def close(self) -> None:
        self._queue.put(_FINISHED)
        if threading.current_thread() is not self._thread:
            self._thread.join()
