"""What a blocked user thread waits for.

The thread makes an operation, posts it to the I/O thread and blocks on its lock; the I/O thread tells the operation about every
object that completes and releases the lock once. One operation per blocked thread, so telling all of them costs nothing that
grows with the number of objects.
"""

from __future__ import annotations

import threading
from asyncio import Future
from typing import Any

from .entries import FAILED, Entry


class Operation:
    """Base: fires once."""

    __slots__ = ("abandoned", "fired", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.fired = False
        #: The user thread gave up (timeout, Ctrl-C); what arrives is to be given back.
        self.abandoned = False

    def fire(self) -> None:
        if not self.fired:
            self.fired = True
            self.lock.release()

    def wait(self, timeout_s: float | None) -> bool:
        """Block until fired; False on timeout. Ctrl-C interrupts it."""
        if timeout_s is None:
            return self.lock.acquire()
        return self.lock.acquire(timeout=max(0.0, min(timeout_s, threading.TIMEOUT_MAX)))


class GetOperation(Operation):
    """All values, readable here; or the first error."""

    __slots__ = ("object_ids", "pending", "pins", "places", "refusal", "unfinished")

    def __init__(self, object_ids: list[bytes]) -> None:
        super().__init__()
        self.object_ids = object_ids
        #: Entries that are not readable yet, in the order asked for: a set of objects would be visited in the order of their addresses.
        self.pending: dict[Entry, None] = {}
        #: Those of them that are not even computed yet.
        self.unfinished: dict[Entry, None] = {}
        #: object id -> place in the arena, pinned for this operation.
        self.places: dict[bytes, object] = {}
        #: What is being made readable; cancelled when the thread gives up.
        self.pins: set[Future[Any]] = set()
        #: Serialized error: this node has no room for one of them.
        self.refusal = b""

    def refused(self, error: bytes) -> None:
        """One of them cannot be made readable here."""
        if not self.fired:
            self.refusal = error
            self.fire()

    def arrived(self, entry: Entry) -> None:
        """The value is readable."""
        self.pending.pop(entry, None)
        if not self.pending or entry.kind == FAILED:
            self.fire()


class WaitOperation(Operation):
    """Any ``missing`` more of ``pending``. ``fetch``: a stored value counts when it is here."""

    __slots__ = ("fetch", "missing", "object_ids", "pending", "ready")

    def __init__(self, object_ids: list[bytes], missing: int, *, fetch: bool = False) -> None:
        super().__init__()
        self.fetch = fetch
        self.object_ids = object_ids
        self.missing = missing
        self.pending: set[Entry] = set()
        #: Ids of those that were ready at some moment: when the thread looks, another may have been lost again, and is counted.
        self.ready: set[bytes] = set()

    def note(self, entry: Entry) -> None:
        """``entry`` is ready."""
        if entry in self.pending:
            self.pending.discard(entry)
            self.ready.add(entry.object_id)
            self.missing -= 1
            if self.missing <= 0:
                self.fire()


class CallOperation(Operation):
    """The result of something that runs on the I/O thread."""

    __slots__ = ("error", "result")

    def __init__(self) -> None:
        super().__init__()
        self.result: object = None
        self.error: BaseException | None = None
