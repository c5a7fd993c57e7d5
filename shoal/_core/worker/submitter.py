"""Calls that this process makes: arguments serialized, entries of the returns made, the record posted. Never blocks for a task."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakValueDictionary

from shoal import exceptions
from shoal._base.ids import TaskIdSource, object_id
from shoal._base.references import ObjectRef, ObjectRefGenerator
from shoal._base.runtime import Runtime
from shoal._core.serialization import Serialized, SerializedArgs, serialize_args
from shoal._core.transport import RequestFailed
from shoal._core.wire import messages as m

from .actor_calls import CallLimit
from .bridge import Bridge
from .core import Core
from .entries import Entry
from .execution.calls import current_call
from .records import TaskRecord
from .values import Values

_NO_IDS: list[bytes] = []


class Submitter:
    """User threads' way to tasks and actors."""

    def __init__(
        self,
        core: Core,
        bridge: Bridge,
        values: Values,
        runtime: Runtime,
        ids: TaskIdSource,
        blocked: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._core = core
        self._bridge = bridge
        self._post = bridge.post
        self._inbox = bridge.inbox
        self._express = core.express
        self._values = values
        self._runtime = runtime
        self._ids = ids
        self._blocked = blocked
        self._entries = core.objects.own.entries
        self._inline_limit = core.settings.inline_limit_bytes
        self._exported: set[bytes] = set()
        #: By actor, of actors that have a limit. Handles and the actor's calls keep the records; whichever goes last takes it along.
        self._limits: WeakValueDictionary[bytes, CallLimit] = WeakValueDictionary()
        self._limits_lock = threading.Lock()
        #: Some actor has a limit: spares all others the look.
        self._limited = False

    def export(self, pickled: bytes, function_id: bytes | None = None) -> bytes:
        function_id = function_id or hashlib.sha224(pickled).digest()
        if function_id not in self._exported:
            self._post(self._core.control_store.send, m.PutFunction(function_id, self._core.job_id, pickled))
            self._exported.add(function_id)  # last: interrupted before, it is sent again, which does no harm
        return function_id

    def submit_task(self, template: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        record, deps, held, result, _alive = self._record(template, args, kwargs, name)
        if not deps and not held and template.num_returns == 1 and self._express.send(template.shape, record, self._inbox):
            return result
        self._post(self._core.tasks.submit, (record, deps, held))
        return result

    def submit_actor_call(self, template: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        limit = self._limits.get(template.actor_id) if self._limited else None
        if limit is not None and (pending := limit.submitted - limit.answered) >= limit.most:
            raise exceptions.PendingCallsLimitExceeded(
                f"{pending} calls to actor {template.name} are pending, and its max_pending_calls is {limit.most}. "
                "Wait for some of them (shoal.wait), or raise the limit."
            )
        record, deps, held, result, _alive = self._record(template, args, kwargs, name)
        if limit is not None:
            limit.submitted += 1
        elif not deps and not held and template.num_returns == 1 and self._express.send(template.actor_id, record, self._inbox):
            return result
        self._post(self._core.actors.submit, (record, deps, held, limit))
        return result

    def know_actor(self, actor_id: bytes, *, out_of_order: bool, max_pending_calls: int) -> CallLimit | None:
        """A handle of the actor appeared in this process; it keeps what is returned."""
        if out_of_order:
            # Told for each handle: the I/O thread forgets an actor with its last handle, maybe just now.
            self._post(self._core.actors.runs_out_of_order, actor_id)
        if max_pending_calls <= 0:
            return None
        self._limited = True
        with self._limits_lock:
            return self._limits.setdefault(actor_id, CallLimit(max_pending_calls))

    def _record(
        self, template: m.TaskTemplate, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
    ) -> tuple[TaskRecord, Sequence[bytes], Sequence[bytes], Any, Any]:
        """Make the record of a call, the entries of its returns, what the caller gets, and what must stay alive until the call is posted:
        references made on the way, whose drop would be posted before the call pins them."""
        self._bridge.check_open()
        serialized = serialize_args(args, kwargs)
        if serialized.deps or serialized.refs:
            self._check_session(serialized)
        deps: list[bytes] = [ref._id for ref in serialized.deps] if serialized.deps else _NO_IDS
        held: list[bytes] = [ref._id for ref in serialized.refs] if serialized.refs else _NO_IDS
        data, blob = self._args_data(serialized.data)
        if blob is not None:
            deps = [*deps, blob._id]
        task_id = self._ids.next()
        call = current_call.get()
        parent = b"" if call is None else call.task.task_id
        count = template.num_returns
        result: Any
        if count == 1:
            first = task_id + b"\0\0\0\0"
            entry = Entry(first, 1)
            record = TaskRecord(task_id, template, data, [entry], parent, name)
            entry.task = record
            self._entries[first] = entry
            result = ObjectRef(first, None, counted=True, _runtime=self._runtime)
        else:
            number = max(count, 1) if count < 0 else count
            entries = [Entry(object_id(task_id, i), 1) for i in range(number)]
            record = TaskRecord(task_id, template, data, entries, parent, name)
            refs: list[ObjectRef[Any]] = []
            for entry in entries:
                entry.task = record
                self._entries[entry.object_id] = entry
                refs.append(ObjectRef(entry.object_id, None, counted=True, _runtime=self._runtime))
            result = refs or None
            if count < 0:
                self._core.streams.open(record)
                result = ObjectRefGenerator(task_id, refs[0], self._runtime) if count == -1 else refs[0]
        record.stored_args = blob is not None
        return record, deps, held, result, (serialized, blob)

    def _args_data(self, data: bytes | Serialized) -> tuple[bytes, ObjectRef[Any] | None]:
        """Return the arguments for the message, or, when they are too large for one, the object that holds them."""
        if type(data) is bytes:
            if len(data) <= self._inline_limit:
                return data, None
            data = Serialized([data], len(data), [])
        elif data.nbytes <= self._inline_limit:  # type: ignore[union-attr]
            return data.to_bytes(), None  # type: ignore[union-attr]
        return b"", self._values.put_serialized(data)  # type: ignore[arg-type]

    def _check_session(self, serialized: SerializedArgs) -> None:
        """Raise ValueError for an argument that is, or holds, a reference of an earlier session."""
        self._bridge.check_refs(serialized.deps, self._runtime)
        self._bridge.check_refs(serialized.refs, self._runtime)

    def create_actor(self, spec: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._bridge.check_open()
        serialized = serialize_args(args, kwargs)
        self._check_session(serialized)
        spec.owner = self._core.me
        deps = [ref._id for ref in serialized.deps]
        held = [ref._id for ref in serialized.refs]
        spec.args, blob = self._args_data(serialized.data)
        if blob is not None:
            deps.append(blob._id)
            spec.stored_args = True
        if not spec.name:
            self._post(self._core.actors.create, (spec, deps, held, None))
            return
        future: Future[None] = Future()
        self._post(self._core.actors.create, (spec, deps, held, future))
        with self._blocked():
            try:
                future.result()
            except RequestFailed as error:
                raise self._bridge.as_exception(error) from None
