"""Actors of a local session: instances in this process.

plain, threaded   calls run inside ``.remote()``, one at a time unless max_concurrency says otherwise
async             calls run on the actor's own thread with an event loop, as many at once as max_concurrency allows
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import os
import threading
from collections.abc import Callable
from typing import Any

from shoal._core.api.conventions import CALL, READY, TERMINATE
from shoal._core.serialization import actor_died, serialize_error, serialize_system_error
from shoal._core.wire.messages import ActorSpec, Cause, TaskTemplate
from shoal.exceptions import TaskCancelledError

from .calls import ActorExit, LocalCall, current_task
from .session import LocalSession

Load = Callable[[], tuple[list[Any], dict[str, Any]]]


class LocalActor:
    """One actor. ``cause`` is set when it is dead."""

    def __init__(self, runtime: LocalSession, spec: ActorSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.runtime = runtime
        self.spec = spec
        self.cause: Cause | None = None
        self.instance: Any = None
        self.incarnation = 0
        self.active = 0
        self.repr = ""
        #: asyncio's handle of each call that runs now, by task id; async actors only.
        self.running: dict[bytes, concurrent.futures.Future[None]] = {}
        self._leaving: Cause | None = None
        self._one_at_a_time = threading.RLock() if spec.max_concurrency == 1 else contextlib.nullcontext()
        self._loop = _LoopThread(f"shoal-{spec.class_name}") if spec.is_async else None
        self._semaphores: dict[str, asyncio.Semaphore] = {}
        self._constructor = LocalCall(runtime, self._constructor_template())
        load = self._constructor.load(args, kwargs)
        if load is None:
            assert self._constructor.returns[0].error is not None
            self._die(Cause("init_failed", "An argument of its constructor failed.", error=self._constructor.returns[0].error))
            return
        self._load = load
        self._construct()

    def _constructor_template(self) -> TaskTemplate:
        name = f"{self.spec.class_name}.__init__"
        return TaskTemplate(self.spec.class_id, name, name, self.spec.shape, actor_id=self.spec.actor_id, method="__init__")

    # --- life ---------------------------------------------------------------------------------------------------------------------

    def _construct(self) -> None:
        """Make the instance, on the thread where its methods will run."""
        try:
            cls = self.runtime.load_function(self.spec.class_id)
            if self._loop is not None:
                self._loop.run(self._construct_async(cls)).result()
            else:
                self._make_instance(cls)
        except (Exception, SystemExit) as error:  # the boundary of user code
            data = serialize_error(
                error,
                function_name=f"{self.spec.class_name}.__init__",
                pid=os.getpid(),
                ip=self.runtime.node_ip,
                attempt=1,
                max_attempts=0,
                actor_id=self.spec.actor_id.hex(),
            )
            self._die(Cause("init_failed", error=data, pid=os.getpid()))

    async def _construct_async(self, cls: type) -> None:
        self._semaphores = {
            group: asyncio.Semaphore(size) for group, size in {"": self.spec.max_concurrency, **self.spec.concurrency_groups}.items()
        }
        self._make_instance(cls)

    def _make_instance(self, cls: type) -> None:
        token = current_task.set(self._constructor.context)
        try:
            args, kwargs = self._load()
            self.instance = cls(*args, **kwargs)
        finally:
            current_task.reset(token)
        if "__repr__" in {name for base in cls.__mro__[:-1] for name in vars(base)}:
            self.repr = repr(self.instance)

    def end(self, cause: Cause) -> None:
        """Die once the calls that run are done. Idempotent."""
        if self.cause is None:
            self._leaving = cause
            self._leave_if_idle()

    def kill(self, no_restart: bool) -> None:
        """Die now, or begin anew if that is allowed and asked for."""
        if self.cause is not None:
            return
        for future in list(self.running.values()):
            future.cancel()
        if not no_restart and (self.spec.max_restarts < 0 or self.incarnation < self.spec.max_restarts):
            self.incarnation += 1
            self.instance = None
            self._construct()
        else:
            self._die(Cause("killed"))

    def _leave_if_idle(self) -> None:
        if self._leaving is not None and not self.active and self.cause is None:
            self._die(self._leaving)

    def _die(self, cause: Cause) -> None:
        self.cause = cause
        self.instance = None
        if self._loop is not None:
            self._loop.stop()
        self.runtime.actor_ended(self)

    def death(self) -> bytes:
        """Return the error of calls to the dead actor."""
        assert self.cause is not None
        spec = self.spec
        return serialize_system_error(
            actor_died(
                self.cause, actor_id=spec.actor_id.hex(), class_name=spec.class_name, name=spec.name, namespace=spec.namespace
            )
        )  # fmt: skip

    # --- calls --------------------------------------------------------------------------------------------------------------------

    def submit(self, call: LocalCall, load: Load) -> None:
        """Run the call (plain actors) or start it (async ones)."""
        if self.cause is not None:
            call.fail(self.death())
            return
        call.actor_repr = self.repr
        self.active += 1
        if self._loop is None:
            self._run(call, load)
        else:
            self.running[call.task_id] = self._loop.run(self._run_async(call, load))

    def _run(self, call: LocalCall, load: Load) -> None:
        try:
            with self._one_at_a_time:
                if self.cause is not None:  # ended by the call before
                    call.fail(self.death())
                else:
                    call.run(self._method(call), load)
        except ActorExit:
            self._exit(call)
        finally:
            self._done(call)

    async def _run_async(self, call: LocalCall, load: Load) -> None:
        try:
            async with self._semaphores[call.template.concurrency_group]:
                await self._await_call(call, load)
        except ActorExit:
            self._exit(call)
        except asyncio.CancelledError:
            if self.cause is not None or self._leaving is not None:
                call.fail(serialize_system_error(actor_died(self.cause or Cause("killed"), actor_id=self.spec.actor_id.hex())))
            else:
                call.fail(serialize_system_error(TaskCancelledError(call.task_id.hex())))
        finally:
            self._done(call)

    async def _await_call(self, call: LocalCall, load: Load) -> None:
        """Run one attempt after the other, as ``LocalCall.run`` does for plain functions."""
        current_task.set(call.context)
        while True:
            try:
                args, kwargs = load()
                result = self._method(call)(*args, **kwargs)
                if inspect.isasyncgen(result):
                    await self._drain(call, result)
                    return
                call.store(await result if inspect.isawaitable(result) else result)
                return
            except (asyncio.CancelledError, ActorExit):
                raise
            except BaseException as error:  # the boundary of user code
                if not call.retries(error):
                    call.fail_with(error)
                    return

    async def _drain(self, call: LocalCall, items: Any) -> None:
        if call.stream is None:
            call.store([item async for item in items])
            return
        room = asyncio.Event()
        loop = asyncio.get_running_loop()

        def resume() -> None:
            loop.call_soon_threadsafe(room.set)

        call.stream.resume = resume
        async for item in items:
            call.deliver(item)
            while call.stream.full():
                room.clear()
                await room.wait()
        call.end(None)

    def _method(self, call: LocalCall) -> Callable[..., Any]:
        name = call.template.method
        if name == READY:
            return lambda: True
        if name == CALL:
            return lambda function, *args, **kwargs: function(self.instance, *args, **kwargs)
        if name == TERMINATE:
            return lambda: self.end(Cause("exit_actor"))
        method: Callable[..., Any] = getattr(self.instance, name)
        return method

    def _exit(self, call: LocalCall) -> None:
        self._leaving = Cause("exit_actor")
        died = actor_died(self._leaving, actor_id=self.spec.actor_id.hex(), class_name=self.spec.class_name, name=self.spec.name)
        call.fail(serialize_system_error(died))

    def _done(self, call: LocalCall) -> None:
        self.active -= 1
        self.running.pop(call.task_id, None)
        self._leave_if_idle()


class _LoopThread:
    """A thread that runs one event loop until it is stopped."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> concurrent.futures.Future[None]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self) -> None:
        """End the loop; joins its thread unless this is it."""
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
