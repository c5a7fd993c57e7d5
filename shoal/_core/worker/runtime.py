"""The user threads' half of a driver or worker: the ``Runtime`` that the public API talks to.

Every method may be called from any user thread. What needs the I/O thread is posted to the inbox; what must wait blocks on an operation.

    submit_task   serialize, make entries and a record, post            never blocks
    put           small: an entry, nothing else. Large: create, write here, seal
    get, wait     look at entries that are done; for the rest post one operation and block
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from shoal import exceptions
from shoal._base.ids import ObjectId, TaskIdSource, object_id
from shoal._base.references import ObjectRef, ObjectRefGenerator
from shoal._base.runtime import TaskContext
from shoal._base.settings import Settings
from shoal._core.serialization import Serialized, capture, deserialize, deserialize_error, error_named, serialize, serialize_args
from shoal._core.transport import ConnectionLost, RequestFailed
from shoal._core.wire import messages as m

from .actors import token_id
from .core import Core
from .entries import FAILED, INLINE, PENDING, STORED, Entry
from .execution.calls import ActorExit, Call, current_call
from .inbox import Inbox
from .records import TaskRecord
from .waiting import CallOperation, GetOperation, WaitOperation

_FINISHED = object()
_logger = logging.getLogger(__name__)


class CoreRuntime:
    """The process's runtime. Made by ``connect.py`` once the I/O thread runs."""

    def __init__(
        self, core: Core, inbox: Inbox, *, job_config: m.JobConfigRecord, control_address: str, session_dir: str, is_driver: bool
    ) -> None:
        self.core = core
        self.inbox = inbox
        self.settings: Settings = core.settings
        self.address = core.me
        self.job_id = core.job_id
        self.worker_id = core.me.worker_id
        self.node_id = core.me.node_id
        self.namespace = job_config.namespace
        self.session_dir = session_dir
        self.is_driver = is_driver
        #: What the job's workers need; in a worker, since it belongs to a job.
        self.job_config = job_config
        self.control_address = control_address
        self.core.runtime = self
        self._own = core.objects.own
        self._entries = core.objects.own.entries
        self._ids = TaskIdSource(self.job_id)  # type: ignore[arg-type]
        self._driver_task = self._ids.next()
        self._exported: set[bytes] = set()
        #: Actor id -> max_pending_calls, of actors that have one; and how many calls were submitted to those.
        self._pending_limits: dict[bytes, int] = {}
        self._submitted: dict[bytes, int] = {}
        self._out_of_order: set[bytes] = set()
        self._deliveries: dict[int, _LoopDelivery] = {}
        self._future_thread: _FutureThread | None = None
        self._closed = False
        self._shut = threading.Lock()
        #: Set by ``worker_main``: the execution part of a worker.
        self.execution: Any = None
        self.on_shutdown: Callable[[], None] | None = None
        #: Set by an async actor until its first blocking get.
        self.warn_async_get = False
        # Bound once: these run for every reference.
        self._post = inbox.post
        self._post_later = inbox.post_later
        self._drop = core.objects.own.ref_dropped
        self._add = self._ref_added_on_loop

    # --- references ----------------------------------------------------------------------------------------

    def ref_added(self, object_id: bytes, owner: Any) -> None:
        self._post_later(self._add, (object_id, owner))

    def _ref_added_on_loop(self, added: tuple[bytes, Any]) -> None:
        self._own.ref_added(added[0], added[1])

    def ref_dropped(self, object_id: bytes) -> None:
        self._post_later(self._drop, object_id)

    def ref_pickled(self, ref: ObjectRef[Any]) -> None:
        if capture.record(ref):
            return
        if not self.settings.allow_out_of_band_refs:
            raise exceptions.OufOfBandObjectRefSerializationException(
                f"{ref!r} was pickled outside of shoal (for example with pickle.dumps), where it cannot be counted. Pass it to a task, "
                "put it inside a value, or unset RAY_allow_out_of_band_object_ref_serialization."
            )
        self._post(self._pin_forever, (ref.binary(), ref._owner))

    def _pin_forever(self, pinned: tuple[bytes, Any]) -> None:
        entry = self._own.lookup(pinned[0], pinned[1])
        if entry.owner is None:
            entry.count += 1
        else:
            self.core.owner_channel(entry.owner).send(m.PinForever(entry.object_id))

    # --- tasks ---------------------------------------------------------------------------------------------

    def export(self, pickled: bytes, function_id: bytes | None = None) -> bytes:
        function_id = function_id or hashlib.sha224(pickled).digest()
        if function_id not in self._exported:
            self._exported.add(function_id)
            self._post(self.core.control_store.send, m.PutFunction(function_id, self.job_id, pickled))
        return function_id

    def submit_task(self, template: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        record, deps, held, result, _alive = self._record(template, args, kwargs, name)
        self._post(self.core.tasks.submit, (record, deps, held))
        return result

    def submit_actor_call(self, template: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        limit = self._pending_limits.get(template.actor_id) if self._pending_limits else None
        if limit is not None and (pending := self.pending_calls(template.actor_id)) >= limit:
            raise exceptions.PendingCallsLimitExceeded(
                f"{pending} calls to actor {template.name} are pending, and its max_pending_calls is {limit}. "
                "Wait for some of them (shoal.wait), or raise the limit."
            )
        record, deps, held, result, _alive = self._record(template, args, kwargs, name)
        if limit is not None:
            self._submitted[template.actor_id] = self._submitted.get(template.actor_id, 0) + 1
        self._post(self.core.actors.submit, (record, deps, held))
        return result

    def know_actor(self, actor_id: bytes, *, out_of_order: bool, max_pending_calls: int) -> None:
        """A handle of the actor appeared in this process."""
        if max_pending_calls > 0:
            self._pending_limits[actor_id] = max_pending_calls
        if out_of_order and actor_id not in self._out_of_order:
            self._out_of_order.add(actor_id)
            self._post(self.core.actors.runs_out_of_order, actor_id)

    def _record(
        self, template: m.TaskTemplate, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
    ) -> tuple[TaskRecord, Sequence[bytes], Sequence[bytes], Any, Any]:
        """Make the record of a call, the entries of its returns, what the caller gets, and what must stay alive until the call is posted:
        references made on the way, whose drop would be posted before the call pins them."""
        self._check_open()
        serialized = serialize_args(args, kwargs)
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
            result = ObjectRef(first, None, counted=True, _runtime=self)
        else:
            number = max(count, 1) if count < 0 else count
            entries = [Entry(object_id(task_id, i), 1) for i in range(number)]
            record = TaskRecord(task_id, template, data, entries, parent, name)
            refs: list[ObjectRef[Any]] = []
            for entry in entries:
                entry.task = record
                self._entries[entry.object_id] = entry
                refs.append(ObjectRef(entry.object_id, None, counted=True, _runtime=self))
            result = refs or None
            if count < 0:
                self.core.streams.open(record)
                result = ObjectRefGenerator(task_id, refs[0], self) if count == -1 else refs[0]
        record.stored_args = blob is not None
        return record, deps, held, result, (serialized, blob)

    def _args_data(self, data: bytes | Serialized) -> tuple[bytes, ObjectRef[Any] | None]:
        """Return the arguments for the message, or, when they are too large for one, the object that holds them."""
        if type(data) is bytes:
            if len(data) <= self.settings.inline_limit_bytes:
                return data, None
            data = Serialized([data], len(data), [])
        elif data.nbytes <= self.settings.inline_limit_bytes:  # type: ignore[union-attr]
            return data.to_bytes(), None  # type: ignore[union-attr]
        return b"", self._put_serialized(data)  # type: ignore[arg-type]

    def cancel(self, task_id: bytes, force: bool, recursive: bool) -> None:
        if force:
            entry = self._entries.get(task_id + b"\0\0\0\0")
            record = entry.task if entry is not None else None
            if record is not None and record.template.actor_id:
                raise ValueError(
                    "force=True is not possible for an actor's method: it would end the actor. Use shoal.kill(actor) to do that."
                )
        self._post(self.core.tasks.cancel, (task_id, force, recursive))

    # --- objects -------------------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        self._check_open()
        return self._put_serialized(serialize(value))

    def _put_serialized(self, serialized: Serialized) -> ObjectRef[Any]:
        object_id = ObjectId(self._ids.next() + b"\0\0\0\0")
        entry = Entry(object_id, 1)
        if serialized.nbytes <= self.settings.inline_limit_bytes:
            entry.data = serialized.to_bytes()
            entry.kind = INLINE
        else:
            self.store_object(object_id, serialized, self.address)
            entry.data = serialized.nbytes
            entry.kind = STORED
        if serialized.refs:
            self._post(self._hold_inner, (entry, [ref._id for ref in serialized.refs]))
        self._entries[object_id] = entry
        return ObjectRef(object_id, None, counted=True, _runtime=self)

    def _hold_inner(self, held: tuple[Entry, list[bytes]]) -> None:
        entry, object_ids = held
        inner = [self._own.lookup(object_id, None) for object_id in object_ids]
        for each in inner:
            each.count += 1
        entry.inner = inner

    def store_object(self, object_id: bytes, serialized: Serialized, owner: m.Address) -> None:
        """Write a large value into the object store; blocks while it is full. Raises ObjectStoreFullError, OutOfDiskError."""
        try:
            place = self._call(lambda: self.core.store.create(object_id, serialized.nbytes, owner))
        except RequestFailed as error:
            if error.kind == "ObjectExists":
                return  # an earlier attempt of the same task has stored the same object
            raise self._as_exception(error) from None
        try:
            self.core.store.write(place, serialized)
        except BaseException:
            self._post(self.core.store.abort, object_id)
            raise
        refs = [m.ObjectRefInfo(ref.binary(), ref._owner or self.address) for ref in serialized.refs]
        self._post(lambda _: self.core.store.seal(object_id, refs), None)

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        if self.warn_async_get:
            self._warn_async_get()
        entries = self._entries
        if len(refs) == 1:
            entry = entries.get(refs[0]._id)
            if entry is not None and entry.kind == INLINE:
                return [deserialize(entry.data)]
            if entry is not None and entry.kind == STORED and (place := self.core.store.hold_if_here(entry.object_id)) is not None:
                try:
                    return [self._load(entry, {entry.object_id: place})]
                finally:
                    self.core.store.release(entry.object_id)
        self._check_refs(refs)
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
                self._post(self.core.store.unpin, object_id)

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

    def _load(self, entry: Entry | None, places: dict[bytes, Any]) -> Any:
        if entry is None:
            raise exceptions.RaySystemError("An object vanished while it was being read.")
        if entry.kind == STORED:
            view, private = self.core.store.read(entry.object_id, places[entry.object_id])
            return deserialize(view, private)
        return deserialize(entry.data)

    def _wait_readable(self, refs: Sequence[ObjectRef[Any]], found: list[Entry | None], timeout_s: float | None) -> dict[bytes, Any]:
        """Block until all values are readable here, or one is an error. Returns the places of stored ones, pinned."""
        if timeout_s == 0:
            if any(entry is None or (entry.kind < 0 and entry.owner is None) for entry in found):
                raise self._timeout(refs, found, 0)
            timeout_s = 0.0 if any(entry is not None and entry.kind < 0 for entry in found) else 60.0
            timeout_s = max(timeout_s, 0.2)
        operation = GetOperation([ref._id for ref in refs])
        self._post(self.core.objects.start_get, operation)
        try:
            with self._blocked():
                done = operation.wait(timeout_s)
            if not done:
                raise self._timeout(refs, [self._entries.get(ref._id) for ref in refs], timeout_s)
        except BaseException:
            operation.abandoned = True
            raise
        finally:
            self._post(self.core.objects.end_operation, operation)
        return dict(operation.places)

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
        ready, rest = self._split(refs, num_returns)
        if len(ready) >= num_returns or timeout_s == 0:
            if len(ready) < num_returns:
                self._nudge(refs)
                ready, rest = self._split(refs, num_returns)
            return ready, rest
        streams = [ref for ref in refs if isinstance(ref, ObjectRefGenerator)]
        operation = WaitOperation([ref._id for ref in refs if isinstance(ref, ObjectRef)], num_returns)
        self._check_refs([ref for ref in refs if isinstance(ref, ObjectRef)])
        self._post(self.core.objects.start_wait, operation)
        for stream in streams:
            future = self.generator_next_ready(stream)
            future.add_done_callback(lambda _done: self._post(self._stream_ready, operation))
        try:
            with self._blocked():
                operation.wait(timeout_s)
        finally:
            operation.abandoned = True
            self._post(self.core.objects.end_operation, operation)
        return self._split(refs, num_returns)

    def _stream_ready(self, operation: WaitOperation) -> None:
        operation.missing -= 1
        if operation.missing <= 0:
            operation.fire()

    def _nudge(self, refs: Sequence[Any]) -> None:
        """``timeout=0`` on foreign references: have them fetched, so that a later call can see them ready."""
        foreign = [ref._id for ref in refs if isinstance(ref, ObjectRef) and ref._owner is not None]
        if foreign:
            operation = WaitOperation(foreign, len(foreign))
            self._post(self.core.objects.start_wait, operation)
            operation.wait(0.02)
            self._post(self.core.objects.end_operation, operation)

    def _split(self, refs: Sequence[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        ready: list[Any] = []
        rest: list[Any] = []
        entries = self._entries
        for number, ref in enumerate(refs):
            if isinstance(ref, ObjectRefGenerator):
                done = ref.next_ready()
            else:
                entry = entries.get(ref._id)
                done = entry is not None and entry.kind >= 0
            if done:
                ready.append(ref)
                if len(ready) == num_returns:
                    rest.extend(refs[number + 1 :])
                    break
            else:
                rest.append(ref)
        return ready, rest

    def _check_refs(self, refs: Sequence[ObjectRef[Any]]) -> None:
        for ref in refs:
            if ref._runtime is not self:
                raise ValueError(
                    f"The owner of {ref!r} is unknown: the reference belongs to an earlier session, which was shut down. "
                    "Make the object again in this session."
                )
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise exceptions.RaySystemError("shoal was shut down in this process. Call shoal.init() to start again.")

    # --- futures -------------------------------------------------------------------------------------------

    def object_future(self, ref: ObjectRef[Any]) -> Future[Any]:
        if self._future_thread is None:
            self._future_thread = _FutureThread(self)
        future: Future[Any] = Future()
        self._post(self._when_readable, (ref, self._future_thread.deliver, future))
        return future

    def asyncio_future(self, ref: ObjectRef[Any]) -> asyncio.Future[Any]:
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

    def _when_readable(self, wanted: tuple[ObjectRef[Any], Callable[[tuple[Any, Entry, Any, Any]], None], Any]) -> None:
        """I/O thread: deliver ``(future, entry, place, reference)`` when the value is readable here."""
        ref, deliver, future = wanted
        entry = self._own.lookup(ref._id, ref._owner)

        def done(entry: Entry, _arg: Any) -> None:
            if entry.kind == STORED:

                def pinned(place: Any) -> None:
                    deliver((future, entry, place, ref))

                self.core.objects.pin(entry, pinned)
                if entry.kind == PENDING:  # lost, and being computed again
                    self.core.objects.when_done(entry, done, None)
            else:
                deliver((future, entry, None, ref))

        self.core.objects.when_done(entry, done, None)

    def settle_future(self, delivered: tuple[Any, Entry, Any, Any]) -> None:
        """Give a future its value. Runs on the thread that the future belongs to."""
        future, entry, place, _ref = delivered
        try:
            if future.done():
                return
            if entry.kind == FAILED:
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
            if place is not None:
                self._post(self.core.store.unpin, entry.object_id)

    # --- generators ----------------------------------------------------------------------------------------

    def generator_next(self, task_id: bytes, index: int, timeout_s: float | None) -> ObjectRef[Any] | None:
        if self.core.streams.ready(task_id, index):
            return self.core.streams.next(task_id, index, timeout_s)  # type: ignore[no-any-return]
        with self._blocked():
            return self.core.streams.next(task_id, index, timeout_s)  # type: ignore[no-any-return]

    def generator_next_future(self, task_id: bytes, index: int) -> Future[ObjectRef[Any] | None]:
        future: Future[Any] = Future()
        self._post(self.core.streams.want, (task_id, index, future))
        return future

    def generator_next_ready(self, stream: ObjectRefGenerator[Any]) -> Future[Any]:
        """Return a future that is done when the next item or the end is there; it takes nothing."""
        future: Future[Any] = Future()
        self._post(self.core.streams.watch, (stream._task_id, stream._index, future))
        return future

    def generator_ready(self, task_id: bytes, index: int) -> bool:
        return self.core.streams.ready(task_id, index)

    def generator_consumed(self, task_id: bytes, count: int) -> None:
        self._post_later(self.core.streams.consumed, (task_id, count))

    def generator_dropped(self, task_id: bytes) -> None:
        self._post_later(self.core.streams.dropped, task_id)

    # --- actors --------------------------------------------------------------------------------------------

    def create_actor(self, spec: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._check_open()
        serialized = serialize_args(args, kwargs)
        spec.owner = self.address
        deps = [ref._id for ref in serialized.deps]
        held = [ref._id for ref in serialized.refs]
        spec.args, blob = self._args_data(serialized.data)
        if blob is not None:
            deps.append(blob._id)
            spec.stored_args = True
        if not spec.name:
            self._post(self.core.actors.create, (spec, deps, held, None))
            return
        future: Future[None] = Future()
        self._post(self.core.actors.create, (spec, deps, held, future))
        with self._blocked():
            try:
                future.result()
            except RequestFailed as error:
                raise self._as_exception(error) from None

    def actor_token(self, actor_id: bytes, owner: Any) -> ObjectRef[Any]:
        return ObjectRef(token_id(actor_id), None if owner is None or owner.worker_id == self.worker_id else owner, _runtime=self)

    def pending_calls(self, actor_id: bytes) -> int:
        """Return how many calls of this process to the actor are not answered."""
        return self._submitted.get(actor_id, 0) - self.core.actors.answered.get(actor_id, 0)

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        self.request_control_store(m.KillActor(0, actor_id, no_restart))

    def exit_actor(self) -> None:
        if current_call.get() is None or self.execution is None or self.execution.actor is None:
            raise TypeError("exit_actor() can only be called inside an actor's method.")
        raise ActorExit

    def is_canceled(self) -> bool:
        call = current_call.get()
        return call is not None and call.cancelled

    # --- requests ------------------------------------------------------------------------------------------

    def request_control_store(self, message: Any, timeout_s: float | None = None) -> Any:
        return self._request(lambda: self.core.control_store.request(message), timeout_s)

    def request_node_agent(self, message: Any, timeout_s: float | None = None) -> Any:
        return self._request(lambda: self.core.agent.request(message), timeout_s)

    def _request(self, start: Callable[[], asyncio.Future[Any]], timeout_s: float | None) -> Any:
        self._check_open()
        try:
            return self._call(start, timeout_s)
        except RequestFailed as error:
            raise self._as_exception(error) from None
        except ConnectionLost as error:
            raise exceptions.RaySystemError(
                f"The session has ended: {error}. Call shoal.shutdown() and shoal.init() to start again."
            ) from None

    def _call(self, start: Callable[[], asyncio.Future[Any]], timeout_s: float | None = None) -> Any:
        """Run ``start`` on the I/O thread and block for the future it returns."""
        operation = CallOperation()

        def done(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                operation.error = ConnectionLost("the request was dropped")
            elif (error := future.exception()) is not None:
                operation.error = error
            else:
                operation.result = future.result()
            operation.fire()

        def run(_arg: None) -> None:
            try:
                start().add_done_callback(done)
            except Exception as error:  # delivered to the thread that asked
                operation.error = error
                operation.fire()

        self._post(run, None)
        if not operation.wait(timeout_s):
            raise exceptions.GetTimeoutError(f"No answer within {timeout_s} s.")
        if operation.error is not None:
            raise operation.error
        return operation.result

    def promise(self, message: Any, value: Any) -> ObjectRef[Any]:
        """Return a reference to ``value`` that becomes ready when the control store acks ``message``, or to its error."""
        object_id = ObjectId(self._ids.next() + b"\0\0\0\0")
        entry = Entry(object_id, 1)
        self._entries[object_id] = entry
        data = serialize(value).to_bytes()

        def start(_arg: None) -> None:
            def acked(done: asyncio.Future[Any]) -> None:
                error = None if done.cancelled() else done.exception()
                if error is None:
                    self.core.objects.complete(entry, INLINE, data)
                else:
                    from .objects import _error_bytes

                    self.core.objects.complete(entry, FAILED, _error_bytes(error, entry))

            self.core.control_store.request(message).add_done_callback(acked)

        self._post(start, None)
        return ObjectRef(object_id, None, counted=True, _runtime=self)

    def _as_exception(self, error: RequestFailed) -> Exception:
        if error.detail:
            detail = deserialize_error(error.detail)
            if isinstance(detail, Exception):
                return detail
        named = error_named(error.kind, error.message)
        return named if isinstance(named, Exception) else exceptions.RaySystemError(error.message)

    # --- inside a worker -----------------------------------------------------------------------------------

    def task_context(self) -> TaskContext | None:
        if self.execution is None:
            return None
        call = current_call.get() or self.execution.main.running
        return None if call is None else self.execution.runner.context(call)

    @contextlib.contextmanager
    def _blocked(self) -> Iterator[None]:
        """The calling task waits: its CPUs are free meanwhile, and what is queued behind it runs elsewhere."""
        execution = self.execution
        call: Call | None = current_call.get()
        if execution is None or call is None or not execution.releases_cpu(call):
            yield
            return
        execution.block()
        try:
            yield
        finally:
            execution.unblock()

    def enter_job(self, job_id: bytes) -> None:
        """Become a worker of this job: its environment, directory and import path. Once per worker."""
        if job_id == self.job_id:
            return
        from .execution.job import apply_job

        info: m.JobInfo = self.request_control_store(m.GetJob(0, job_id))
        apply_job(info.config)
        self.job_config = info.config
        self.namespace = info.config.namespace
        self.job_id = self.core.job_id = job_id
        self._ids = TaskIdSource(job_id)  # type: ignore[arg-type]

    def fetch_function(self, function_id: bytes) -> bytes:
        return self.request_control_store(m.GetFunction(0, function_id)).blob  # type: ignore[no-any-return]

    def pin_deps(self, deps: list[m.Dep]) -> dict[bytes, Any]:
        """Make stored arguments readable here; blocks. An actor's constructor needs them outside of any pushed call."""
        missing = [dep.object_id for dep in deps if dep.value is None]
        return dict(zip(missing, self._call(lambda: self.core.store.pin(missing)), strict=True)) if missing else {}

    def name_process(self, name: str) -> None:
        self._post(self.core.agent.send, m.NameProcess(name))

    def prepare_exit(self, cause: m.Cause) -> None:
        """Hand over what others still hold, and flush. Blocks: until its own tasks are done after max_calls, else a few seconds at most."""
        if cause.kind == "max_calls":
            self._call(lambda: asyncio.ensure_future(self._finish_tasks(cause), loop=self.core.loop))
        self._call(lambda: asyncio.ensure_future(self._hand_over(cause), loop=self.core.loop), 5.0)

    async def _finish_tasks(self, cause: m.Cause) -> None:
        """The process leaves by plan: what it submitted runs to its end first, because nobody else can answer for it."""
        self.core.agent.send(m.ProcessExiting(cause))
        while self.core.tasks.has_unfinished() and not self.core.closing and not getattr(self.execution, "stopping", False):
            await asyncio.sleep(0.01)

    async def _hand_over(self, cause: m.Cause) -> None:
        core = self.core
        core.agent.send(m.ProcessExiting(cause))
        # What others hold, and what is inside of that, to any depth.
        held: dict[bytes, Entry] = {}
        todo = [entry for entry in self._entries.values() if entry.owner is None and entry.borrowers and entry.kind >= 0]
        while todo:
            entry = todo.pop()
            if entry.object_id not in held:
                held[entry.object_id] = entry
                todo += [inner for inner in entry.inner or () if inner.owner is None and inner.kind >= 0]
        foreign = [inner for entry in held.values() for inner in entry.inner or () if inner.owner is not None]
        # The agent holds what is inside before we let go of it; only then are the counts final.
        await asyncio.gather(*core.objects.grant(foreign, core.agent_address), return_exceptions=True)
        kept = []
        for entry in held.values():
            value = m.Value(entry.kind, refs=core.objects.infos(entry.inner or []))
            if entry.kind == STORED:
                value.nbytes = entry.data
            elif entry.kind >= 0:
                value.data = entry.data
            else:
                continue  # released meanwhile
            kept.append(m.OwnedObject(entry.object_id, value, [(address, count) for address, count in (entry.borrowers or {}).values()]))
        if kept:
            await core.agent.request(m.AdoptObjects(0, kept))
        await core.close()
        await asyncio.sleep(0.005)

    # --- the end -------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        with self._shut:
            if self._closed:
                return
            self._closed = True
            if self._future_thread is not None:
                self._future_thread.close()
            if self.on_shutdown is not None:
                self.on_shutdown()


_NO_IDS: list[bytes] = []


def _raisable(error: BaseException) -> BaseException:
    """A future cannot carry StopIteration: asyncio would turn it into a hang."""
    if isinstance(error, StopIteration):
        return RuntimeError(f"The task raised StopIteration: {error}")
    return error


class _LoopDelivery:
    """Brings values to one asyncio loop, many per wake-up."""

    def __init__(self, runtime: CoreRuntime, loop: asyncio.AbstractEventLoop) -> None:
        self.runtime = runtime
        self.loop = loop
        self._arrived: deque[tuple[Any, Entry, Any, Any]] = deque()
        self._scheduled = False

    def deliver(self, item: tuple[Any, Entry, Any, Any]) -> None:
        """I/O thread."""
        self._arrived.append(item)
        if not self._scheduled:
            self._scheduled = True
            try:
                self.loop.call_soon_threadsafe(self._settle)
            except RuntimeError:  # the loop is closed, and its futures with it
                self._scheduled = False
                while self._arrived:
                    _, entry, place, _ = self._arrived.popleft()
                    if place is not None:
                        self.runtime.core.store.unpin(entry.object_id)

    def _settle(self) -> None:
        self._scheduled = False
        while self._arrived:
            self.runtime.settle_future(self._arrived.popleft())


class _FutureThread:
    """Settles ``concurrent.futures`` futures: unpickling runs user code, which must not run on the I/O thread."""

    def __init__(self, runtime: CoreRuntime) -> None:
        from queue import SimpleQueue

        self._runtime = runtime
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="shoal-futures", daemon=True)
        self._thread.start()

    def deliver(self, item: tuple[Any, Entry, Any, Any]) -> None:
        self._queue.put(item)

    def _run(self) -> None:
        while (item := self._queue.get()) is not _FINISHED:
            if item[0].set_running_or_notify_cancel():
                self._runtime.settle_future(item)
            elif item[2] is not None:
                self._runtime._post(self._runtime.core.store.unpin, item[1].object_id)
            item = None  # it holds a reference

    def close(self) -> None:
        self._queue.put(_FINISHED)
        if threading.current_thread() is not self._thread:
            self._thread.join()
