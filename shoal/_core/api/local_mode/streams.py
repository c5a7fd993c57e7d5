"""Generators of a local session: items are made ahead of the consumer, up to the limit of backpressure."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from shoal._base.ids import ObjectId, TaskId, object_id
from shoal._base.references import ObjectRef


class LocalStream:
    """The items of one streaming call. Item ``i`` is return number ``i + 1``; return 0 is the end."""

    def __init__(self, task_id: bytes, limit: int) -> None:
        self.task_id = task_id
        #: Items not yet consumed at most; -1: any number.
        self.limit = limit
        #: None where the consumer has taken the reference over.
        self.items: list[ObjectRef[Any] | None] = []
        self.finished = False
        self.consumed = 0
        #: Takes the next step of a paused generator.
        self.resume: Callable[[], None] | None = None
        #: Unwinds a paused generator.
        self.close: Callable[[], None] | None = None

    def next_id(self) -> ObjectId:
        return object_id(TaskId(self.task_id), len(self.items) + 1)

    def full(self) -> bool:
        return self.limit > 0 and len(self.items) - self.consumed >= self.limit

    def ready(self, index: int) -> bool:
        return self.finished or index < len(self.items)

    def take(self, index: int) -> ObjectRef[Any] | None:
        """Hand item ``index`` over; None at the end."""
        if index >= len(self.items):
            return None
        ref, self.items[index] = self.items[index], None
        return ref


class SteppedGenerator:
    """Runs a plain generator until the stream is full or over, again and again, each time in the context in which the call began."""

    def __init__(
        self,
        stream: LocalStream,
        items: Iterator[Any],
        deliver: Callable[[Any], None],
        end: Callable[[BaseException | None], None],
    ) -> None:
        self._stream = stream
        self._items = items
        self._deliver = deliver
        self._end = end
        self._context = contextvars.copy_context()
        self._running = False

    def advance(self) -> None:
        """Make items as long as there is room."""
        stream = self._stream
        if self._running or stream.finished:
            return
        self._running = True
        try:
            while not stream.full():
                try:
                    value = self._context.run(next, self._items)
                except StopIteration:
                    self._end(None)
                    return
                except BaseException as error:  # user code; what it raises is the value of the last item
                    self._end(error)
                    return
                self._deliver(value)
        finally:
            self._running = False

    def close(self) -> None:
        """Nobody takes items any more: unwind a paused generator."""
        close = getattr(self._items, "close", None)
        if close is not None and not self._running:
            self._context.run(close)
