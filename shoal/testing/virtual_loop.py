"""An asyncio loop whose time is a number: when nothing is ready, the clock jumps to the next timer.

A simulated hour takes as long as its callbacks, no test sleeps, and the order of events depends on the program alone. There are no
sockets, no signals and no threads: ``run_in_executor`` calls the function at once.

    with VirtualLoop(seed=7) as loop:
        loop.run(main())          # Deadlock, with the tasks that wait, if nothing can ever happen again
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Nothing is ready, no timer runs, and what was waited for is not done: nothing would ever happen again."""


class VirtualLoop(asyncio.BaseEventLoop):
    """A deterministic event loop with a virtual clock that starts at 0.

    ``random`` is seeded with ``seed``; draw all chance of a simulation from it. Python's own hash order of bytes and strings is the one
    source of disorder that a loop cannot remove: do not iterate over sets of them.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.random = random.Random(seed)
        self._now = 0.0
        # BaseEventLoop asks its selector how long to sleep; this one answers by moving the clock.
        self._selector = _Clockwork(self)
        self._clock_resolution = math.ulp(0.0)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._now

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run ``main`` to its end, as ``asyncio.run`` does: what is left over afterwards is cancelled. Raises Deadlock."""
        asyncio.set_event_loop(self)
        try:
            return self.run_until_complete(main)
        finally:
            try:
                self._cancel_all()
            finally:
                asyncio.set_event_loop(None)

    def advance(self, seconds: float) -> None:
        """Run everything that happens within the next ``seconds``, then return. Not from inside a callback."""
        self.call_later(seconds, self.stop)
        self.run_forever()

    def settle(self) -> None:
        """Run until nothing is ready, without moving the clock. Not from inside a callback."""
        while self._ready:  # type: ignore[attr-defined]
            self.call_soon(self.stop)
            self.run_forever()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call ``func`` here and now: threads would bring back real time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # the caller's function; the future carries what it raised
            future.set_exception(error)
        return future

    def __enter__(self) -> VirtualLoop:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def jump(self, timeout_s: float | None) -> None:
        """Move the clock to the next timer. ``timeout_s`` is how long a real loop would sleep, None for ever."""
        if timeout_s is None:
            raise Deadlock(self._describe_deadlock())
        if timeout_s > 0:
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
            # Timers before now + resolution fire: those of exactly now, and none after it.
            self._clock_resolution = math.ulp(self._now)

    def _describe_deadlock(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        lines = [
            f"At {self._now:g} s of virtual time nothing is ready and no timer runs; {len(tasks)} tasks wait for ever (seed {self.seed}):"
        ]
        for task in tasks:
            stack = task.get_stack(limit=1)
            place = f"{stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else "not started"
            lines.append(f"  {task.get_name()}  {getattr(task.get_coro(), '__qualname__', '?')}  {place}")
        return "\n".join(lines)

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.run_until_complete(self.shutdown_asyncgens())

    # --- what BaseEventLoop expects of its subclass ---

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nothing sleeps, so nobody needs to be woken."""


class _Clockwork:
    """Stands in the place of a selector."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.jump(timeout)
        return []


def run_virtual(main: Coroutine[Any, Any, T], seed: int = 0) -> T:
    """Run ``main`` on a fresh virtual loop."""
    with VirtualLoop(seed) as loop:
        return loop.run(main)
