"""The user threads' half of a driver or worker: the ``Runtime`` that the public API talks to.

Every method may be called from any user thread. What needs the I/O thread is posted to the inbox; what must wait blocks on an operation.

    submitter.py  serialize, make entries and a record, post            never blocks
    values.py     small: an entry, nothing else. Large: create, write here, seal
    reader.py     look at entries that are done; for the rest post one operation and block
    futures.py    the same for ``await`` and ``concurrent.futures``
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from shoal import exceptions
from shoal._base.ids import TaskIdSource
from shoal._base.references import ObjectRef
from shoal._base.runtime import TaskContext
from shoal._base.settings import Settings
from shoal._core.serialization import capture
from shoal._core.wire import messages as m

from .actors import token_id
from .bridge import Bridge
from .core import Core
from .execution.calls import ActorExit, Call, current_call
from .futures import Futures
from .hand_over import HAND_OVER_S, PLANNED_ENDS, finish_tasks, hand_over
from .inbox import Inbox
from .objects import ARGUMENT
from .reader import Reader
from .submitter import Submitter
from .values import Values

#: Seconds that a task waits for its function without giving its CPU away: usually it is here in a millisecond.
FUNCTION_S = 0.25


class CoreRuntime:
    """The process's runtime. Made by ``connect_driver`` or ``run_worker`` once the I/O thread runs."""

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
        self._ids = TaskIdSource(self.job_id)  # type: ignore[arg-type]
        self._shut = threading.Lock()
        #: Set by ``worker_main``: the execution part of a worker.
        self.execution: Any = None
        self.on_shutdown: Callable[[], None] | None = None

        self.bridge = Bridge(core, inbox)
        self.values = Values(core, self.bridge, self, self._ids)
        self.reader = Reader(core, self.bridge, self.values, self, self._blocked)
        self._submitter = Submitter(core, self.bridge, self.values, self, self._ids, self._blocked)
        self._futures = Futures(core, self.bridge, self.values)
        # Who answers what. Bound once, because these run for every call and every reference.
        self.request_control_store = self.bridge.request_control_store
        self.request_node_agent = self.bridge.request_node_agent
        self.export = self._submitter.export
        self.submit_task = self._submitter.submit_task
        self.submit_actor_call = self._submitter.submit_actor_call
        self.know_actor = self._submitter.know_actor
        self.create_actor = self._submitter.create_actor
        self.put = self.values.put
        self.store_object = self.values.store_object
        self.promise = self.values.promise
        self.get = self.reader.get
        self.wait = self.reader.wait
        self.object_future = self._futures.object_future
        self.asyncio_future = self._futures.asyncio_future
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

    # --- tasks and generators ------------------------------------------------------------------------------

    def cancel(self, task_id: bytes, force: bool, recursive: bool) -> None:
        if force:
            entry = self._own.entries.get(task_id + b"\0\0\0\0")
            record = entry.task if entry is not None else None
            if record is not None and record.template.actor_id:
                raise ValueError(
                    "force=True is not possible for an actor's method: it would end the actor. Use shoal.kill(actor) to do that."
                )
        self._post(self.core.cancellation.cancel, (task_id, force, recursive))

    def generator_next(self, task_id: bytes, index: int, timeout_s: float | None) -> ObjectRef[Any] | None:
        if self.core.streams.ready(task_id, index):
            return self.core.streams.next(task_id, index, timeout_s)  # type: ignore[no-any-return]
        with self._blocked():
            return self.core.streams.next(task_id, index, timeout_s)  # type: ignore[no-any-return]

    def generator_next_future(self, task_id: bytes, index: int) -> Future[ObjectRef[Any] | None]:
        future: Future[Any] = Future()
        self._post(self.core.streams.want, (task_id, index, future))
        return future

    def generator_ready(self, task_id: bytes, index: int) -> bool:
        return self.core.streams.ready(task_id, index)

    def generator_consumed(self, task_id: bytes, count: int) -> None:
        self._post_later(self.core.streams.consumed, (task_id, count))

    def generator_dropped(self, task_id: bytes) -> None:
        self._post_later(self.core.streams.dropped, task_id)

    # --- actors --------------------------------------------------------------------------------------------

    def actor_token(self, actor_id: bytes, owner: Any) -> ObjectRef[Any]:
        return ObjectRef(token_id(actor_id), None if owner is None or owner.worker_id == self.worker_id else owner, _runtime=self)

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        self.request_control_store(m.KillActor(0, actor_id, no_restart))

    def exit_actor(self) -> None:
        if current_call.get() is None or self.execution is None or self.execution.actor is None:
            raise TypeError("exit_actor() can only be called inside an actor's method.")
        raise ActorExit

    def is_canceled(self) -> bool:
        call = current_call.get()
        return call is not None and call.cancelled

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

        info: m.JobInfo = self.request_node_agent(m.GetJob(0, job_id))
        apply_job(info.config)
        os.environ["RAY_JOB_ID"], os.environ["RAY_RAYLET_PID"] = job_id.hex(), str(os.getppid())  # the node agent lives in the head
        self.job_config = info.config
        self.namespace = info.config.namespace
        self.job_id = self.core.job_id = job_id
        self._ids.enter_job(job_id)  # type: ignore[arg-type]

    def fetch_function(self, function_id: bytes) -> bytes:
        """Block until the function is here; what is queued behind the task runs elsewhere if that takes long."""
        try:
            return self.request_node_agent(m.GetFunction(0, function_id), FUNCTION_S).blob  # type: ignore[no-any-return]
        except exceptions.GetTimeoutError:  # it is not exported yet, or the control store is away
            with self._blocked():
                return self.request_node_agent(m.GetFunction(0, function_id)).blob  # type: ignore[no-any-return]

    def pin_deps(self, deps: list[m.Dep]) -> dict[bytes, Any]:
        """Make stored arguments readable here; blocks. An actor's constructor needs them outside of any pushed call."""
        places: dict[bytes, Any] = {}
        missing = {dep.object_id: dep for dep in deps if dep.value is None}
        while missing:
            ids = list(missing)
            sources = [(dep.node_id, dep.nbytes) for dep in missing.values()]
            found = self.bridge.request(lambda ids=ids, sources=sources: self.core.store.pin(ids, sources, ARGUMENT), None)  # type: ignore[misc]
            places.update((object_id, place) for object_id, place in zip(ids, found, strict=True) if place is not None)
            missing = {object_id: dep for object_id, dep in missing.items() if object_id not in places}
            for dep in missing.values():
                self.get((ObjectRef(dep.object_id, dep.owner, _runtime=self),), None)  # lost: its owner computes it again, or this raises
        return places

    def name_process(self, name: str) -> None:
        self._post(self.core.agent.send, m.NameProcess(name))

    def prepare_exit(self, cause: m.Cause) -> None:
        """Hand over what others still hold, and flush. Blocks: until its own tasks are done if it leaves by plan, else a few seconds."""
        if cause.kind in PLANNED_ENDS:
            self.bridge.call(lambda: self.core.loop.create_task(finish_tasks(self.core, cause)))
        self.bridge.call(lambda: self.core.loop.create_task(hand_over(self.core, cause)), HAND_OVER_S)

    # --- the end -------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        with self._shut:
            if self.bridge.closed:
                return
            self.bridge.closed = True
            self._futures.close()
            if self.on_shutdown is not None:
                self.on_shutdown()

    def abandon(self) -> None:
        self.bridge.closed = True
        self.inbox.abandon()
