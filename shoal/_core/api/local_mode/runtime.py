"""The Runtime of a local session."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn

from shoal._base import ids
from shoal._base.references import ObjectRef
from shoal._base.runtime import TaskContext
from shoal._base.settings import Settings
from shoal._core.serialization import record, serialize, serialize_system_error
from shoal._core.wire.messages import ActorSpec, JobConfigRecord, TaskTemplate
from shoal.exceptions import (
    ActorAlreadyExistsError,
    GetTimeoutError,
    OufOfBandObjectRefSerializationException,
    PendingCallsLimitExceeded,
    RaySystemError,
)

from .actors import LocalActor
from .calls import ActorExit, LocalCall, current_task
from .control import LocalControl
from .objects import LocalObject
from .session import TOKEN_SUFFIX, LocalSession


class LocalRuntime(LocalSession):
    """Runs tasks and actors in this process. See the package's docstring for what differs from a cluster."""

    is_driver = True
    control_address = "local"

    def __init__(self, job_config: JobConfigRecord, settings: Settings, node: Mapping[str, Any]) -> None:
        super().__init__(node["node_ip"], node["temp_dir"])
        self.job_config = job_config
        self.settings = settings
        self.namespace = job_config.namespace
        self._hosted: dict[bytes, LocalActor] = {}
        self._control = LocalControl(self, node)
        self._naming = threading.Lock()

    # --- references ---------------------------------------------------------------------------------------------------------------

    def ref_added(self, object_id: bytes, owner: Any) -> None:
        self.objects.count(object_id, +1)

    def ref_dropped(self, object_id: bytes) -> None:
        self.objects.count(object_id, -1)

    def ref_pickled(self, ref: ObjectRef[Any]) -> None:
        if record(ref):
            return
        if not self.settings.allow_out_of_band_refs:
            raise OufOfBandObjectRefSerializationException
        self.objects.count(ref._id, +1)

    def object_future(self, ref: ObjectRef[Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def settle(entry: LocalObject) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(entry.read())
            except BaseException as error:  # the value of the future; user code made it
                future.set_exception(_raisable(error))

        self.objects.when_done(self.entry_of(ref), settle)
        return future

    def asyncio_future(self, ref: ObjectRef[Any]) -> asyncio.Future[Any]:
        return asyncio.wrap_future(self.object_future(ref))

    # --- tasks and objects --------------------------------------------------------------------------------------------------------

    def export(self, pickled: bytes, function_id: bytes | None = None) -> bytes:
        function_id = function_id or hashlib.blake2b(pickled, digest_size=ids.FUNCTION_BYTES).digest()
        self.keep_function(function_id, pickled)
        return function_id

    def submit_task(self, template: TaskTemplate, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        self._check_open()
        call = LocalCall(self, template, name)
        load = call.load(args, kwargs)
        if load is not None:
            call.run(self.load_function(template.function_id), load)
        return call.result

    def put(self, value: Any) -> ObjectRef[Any]:
        self._check_open()
        return self.store(value)

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        entries = [self.entry_of(ref) for ref in refs]
        failed: list[LocalObject] = []

        def settled() -> bool:
            failed[:] = [entry for entry in entries if entry.error is not None][:1]
            return bool(failed) or all(entry.done for entry in entries)

        self.objects.wait_for(settled, timeout_s, f"{len(entries)} objects")
        return [entry.read() for entry in failed or entries]

    def wait(self, refs: Sequence[Any], num_returns: int, timeout_s: float | None, fetch_local: bool) -> tuple[list[Any], list[Any]]:
        entries = {ref: self.entry_of(ref) for ref in refs if isinstance(ref, ObjectRef)}

        def is_ready(ref: Any) -> bool:
            return entries[ref].done if ref in entries else self.generator_ready(ref._task_id, ref._index)

        try:
            self.objects.wait_for(lambda: sum(map(is_ready, refs)) >= num_returns, timeout_s, "objects")
        except GetTimeoutError:
            pass  # what is ready now is the answer
        ready = [ref for ref in refs if is_ready(ref)][:num_returns]
        chosen = set(ready)
        return ready, [ref for ref in refs if ref not in chosen]

    def cancel(self, task_id: bytes, force: bool, recursive: bool) -> None:
        for actor in list(self._hosted.values()):
            running = actor.running.get(task_id)
            if running is not None:
                if force:
                    raise ValueError("force=True is not for actor calls: it would kill the actor. Use shoal.kill() for that.")
                running.cancel()

    # --- generators ---------------------------------------------------------------------------------------------------------------

    def generator_next(self, task_id: bytes, index: int, timeout_s: float | None) -> ObjectRef[Any] | None:
        stream = self.streams[task_id]
        self.objects.wait_for(lambda: stream.ready(index), timeout_s, "the next item of a generator")
        return stream.take(index)

    def generator_next_future(self, task_id: bytes, index: int) -> Future[ObjectRef[Any] | None]:
        future: Future[ObjectRef[Any] | None] = Future()
        stream = self.streams[task_id]
        if stream.ready(index):
            future.set_result(stream.take(index))
            return future

        def wait() -> None:
            future.set_result(self.generator_next(task_id, index, None))

        threading.Thread(target=wait, name="shoal-next-item", daemon=True).start()
        return future

    def generator_ready(self, task_id: bytes, index: int) -> bool:
        stream = self.streams.get(task_id)
        return stream is None or stream.ready(index)

    def generator_consumed(self, task_id: bytes, count: int) -> None:
        stream = self.streams.get(task_id)
        if stream is not None:
            stream.consumed = count
            if stream.resume is not None and not stream.finished:
                stream.resume()

    def generator_dropped(self, task_id: bytes) -> None:
        stream = self.streams.pop(task_id, None)
        if stream is not None and stream.close is not None and not stream.finished:
            stream.close()

    # --- actors -------------------------------------------------------------------------------------------------------------------

    def create_actor(self, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._check_open()
        name = (spec.namespace, spec.name)
        with self._naming:
            if spec.name and name in self.names:
                raise ActorAlreadyExistsError(
                    f"An actor named {spec.name!r} lives in {spec.namespace!r}. Use shoal.get_actor({spec.name!r}), another name, "
                    "or get_if_exists=True."
                )
        if not spec.detached:
            token = self.objects.create(spec.actor_id + TOKEN_SUFFIX)
            self.objects.complete(token, serialize(None))
        actor = LocalActor(self, spec, args, kwargs)
        self.actors[spec.actor_id] = self._hosted[spec.actor_id] = actor
        if spec.name and actor.cause is None:
            self.names[name] = actor

    def actor_token(self, actor_id: bytes, owner: Any) -> ObjectRef[Any]:
        return ObjectRef(actor_id + TOKEN_SUFFIX, _runtime=self)

    def submit_actor_call(self, template: TaskTemplate, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        self._check_open()
        actor = self._hosted[template.actor_id]
        if 0 <= actor.spec.max_pending_calls <= actor.active:
            raise PendingCallsLimitExceeded(
                f"{actor.active} calls to actor {actor.spec.class_name} are pending, and its max_pending_calls is "
                f"{actor.spec.max_pending_calls}. Wait for some of them, or raise the limit."
            )
        call = LocalCall(self, template, name, actor.spec.name)
        load = call.load(args, kwargs)
        if load is not None:
            actor.submit(call, load)
        return call.result

    def know_actor(self, actor_id: bytes, *, out_of_order: bool, max_pending_calls: int) -> None:
        return

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        self._hosted[actor_id].kill(no_restart)

    def exit_actor(self) -> NoReturn:
        raise ActorExit

    # --- everything else ----------------------------------------------------------------------------------------------------------

    def request_control_store(self, message: Any, timeout_s: float | None = None) -> Any:
        self._check_open()
        return self._control.answer(message)

    def request_node_agent(self, message: Any, timeout_s: float | None = None) -> NoReturn:
        raise RaySystemError("Local mode has no node agent.")

    def promise(self, message: Any, value: Any) -> ObjectRef[Any]:
        entry = self.objects.create(ids.object_id(self.ids.next(), 0))
        ref: ObjectRef[Any] = ObjectRef(entry.object_id, _runtime=self)
        serialized = serialize(value)

        def acked(error: Exception | None) -> None:
            if error is None:
                self.objects.complete(entry, serialized)
            else:
                self.objects.fail(entry, serialize_system_error(error))

        self._control.when_acked(message, acked)
        return ref

    def task_context(self) -> TaskContext | None:
        return current_task.get()

    def is_canceled(self) -> bool:
        return False

    def shutdown(self) -> None:
        if self.closed:
            return
        self.closed = True
        for actor in list(self._hosted.values()):
            actor.kill(no_restart=True)
        self.names.clear()

    def abandon(self) -> None:
        self.closed = True

    def _check_open(self) -> None:
        if self.closed:
            raise RaySystemError("The session has ended. Call shoal.init() to start another.")


def _raisable(error: BaseException) -> BaseException:
    """A future cannot carry StopIteration: whoever awaits it would never wake."""
    if isinstance(error, StopIteration):
        wrapped = RuntimeError(f"The task raised StopIteration: {error}")
        wrapped.__cause__ = error
        return wrapped
    return error
