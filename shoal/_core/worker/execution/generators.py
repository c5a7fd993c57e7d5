"""Streaming results: each yielded value becomes an object of the caller's at once.

The producer pauses when ``backpressure`` yielded items are not yet consumed (GeneratorConsumed counts them). An exception ends
the stream: it is the reply's error, which the owner shows as one more item.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from shoal._base import ids
from shoal._core.serialization import serialize
from shoal._core.wire.messages import INLINE, GeneratorItem, Value

from .calls import Call, CallRunner


class StreamGate:
    """How far the consumer is. The I/O thread opens it, the producer waits at it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.consumed = 0
        self.dropped = False
        self._changed = threading.Condition()
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def consume(self, count: int, dropped: bool) -> None:
        """I/O thread: the consumer took items up to ``count``."""
        with self._changed:
            self.consumed = max(self.consumed, count)
            self.dropped = self.dropped or dropped
            self._changed.notify_all()
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting[0].call_soon_threadsafe(waiting[1].set)

    def _open(self, produced: int) -> bool:
        return self.limit <= 0 or self.dropped or produced - self.consumed < self.limit

    def wait(self, produced: int) -> None:
        """Block until fewer than ``limit`` items are unconsumed."""
        if not self._open(produced):
            with self._changed:
                self._changed.wait_for(lambda: self._open(produced))

    async def wait_async(self, produced: int) -> None:
        """The same without blocking the loop."""
        while True:
            with self._changed:
                if self._open(produced):
                    return
                event = asyncio.Event()
                self._waiting = (asyncio.get_running_loop(), event)
            await event.wait()


def stream(runner: CallRunner, call: Call, items: Iterator[Any]) -> int:
    """Send every item of a generator; returns how many."""
    count = 0
    gate: StreamGate = call.stream_gate
    for item in items:
        _send(runner, call, count, item)
        count += 1
        item = None
        gate.wait(count)
    return count


async def stream_async(runner: CallRunner, call: Call, items: AsyncIterator[Any]) -> int:
    """Send every item of an async generator; returns how many."""
    count = 0
    gate: StreamGate = call.stream_gate
    async for item in items:
        _send(runner, call, count, item)
        count += 1
        item = None
        await gate.wait_async(count)
    return count


def _send(runner: CallRunner, call: Call, index: int, item: Any) -> None:
    owner = call.caller.owner or runner.core.me
    value, refs = runner.store_value(ids.object_id(ids.TaskId(call.task.task_id), index + 1), item, owner)
    message = GeneratorItem(call.task.task_id, index, value, call.task.attempt)
    runner.inbound.inbox.post(runner.inbound.send_item, (call, message, refs))


_NONE = serialize(None).to_bytes()


def end_of_stream() -> tuple[list[Value], list[list[Any]]]:
    """The one return of a streaming task: None, when it has ended."""
    return [Value(INLINE, _NONE)], [[]]
