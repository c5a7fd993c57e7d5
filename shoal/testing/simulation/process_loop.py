"""The loop of one simulated process: its part of the virtual loop that all share, which can stand still or end.

process's code ── call_soon, call_at ──▶ ProcessLoop ──▶ VirtualLoop ── due ──▶ ProcessLoop: dead? dropped. paused? held. else called
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, TypeVarTuple

from shoal.testing.virtual_loop import VirtualLoop

_Args = TypeVarTuple("_Args")


class ProcessLoop(asyncio.BaseEventLoop):
    """What a process of a simulation knows as its event loop."""

    def __init__(self, virtual: VirtualLoop) -> None:
        self.virtual = virtual
        self.random = virtual.random
        self.dead = False
        self.paused = False
        #: What came due while the process stood still.
        self._held: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        super().__init__()

    def __del__(self) -> None:
        """Nothing is open here that should have been closed."""

    # --- faults ---

    def pause(self) -> None:
        """SIGSTOP: nothing of the process runs until ``resume``. Messages to it wait."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: everything that came due meanwhile happens now, in order. Not while another process runs."""
        self.paused = False
        held, self._held = self._held, []
        for callback, args in held:
            self.virtual.call_soon(self._run, callback, args)

    def kill(self) -> None:
        """Run nothing any more."""
        self.dead = True
        self._held.clear()

    # --- what asyncio and the process's code use ---

    def time(self) -> float:
        return self.virtual.time()

    def call_soon(self, callback: Callable[[*_Args], object], *args: *_Args, context: contextvars.Context | None = None) -> asyncio.Handle:
        return self.virtual.call_soon(self._run, callback, args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[*_Args], object], *args: *_Args, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*_Args], object], *args: *_Args, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.virtual.call_later(delay, self._run, callback, args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Args], object], *args: *_Args, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.virtual.call_at(when, self._run, callback, args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **options)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call ``func`` here and now, as ``VirtualLoop`` does."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # the caller's function; the future carries what it raised
            future.set_exception(error)
        return future

    def is_running(self) -> bool:
        return self.virtual.is_running()

    def is_closed(self) -> bool:
        return self.dead or self.virtual.is_closed()

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead:  # what a dead process leaves behind is nobody's fault
            self.virtual.call_exception_handler(context)

    def complete(self, work: Any) -> Any:
        """Run a coroutine of this process to its end, with everything that happens meanwhile, from outside of all loops."""
        task = self.create_task(work)
        task.add_done_callback(lambda _task: self.virtual.stop())
        asyncio.set_event_loop(self.virtual)
        try:
            self.virtual.run_forever()
        finally:
            asyncio.set_event_loop(None)
        return task.result()

    def _run(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self.dead:
            return
        if self.paused:
            self._held.append((callback, args))
            return
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            callback(*args)
        finally:
            asyncio._set_running_loop(outer)
