"""Runs one actor in a worker: the instance, and its calls in the way its class asks for.

sync (max_concurrency 1)   main thread, in order of arrival
threaded                   one pool per concurrency group, the default group's size is max_concurrency
async (any async method)   one asyncio loop on the main thread, one semaphore per concurrency group
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections import deque
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from shoal import exceptions
from shoal._core.serialization import serialize_error, unpickle_function
from shoal._core.wire import messages as m

from .calls import ActorExit, Call, Caller, CallRunner, current_call
from .environment import apply_lease_environment, apply_runtime_env
from .generators import end_of_stream, stream, stream_async
from .inbound import Inbound
from .user_code import prepared

if TYPE_CHECKING:
    from .tasks import MainThread


class ActorExecutor:
    """The instance and its calls. Made on the main thread by ``BecomeActor``."""

    def __init__(self, inbound: Inbound, runner: CallRunner, main: MainThread, message: m.BecomeActor) -> None:
        self.inbound = inbound
        self.runner = runner
        self.main = main
        self.spec = message.spec
        self.instance: Any = None
        self._leaving: m.Cause | None = None
        #: ``exit_actor`` was called: nothing starts any more, and calls that run are not waited for.
        self._exiting = False
        self._methods: dict[str, Any] = {}
        self._pools: dict[str, SimpleQueue[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._semaphores: dict[str, asyncio.Semaphore] = {}
        #: asyncio keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived: deque[Call] = deque()
        self._arrival_scheduled = False
        self._active = 0
        self._stopped: asyncio.Event | None = None
        try:
            self._create(message)
        except BaseException as error:  # the boundary of user code
            data = serialize_error(
                error, function_name=f"{self.spec.class_name}.__init__", pid=inbound.pid, ip=inbound.ip, attempt=message.incarnation + 1,
                max_attempts=0,
            )  # fmt: skip
            cause = m.Cause("init_failed", f"{type(error).__name__}: {error}", error=data, pid=inbound.pid, exit_code=0)
            error.__traceback__ = None
            self._started(message, cause)
            main.leave(cause)
            return
        inbound.actor = self
        self._started(message, None)

    # --- creation ------------------------------------------------------------------------------------------

    def _create(self, message: m.BecomeActor) -> None:
        spec = self.spec
        runtime = self.inbound.runtime
        runtime.enter_job(spec.job_id)
        apply_runtime_env(spec.shape.runtime_env)
        apply_lease_environment(dict(spec.shape.resources), message.resource_ids, self.inbound.core.settings.hide_unassigned_devices)
        template = m.TaskTemplate(
            spec.class_id, f"{spec.class_name}.__init__", f"{spec.class_name}.__init__", spec.shape, actor_id=spec.actor_id
        )
        caller = _ConstructorCaller(spec, template)
        call = Call(caller, m.PushTask(spec.actor_id + b"\0" * 8, 0, spec.args, spec.deps, stored_args=spec.stored_args))
        token = current_call.set(call)
        try:
            cls = unpickle_function(runtime.fetch_function(spec.class_id))
            call.places = runtime.pin_deps(spec.deps)
            args, kwargs = self.runner.arguments(call)
            self.instance = prepared(cls, f"{spec.class_name}.__init__")(*args, **kwargs)
        finally:
            current_call.reset(token)
        if "__repr__" in {name for base in type(self.instance).__mro__[:-1] for name in vars(base)}:
            with contextlib.suppress(Exception):  # a broken __repr__ must not cost the actor its life
                self.inbound.actor_repr = repr(self.instance)
        runtime.name_process(self.inbound.actor_repr or spec.name or spec.class_name)
        if spec.is_async:
            self._loop = _new_loop()
        elif spec.max_concurrency > 1 or spec.concurrency_groups:
            for group, size in {"": spec.max_concurrency, **spec.concurrency_groups}.items():
                pool = self._pools[group] = SimpleQueue()
                for number in range(size):
                    threading.Thread(target=self._serve, args=(pool,), name=f"shoal-{group or 'calls'}-{number}", daemon=True).start()

    def _started(self, message: m.BecomeActor, cause: m.Cause | None) -> None:
        reply = m.ActorStarted(message.rid, self.inbound.core.me if cause is None else None, cause)
        self.inbound.inbox.post(self.inbound.core.agent.send, reply)

    # --- arrival (I/O thread) ------------------------------------------------------------------------------

    def submit(self, calls: list[Call]) -> None:
        """Calls arrived, in order."""
        if self._loop is not None:
            self._arrived.extend(calls)
            if not self._arrival_scheduled:
                self._arrival_scheduled = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: the actor is leaving
                    self._loop.call_soon_threadsafe(self._start_arrived)
            return
        for call in calls:
            if self._pools:
                group = call.template.concurrency_group
                pool = self._pools.get(group)
                if pool is None:
                    self.inbound.refuse(call, self._unknown_group(group))
                    continue
                pool.put(call)
            else:
                self.inbound.queue.put(call)

    def _unknown_group(self, group: str) -> exceptions.RayError:
        return exceptions.RaySystemError(
            f"Actor {self.spec.class_name} has no concurrency group {group!r}; it has {sorted(self.spec.concurrency_groups) or 'none'}. "
            "Groups are declared with concurrency_groups={...} in the actor's decorator."
        )

    def cancel(self, call: Call) -> None:
        """I/O thread: an async call is cancelled; a sync one sees ``is_canceled()``."""
        if self._loop is not None and call.async_task is not None:
            self._loop.call_soon_threadsafe(call.async_task.cancel)

    def leave(self, cause: m.Cause) -> None:
        """I/O thread: end after the calls that are here."""
        if self._loop is not None:
            self._leaving = self._leaving or cause
            self._loop.call_soon_threadsafe(self._maybe_stop)
        else:
            self.inbound.queue.put(lambda: self._leave_when_idle(cause))

    def _leave_when_idle(self, cause: m.Cause) -> None:
        """Main thread of a sync or threaded actor: everything that arrived before has been taken from the queue."""
        deadline = time.monotonic() + 3600.0
        # Those that are here now: a caller that never pauses would keep the actor for ever.
        awaited = set(self.inbound.calls)
        while self._pools and not awaited.isdisjoint(self.inbound.calls) and not self._exiting and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        self.main.leave(self._leaving or cause)

    # --- running -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve on the main thread for ever."""
        if self.inbound.actor is not self:
            return
        if self._loop is not None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._serve_async())
            self.main.leave(self._leaving or m.Cause("exit_actor"))
        self.main.running = None
        queue = self.inbound.queue
        while True:
            item = queue.get()
            if isinstance(item, Call):
                self._run_sync(item)
            else:
                item()
            item = None
            if self._leaving is not None and (self._exiting or not self._pools):
                self.main.leave(self._leaving)

    def _serve(self, pool: SimpleQueue[Any]) -> None:
        """One thread of a concurrency group."""
        while True:
            call = pool.get()
            if self._exiting:
                return  # the end of the process answers the call
            self._run_sync(call)
            call = None
            if self._leaving is not None:
                self.inbound.queue.put(partial(self._leave_when_idle, self._leaving))

    def method(self, name: str) -> Any:
        """Return the bound method; built-in ones included."""
        method = self._methods.get(name)
        if method is None:
            if name == "__ray_ready__":
                method = _ready
            elif name == "__ray_call__":
                method = self._call_with_instance
            elif name == "__ray_terminate__":
                method = self._terminate
            else:
                method = prepared(getattr(self.instance, name), f"{self.spec.class_name}.{name}")
            self._methods[name] = method
        return method

    def _call_with_instance(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    def _terminate(self) -> None:
        self._leaving = m.Cause("exit_actor", "__ray_terminate__ was called.", exit_code=0, pid=os.getpid())

    def _run_sync(self, call: Call) -> None:
        if call.cancelled:
            self.runner.give_back(call)
            self.inbound.reject(call)
            return
        if call.template.num_returns < 0:
            self._run_stream(call)
            return

        def invoke(*args: Any, **kwargs: Any) -> Any:
            return self.method(call.template.method)(*args, **kwargs)

        self.runner.run(call, invoke)

    def _run_stream(self, call: Call) -> None:
        call.started_at = time.perf_counter()
        token = current_call.set(call)
        try:
            args, kwargs = self.runner.arguments(call)
            count = stream(self.runner, call, iter(self.method(call.template.method)(*args, **kwargs)))
        except BaseException as error:  # the boundary of user code
            self._fail(call, error)
            return
        finally:
            args = kwargs = None  # type: ignore[assignment]
            current_call.reset(token)
        self._end_stream(call, count)

    def _end_stream(self, call: Call, count: int) -> None:
        values, refs = end_of_stream()
        self.runner.reply(call, values, refs, num_items=count)

    def _fail(self, call: Call, error: BaseException) -> None:
        if self.on_user_error(call, error):
            return
        retry = self.runner.may_retry(call, error)
        value = self.runner.error_value(call, error)
        error.__traceback__ = None
        self.runner.reply(call, [value], [], retry=retry)

    # --- asyncio -------------------------------------------------------------------------------------------

    async def _serve_async(self) -> None:
        groups = {"": self.spec.max_concurrency, **self.spec.concurrency_groups}
        self._semaphores = {group: asyncio.Semaphore(size) for group, size in groups.items()}
        self._stopped = asyncio.Event()
        self.runner.runtime.reader.warn_async_get = self.runner.runtime.settings.warn_blocking_get_inside_async
        self._start_arrived()
        await self._stopped.wait()

    def _start_arrived(self) -> None:
        self._arrival_scheduled = False
        if self._stopped is None or self._loop is None:
            return
        while self._arrived:
            call = self._arrived.popleft()
            if self._exiting:
                continue  # the end of the process answers the call
            semaphore = self._semaphores.get(call.template.concurrency_group)
            if semaphore is None:
                self.inbound.refuse(call, self._unknown_group(call.template.concurrency_group))
                continue
            self._active += 1
            task = self._loop.create_task(self._run_async(call, semaphore))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_async(self, call: Call, semaphore: asyncio.Semaphore) -> None:
        current_call.set(call)
        # Known to ``cancel`` only from here on: a task cancelled before its first step would never run, and its call never be answered.
        call.async_task = asyncio.current_task()
        try:
            if call.cancelled:
                self.runner.give_back(call)
                self.inbound.reject(call)
                return
            async with semaphore:
                if not self._exiting:
                    await self._invoke_async(call)
        except BaseException as error:  # the boundary of user code
            self.runner.give_back(call)
            self._fail(call, error)
        finally:
            self._active -= 1
            self._maybe_stop()

    async def _invoke_async(self, call: Call) -> None:
        call.started_at = time.perf_counter()
        assert self._loop is not None
        if call.ready is not None:
            args, kwargs = await self._loop.run_in_executor(None, self.runner.arguments, call)
        else:
            args, kwargs = self.runner.arguments(call)
        result = self.method(call.template.method)(*args, **kwargs)
        args = kwargs = None  # type: ignore[assignment]
        if call.template.num_returns < 0:
            if hasattr(result, "__aiter__"):
                count = await stream_async(self.runner, call, result)
            else:
                count = stream(self.runner, call, iter(result))
            self._end_stream(call, count)
            return
        if inspect.isawaitable(result):
            result = await result
        values, refs = self.runner.store_results(call, result)
        self.runner.reply(call, values, refs)

    def _maybe_stop(self) -> None:
        if self._stopped is not None and (self._exiting or (self._leaving is not None and self._active == 0 and not self._arrived)):
            self._stopped.set()

    # --- leaving -------------------------------------------------------------------------------------------

    def on_user_error(self, call: Call, error: BaseException) -> bool:
        """``exit_actor`` and ``sys.exit`` end the actor; the call gets no reply, its caller reads why the actor ended."""
        if isinstance(error, ActorExit | SystemExit):
            self._leaving = m.Cause("exit_actor", f"exit_actor() was called in {call.name}.", exit_code=0, pid=os.getpid())
            self._exiting = True
            return True
        return False


class _ConstructorCaller(Caller):
    """Stands for the creator while ``__init__`` runs."""

    __slots__ = ()

    def __init__(self, spec: m.ActorSpec, template: m.TaskTemplate) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.templates = {0: template}
        self.owner = spec.owner
        self.job_id = spec.job_id


def _ready() -> bool:
    return True


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
