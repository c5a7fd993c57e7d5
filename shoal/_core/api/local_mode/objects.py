"""The objects of a local session, and who still refers to them.

Counts change in a queue, because ``ObjectRef.__del__`` may run anywhere; whoever finds the queue unattended works it off.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from shoal._base.references import ObjectRef
from shoal._core.serialization import Serialized, deserialize, deserialize_error
from shoal.exceptions import GetTimeoutError


class LocalObject:
    """One object: pending, a serialized value, or a serialized error."""

    __slots__ = ("callbacks", "count", "data", "error", "object_id", "refs")

    def __init__(self, object_id: bytes) -> None:
        self.object_id = object_id
        self.count = 0
        self.data: bytes | None = None
        self.error: bytes | None = None
        #: References inside the value, which live as long as it does.
        self.refs: list[ObjectRef[Any]] = []
        self.callbacks: list[Callable[[LocalObject], None]] = []

    @property
    def done(self) -> bool:
        return self.data is not None or self.error is not None

    def read(self) -> Any:
        """Return a new copy of the value, or raise the error."""
        if self.error is not None:
            raise deserialize_error(self.error)
        assert self.data is not None
        return deserialize(self.data)


class LocalObjects:
    """The table. ``changed`` is notified whenever something may have become ready."""

    def __init__(self, on_unreferenced: Callable[[bytes], None]) -> None:
        self.entries: dict[bytes, LocalObject] = {}
        self.changed = threading.Condition()
        self._on_unreferenced = on_unreferenced
        #: (object id, +1 or -1), in order.
        self._count_changes: deque[tuple[bytes, int]] = deque()
        self._counting = threading.Lock()

    def create(self, object_id: bytes) -> LocalObject:
        """Add a pending object that nobody refers to yet."""
        entry = self.entries[object_id] = LocalObject(object_id)
        return entry

    def complete(self, entry: LocalObject, value: Serialized) -> None:
        entry.refs = list(value.refs)
        entry.data = value.to_bytes()
        self._announce(entry)

    def fail(self, entry: LocalObject, error: bytes) -> None:
        entry.error = error
        self._announce(entry)

    def _announce(self, entry: LocalObject) -> None:
        with self.changed:
            callbacks, entry.callbacks = entry.callbacks, []
            self.changed.notify_all()
        for callback in callbacks:
            callback(entry)

    def when_done(self, entry: LocalObject, callback: Callable[[LocalObject], None]) -> None:
        """Call back once: now, or on the thread that completes the object."""
        with self.changed:
            if not entry.done:
                entry.callbacks.append(callback)
                return
        callback(entry)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None, what: str) -> None:
        """Block until ``condition`` holds. GetTimeoutError names ``what`` was waited for."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self.changed:
            while not condition():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise GetTimeoutError(f"Waited {timeout_s} s for {what}, in vain.")
                self.changed.wait(left)

    def count(self, object_id: bytes, change: int) -> None:
        """Note that there is one reference more or less. Never blocks."""
        self._count_changes.append((object_id, change))
        while self._count_changes and self._counting.acquire(blocking=False):
            try:
                while self._count_changes:
                    self._apply(*self._count_changes.popleft())
            finally:
                self._counting.release()

    def _apply(self, object_id: bytes, change: int) -> None:
        entry = self.entries.get(object_id)
        if entry is None:
            return
        entry.count += change
        if entry.count <= 0:
            del self.entries[object_id]
            self._on_unreferenced(object_id)
