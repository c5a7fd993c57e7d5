"""The worker of sessions that ``fresh_cluster`` starts: a worker like any other, but each call looks first whether it is to fail.

It tells what it runs, too, so that a test can kill the worker that runs ``f``. About 20 us per call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shoal._core.worker import main
from shoal._core.worker.execution import user_code
from shoal._core.worker.worker_start import WorkerStart

from .faults import RUNNING_BYTES, Action, Crash, Delay, FaultBox, HoldAt, Raise, wait_at


def run_worker(start: WorkerStart) -> int:
    """Be a worker whose calls obey the session's orders. The ``worker_entry`` of a head."""
    user_code.around = FaultyCalls(FaultBox(start.session_dir)).around
    return main.run_worker(start)


class FaultyCalls:
    """Puts a look at the orders before each call of user code."""

    def __init__(self, box: FaultBox) -> None:
        self._box = box
        self._lock = threading.Lock()
        self._running: list[str] = []
        self._actor = ""
        self._told = box.map_running(os.getpid())
        self._tell()  # a worker with this pid may have been before

    def around(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """Return the function with faults: what it is called with, gives back and raises stays as it is."""
        if isinstance(function, type):
            self._actor = label.removesuffix(".__init__")
        label = label or str(getattr(function, "__qualname__", "?")).rpartition("<locals>.")[2]
        if inspect.isasyncgenfunction(function):
            return self._async_generator(function, label)
        if inspect.iscoroutinefunction(function):
            return self._coroutine(function, label)
        if inspect.isgeneratorfunction(function):
            return self._generator(function, label)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._runs(label):
                _meet(self._box.take(label))
                return function(*args, **kwargs)

        return call

    def _generator(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._runs(label):
                _meet(self._box.take(label))
                return (yield from function(*args, **kwargs))

        return call

    def _coroutine(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with self._runs(label):
                await _meet_async(self._box.take(label))
                return await function(*args, **kwargs)

        return call

    def _async_generator(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with self._runs(label):
                await _meet_async(self._box.take(label))
                async for item in function(*args, **kwargs):
                    yield item

        return call

    @contextmanager
    def _runs(self, label: str) -> Iterator[None]:
        try:  # a cancel may interrupt at any place, also here
            with self._lock:
                self._running.append(label)
                self._tell()
            yield
        finally:
            with self._lock:
                if label in self._running:
                    self._running.remove(label)
                self._tell()

    def _tell(self) -> None:
        data = "\n".join((self._actor, *self._running)).encode()[:RUNNING_BYTES]
        self._told[:] = data.ljust(RUNNING_BYTES, b"\0")


def _meet(action: Action | None) -> None:
    match action:
        case Raise(error):
            raise error
        case Crash(number):
            os.kill(os.getpid(), number)
            threading.Event().wait()  # the signal may take a moment; the call must not go on
        case Delay(seconds):
            time.sleep(seconds)
        case HoldAt(fifo):
            wait_at(fifo)


async def _meet_async(action: Action | None) -> None:
    match action:
        case Delay(seconds):
            await asyncio.sleep(seconds)
        case HoldAt(fifo):
            await asyncio.get_running_loop().run_in_executor(None, wait_at, fifo)
        case _:
            _meet(action)
