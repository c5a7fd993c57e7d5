"""User threads of simulated processes: real threads that take turns with the loop's thread, so that exactly one runs at any moment.

    loop's thread                            user thread
      resume ──────── baton ───────────────▶  runs until it must wait (a lock, a queue, a pause)
      the next callback ◀──── baton ────────  park

While a user thread runs, the loop stands still and the clock with it; what it posts is handled when it waits. Blocking code runs
unchanged, and the order of everything depends on the seed alone.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty
from types import TracebackType
from typing import Any

from shoal._base import runtime as holder
from shoal.testing.simulation.process_loop import ProcessLoop

#: Longest virtual time between the event that wakes a thread and its next step.
WAKE_S = 0.0002

_real_lock = _thread.allocate_lock


class ProcessKilled(BaseException):
    """Unwinds a thread whose simulated process is dead."""


class UserThread:
    """One thread of a simulated process. Created on the loop's thread; ``start`` schedules its first step.

    Args:
        killed: whether the thread's process is dead; then every wait raises ProcessKilled.
        process: free for the owner.
    """

    def __init__(self, loop: ProcessLoop, target: Callable[[], None], killed: Callable[[], bool], process: Any = None) -> None:
        self.loop = loop
        self.process = process
        self.started = self.finished = False
        #: The exception that ended it, other than ProcessKilled.
        self.error: BaseException | None = None
        #: What it waits for, for the dump of a hang.
        self.waits_for = "its first step"
        self._target = target
        self._killed = killed
        self._go = _real_lock()
        self._back = _real_lock()
        self._go.acquire()
        self._back.acquire()
        self._turn = 0
        self._parked = True
        self._woken = False
        self._runtime: Any = None
        self._signals: deque[Callable[[], None]] = deque()

    def start(self) -> None:
        self.started = True
        _pool.run(self._main)
        self.wake()

    # --- the loop's side ---

    def wake(self) -> None:
        """Let it go on, a little later. Any thread."""
        self.loop.call_later(self.loop.random.random() * WAKE_S, self._resume, self._turn, True)

    def interrupt(self, handler: Callable[[], None]) -> None:
        """Call ``handler`` in the thread, as a signal would: before it goes on, or in the middle of its wait."""
        self._signals.append(handler)
        self.wake()

    def end(self) -> None:
        """Unwind it now; its process must be dead. On the loop's thread."""
        if not self.started:
            self.finished = True
        while not self.finished:
            self._switch_in()

    def _resume(self, turn: int, woken: bool) -> None:
        if turn == self._turn and self._parked and not self.finished:
            self._woken = woken
            self._switch_in()

    def _switch_in(self) -> None:
        global _current
        assert _current is None, "two user threads at once"
        _current = self
        outside, holder._current = holder._current, self._runtime
        self._go.release()
        self._back.acquire()
        self._runtime, holder._current = holder._current, outside
        _current = None

    # --- the thread's side ---

    def _main(self) -> None:
        self._go.acquire()
        self._parked = False
        try:
            if not self._killed():
                self._target()
        except ProcessKilled:
            pass
        except BaseException as error:  # the boundary of the thread: the simulation reports it
            self.error = error
        finally:
            self.finished = True
            self._back.release()

    def park(self, waits_for: str, timeout_s: float | None = None) -> bool:
        """Wait until woken; False when the time is over first. Only in this thread."""
        self.look()
        self._turn += 1
        timer = None if timeout_s is None else self.loop.call_later(timeout_s, self._resume, self._turn, False)
        self.waits_for = waits_for
        self._parked = True
        self._back.release()
        self._go.acquire()
        self._parked = False
        self.waits_for = ""
        if timer is not None:
            timer.cancel()
        self.look()
        return self._woken

    def look(self) -> None:
        """Raise ProcessKilled if the process is dead, and run what signals ask for. A dead thread stops at its next lock or queue."""
        if self._killed():
            raise ProcessKilled
        while self._signals:
            self._signals.popleft()()


_current: UserThread | None = None


def current() -> UserThread | None:
    """Return the user thread that runs now; None: the loop's own code runs."""
    return _current


def pause(seconds: float) -> None:
    """Let virtual time pass for the calling user thread."""
    thread = _current
    assert thread is not None
    deadline = thread.loop.time() + seconds
    while (left := deadline - thread.loop.time()) > 0 and thread.park(f"a pause of {seconds:g} s", left):
        pass  # a signal handler woke it


class SimulatedLock:
    """Stands for ``threading.Lock`` while a simulation runs."""

    def __init__(self) -> None:
        self._locked = False
        self._waiting: deque[UserThread] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        thread = _current
        if thread is not None:
            thread.look()
        if not self._locked:
            self._locked = True
            return True
        if not blocking:
            return False
        if thread is None:
            raise RuntimeError("The loop's thread would block on a lock for ever.")
        deadline = None if timeout < 0 else thread.loop.time() + timeout
        while self._locked:
            left = None if deadline is None else deadline - thread.loop.time()
            if left is not None and left <= 0:
                return False
            self._waiting.append(thread)
            try:
                thread.park("a lock", left)
            finally:
                if thread in self._waiting:
                    self._waiting.remove(thread)
        self._locked = True
        return True

    def release(self) -> None:
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked = False
        if self._waiting:
            self._waiting.popleft().wake()

    def locked(self) -> bool:
        return self._locked

    def _at_fork_reinit(self) -> None:
        self._locked = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class SimulatedQueue:
    """Stands for ``queue.SimpleQueue``."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: deque[UserThread] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiting:
            self._waiting.popleft().wake()

    def get(self) -> Any:
        thread = _current
        assert thread is not None
        thread.look()
        while not self._items:
            self._waiting.append(thread)
            try:
                thread.park("work")
            finally:
                if thread in self._waiting:
                    self._waiting.remove(thread)
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise Empty
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


class SimulatedFuture(Future[Any]):
    """Stands for ``concurrent.futures.Future``; waited for without a limit."""

    def __init__(self) -> None:
        super().__init__()
        self._pending = SimulatedLock()
        self._pending.acquire()
        self.add_done_callback(lambda _done: self._pending.release())

    def result(self, timeout: float | None = None) -> Any:
        assert timeout is None
        with self._pending:
            return super().result(0)


class _Pool:
    """System threads, reused: a simulated worker lives for milliseconds."""

    def __init__(self) -> None:
        self._idle: list[_PoolThread] = []

    def run(self, target: Callable[[], None]) -> None:
        thread = self._idle.pop() if self._idle else _PoolThread(self._idle)
        thread.give(target)


class _PoolThread:
    def __init__(self, idle: list[_PoolThread]) -> None:
        self._idle = idle
        self._work = _real_lock()
        self._work.acquire()
        self._target: Callable[[], None] | None = None
        patched, threading.Lock = threading.Lock, _real_lock  # type: ignore[assignment]
        try:
            threading.Thread(target=self._run, name="simulated", daemon=True).start()
        finally:
            threading.Lock = patched

    def give(self, target: Callable[[], None]) -> None:
        self._target = target
        self._work.release()

    def _run(self) -> None:
        while True:
            self._work.acquire()
            target, self._target = self._target, None
            assert target is not None
            target()
            target = None
            # The baton is with the loop's thread by now, which alone takes threads out of the list.
            self._idle.append(self)


_pool = _Pool()
