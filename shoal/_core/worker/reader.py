"""How a user thread gets values and waits for them: what is here is read at once, for the rest one operation blocks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

from shoal import exceptions
from shoal._base.references import ObjectRef, ObjectRefGenerator
from shoal._base.runtime import Runtime
from shoal._core.serialization import deserialize, deserialize_error

from .bridge import Bridge
from .core import Core
from .entries import FAILED, INLINE, STORED, Entry
from .execution.calls import current_call
from .records import PUSHED
from .values import Values
from .waiting import GetOperation, WaitOperation

_logger = logging.getLogger(__name__)


class Reader:
    """``get`` and ``wait``, from any user thread."""

    def __init__(
        self, core: Core, bridge: Bridge, values: Values, runtime: Runtime, blocked: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._core = core
        self._bridge = bridge
        self._post = bridge.post
        self._load = values.load
        self._runtime = runtime
        self._blocked = blocked
        self._entries = core.objects.own.entries
        #: Set by an async actor until its first blocking get.
        self.warn_async_get = False

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        if self.warn_async_get:
            self._warn_async_get()
        entries = self._entries
        if len(refs) == 1:
            entry = entries.get(refs[0]._id)
            if entry is not None and entry.kind == INLINE:
                return [deserialize(entry.data)]
            if entry is not None and entry.kind == STORED and (place := self._core.store.hold_if_here(entry.object_id)) is not None:
                try:
                    return [self._load(entry, {entry.object_id: place})]
                finally:
                    self._core.store.release(entry.object_id)
        self._bridge.check_refs(refs, self._runtime)
        found = [entries.get(ref._id) for ref in refs]
        places: dict[bytes, Any] = {}
        if any(entry is None or (entry.kind != INLINE and entry.kind != FAILED) for entry in found):
            places = self._wait_readable(refs, found, timeout_s)
            found = [entries.get(ref._id) for ref in refs]
        try:
            for entry in found:
                if entry is not None and entry.kind == FAILED:
                    entry.seen = True
                    raise deserialize_error(entry.data)
            return [self._load(entry, places) for entry in found]
        finally:
            for object_id in places:
                self._post(self._core.store.unpin, object_id)

    def _warn_async_get(self) -> None:
        """Say once that a get on the event loop's thread stops every other call of this actor."""
        if asyncio._get_running_loop() is None:
            return
        self.warn_async_get = False
        call = current_call.get()
        _logger.warning(
            "A blocking get() in %s, an async actor: it stops the event loop, and with it all other calls of the actor, until the value is "
            "there. Use `await ref`, or asyncio.gather for several. RAY_WARN_BLOCKING_GET_INSIDE_ASYNC=0 silences this.",
            "a method" if call is None else call.name,
        )

    def _wait_readable(self, refs: Sequence[ObjectRef[Any]], found: list[Entry | None], timeout_s: float | None) -> dict[bytes, Any]:
        """Block until all values are readable here, or one is an error. Returns the places of stored ones, pinned."""
        if timeout_s == 0:
            if any(entry is None or (entry.kind < 0 and entry.owner is None) for entry in found):
                raise self._timeout(refs, found, 0)
            timeout_s = 0.0 if any(entry is not None and entry.kind < 0 for entry in found) else 60.0
            timeout_s = max(timeout_s, 0.2)
        operation = GetOperation([ref._id for ref in refs])
        try:
            if len(refs) == 1 and _is_under_way(found[0]):
                # The reply wakes the I/O thread, which need not be awake before; if it was faster than this thread, it does not look again.
                self._bridge.post_later(self._core.objects.start_get, operation)
                if not _is_under_way(found[0]):
                    self._bridge.inbox.signal()
            else:
                self._post(self._core.objects.start_get, operation)
            with self._blocked():
                done = operation.wait(timeout_s)
            if not done:
                raise self._timeout(refs, [self._entries.get(ref._id) for ref in refs], timeout_s)
            if operation.refusal:
                raise deserialize_error(operation.refusal)
            return dict(operation.places)
        except BaseException:
            self._post(self._core.objects.end_operation, operation)
            raise

    def _timeout(self, refs: Sequence[ObjectRef[Any]], found: Sequence[Entry | None], timeout_s: float | None) -> Exception:
        missing = [ref for ref, entry in zip(refs, found, strict=True) if entry is None or entry.kind < 0]
        first = missing[0].hex() if missing else refs[0].hex()
        record = next((entry.task for entry in found if entry is not None and entry.kind < 0 and entry.task is not None), None)
        what = f", made by {record.display_name}" if record is not None else ""
        return exceptions.GetTimeoutError(
            f"get() waited {timeout_s} s, and {len(missing)} of {len(refs)} objects are not ready; the first is {first}{what}. "
            "Nothing was cancelled: call get() again, give it a longer timeout, or end the task with shoal.cancel()."
        )

    def wait(self, refs: Sequence[Any], num_returns: int, timeout_s: float | None, fetch_local: bool) -> tuple[list[Any], list[Any]]:
        ready, rest = self._split(refs, num_returns, fetch_local)
        if len(ready) >= num_returns:
            return ready, rest
        self._bridge.check_refs(refs, self._runtime)
        if timeout_s == 0:
            self._nudge(refs, fetch_local)
            return self._split(refs, num_returns, fetch_local)
        streams = [ref for ref in refs if isinstance(ref, ObjectRefGenerator)]
        operation = WaitOperation([ref._id for ref in refs if isinstance(ref, ObjectRef)], num_returns, fetch=fetch_local)
        self._post(self._core.objects.start_wait, operation)
        for stream in streams:
            future: Future[Any] = Future()
            self._post(self._core.streams.watch, (stream._task_id, stream._index, future))
            future.add_done_callback(lambda _done: self._post(self._stream_ready, operation))
        try:
            with self._blocked():
                operation.wait(timeout_s)
        finally:
            self._end(operation)
        return self._split(refs, num_returns, fetch_local, operation.ready)

    def _stream_ready(self, operation: WaitOperation) -> None:
        operation.missing -= 1
        if operation.missing <= 0:
            operation.fire()

    def _nudge(self, refs: Sequence[Any], fetch_local: bool) -> None:
        """``timeout=0`` on references or values of elsewhere: have them fetched, so that a later call can see them ready."""
        far = [ref._id for ref in refs if isinstance(ref, ObjectRef) and (ref._owner is not None or self._lies_elsewhere(ref, fetch_local))]
        if far:
            operation = WaitOperation(far, len(far), fetch=fetch_local)
            self._post(self._core.objects.start_wait, operation)
            operation.wait(0.02)
            self._end(operation)

    def _end(self, operation: WaitOperation) -> None:
        if not operation.fired:
            self._post(self._core.objects.end_operation, operation)

    def _lies_elsewhere(self, ref: ObjectRef[Any], fetch_local: bool) -> bool:
        entry = self._entries.get(ref._id)
        return fetch_local and entry is not None and self._core.objects.is_elsewhere(entry)

    def _split(
        self, refs: Sequence[Any], num_returns: int, fetch_local: bool, seen_ready: AbstractSet[bytes] = frozenset()
    ) -> tuple[list[Any], list[Any]]:
        ready: list[Any] = []
        rest: list[Any] = []
        entries, is_elsewhere = self._entries, self._core.objects.is_elsewhere
        for number, ref in enumerate(refs):
            if isinstance(ref, ObjectRefGenerator):
                done = ref.next_ready()
            else:
                entry = entries.get(ref._id)
                done = entry is not None and entry.kind >= 0 and not (fetch_local and entry.kind == STORED and is_elsewhere(entry))
                done = done or ref._id in seen_ready
            if done:
                ready.append(ref)
                if len(ready) == num_returns:
                    rest.extend(refs[number + 1 :])
                    break
            else:
                rest.append(ref)
        return ready, rest


def _is_under_way(entry: Entry | None) -> bool:
    """Whether a worker has the task that makes the object."""
    if entry is None or entry.kind >= 0 or entry.owner is not None:
        return False
    record = entry.task
    return record is not None and record.state == PUSHED
