"""Simulated processes: the real driver and worker code, with the operating system at its edge replaced.

What is replaced, and by what:

    sockets              MemoryTransport, one endpoint per process
    the I/O thread       the loop that all share; calls into it park the user thread
    locks, queues        ``threads.py``
    signals              a handler called inside the user thread
    clocks               the virtual loop's
    random identifiers   drawn from the seed
    the end of a process ``ProcessEnd``: connections break, timers find ``core.closing``
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import signal as real_signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from shoal._base import ids
from shoal._core.node_agent import drain_service as drain_module
from shoal._core.object_store import pulling as pulling_module
from shoal._core.transport.memory import MemoryNetwork
from shoal._core.transport.trust import Trust
from shoal._core.wire.messages import Cause
from shoal._core.worker import driver as driver_module
from shoal._core.worker import io_thread as io_module
from shoal._core.worker import main as main_module
from shoal._core.worker import submitter as submitter_module
from shoal._core.worker.core import Core
from shoal._core.worker.execution import actors as actors_module
from shoal._core.worker.execution import calls as calls_module
from shoal._core.worker.execution import execution as execution_module
from shoal._core.worker.execution import inbound as inbound_module
from shoal._core.worker.execution import tasks as tasks_module
from shoal._core.worker.execution.tasks import MainThread
from shoal._core.worker.inbox import LATER_S, Inbox
from shoal._core.worker.io_thread import IoThread, JoinRequest
from shoal.testing.simulation import threads
from shoal.testing.simulation.hosts import HostTransport, SimulatedConnector
from shoal.testing.simulation.process_loop import ProcessLoop
from shoal.testing.simulation.threads import SimulatedFuture, SimulatedLock, SimulatedQueue, UserThread
from shoal.testing.simulation.transfer import SimulatedLink
from shoal.testing.virtual_loop import VirtualLoop

#: Longest virtual time between a post to the inbox and the I/O thread's turn.
INBOX_S = 0.0002


class ProcessEnd(BaseException):
    """A simulated process leaves with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class SimulatedProcess:
    """A driver or worker: one user thread, its part of the loop, and its endpoint of the network, on a host."""

    def __init__(self, virtual: VirtualLoop, network: MemoryNetwork, name: str, host: str, main: Callable[[], Any]) -> None:
        self.loop = loop = ProcessLoop(virtual)
        network.place(name, host, loop)
        self.network = network
        self.name = name
        self.dead = False
        self.io: SimulatedIoThread | None = None
        self.main: SimulatedMainThread | None = None
        #: Called when the process ended by itself: (exit code).
        self.on_end: Callable[[int], None] = lambda code: None
        #: Called in its thread when the process kills itself.
        self.on_kill: Callable[[], None] = self.kill
        #: Called in its thread with what nobody in it caught; None: it is left to ``thread.error``.
        self.on_crash: Callable[[Exception], None] | None = None
        self.result: Any = None
        self._main = main
        self.thread = UserThread(loop, self._run, lambda: self.dead, self)

    @property
    def core(self) -> Core | None:
        return getattr(self.io, "core", None)

    def start(self) -> None:
        self.thread.start()

    def kill(self) -> None:
        """SIGKILL, on the loop's thread: nothing of it runs any more."""
        if self.dead:
            return
        self.dead = True
        self.loop.kill()
        self.network.kill(self.name)
        if self.io is not None:
            self.io.die()
        self.thread.end()

    def _run(self) -> None:
        try:
            self.result = self._main()
        except ProcessEnd as end:
            self.end(end.code)
            self.thread.park("the end of its process")
        except Exception as error:
            if self.on_crash is None:
                raise
            self.on_crash(error)

    def end(self, code: int) -> None:
        """Have the process end by itself, with its I/O thread."""
        self.loop.virtual.call_soon(self.on_end, code)


def kill_this_process() -> None:
    """``os.kill(os.getpid(), SIGKILL)`` for the calling thread's process. Does not return."""
    thread = threads.current()
    assert thread is not None
    thread.process.on_kill()
    thread.park("its end")


class SimulatedInbox(Inbox):
    """The inbox of a process whose loop has no descriptors to watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_drained: Callable[[], None]) -> None:
        self._loop = loop
        self._on_drained = on_drained
        self._queue = deque()
        self._signalled = self._later = self._draining = self._closed = False
        self._timer = None

    def _wake(self) -> None:
        loop = self._loop
        assert isinstance(loop, ProcessLoop)
        if not self._closed:
            delay = INBOX_S * loop.random.random()
            if self._signalled:
                loop.call_later(delay, self._drain_due)
            else:
                loop.call_later(delay + LATER_S, self._time_out)

    def _drain_due(self) -> None:
        if not self._closed and self._signalled:
            self.drain()

    def close(self) -> None:
        if not self._closed:
            self.drain()
            self._closed = True

    def die(self) -> None:
        """Forget everything, now and from now on."""
        self._closed = True
        self._queue.clear()


class SimulatedIoThread(IoThread):
    """Joins the session as the real one does, on the loop that all processes share."""

    def __init__(self, request: JoinRequest, on_agent_lost: Callable[[], None]) -> None:
        thread = threads.current()
        assert thread is not None
        self.process: SimulatedProcess = thread.process
        self.process.io = self
        self.request = request
        # A worker whose session is over leaves by ``os._exit``.
        self._on_agent_lost = on_agent_lost if request.is_driver else lambda: self.process.end(1)
        self.loop = thread.loop
        self.control_address = ""
        self._serving = False
        self._held_callers = []
        self._held = []
        self._running: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        self.call(self._join())

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        thread = threads.current()
        assert thread is not None
        task = self.loop.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(lambda _done: thread.wake())
        while not task.done():
            thread.park(f"its I/O thread: {coroutine!r:.80}")
        self._running.discard(task)
        return task.result()

    def stop(self) -> None:
        self.call(self._leave())

    async def _leave(self) -> None:
        if hasattr(self, "inbox"):
            self.inbox.close()
            await self.core.close()
        await asyncio.sleep(0.001)

    def die(self) -> None:
        if hasattr(self, "core"):
            self.core.closing = True
            self.core.store._arena.close()  # its descriptor ends with the process
        if hasattr(self, "inbox"):
            assert isinstance(self.inbox, SimulatedInbox)
            self.inbox.die()


class SimulatedMainThread(MainThread):
    """A worker's main thread, whose end is the end of a simulated process only."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        thread = threads.current()
        assert thread is not None
        self._thread = thread  # type: ignore[assignment]  # what ``pthread_kill`` is given
        thread.process.main = self

    def _end_process(self, cause: Cause) -> None:
        raise ProcessEnd(cause.exit_code or 0)


class _Signals:
    """The part of the ``signal`` module that the main thread of a worker uses."""

    SIGINT = real_signal.SIGINT
    SIGKILL = real_signal.SIGKILL

    def __init__(self) -> None:
        self._handlers: dict[UserThread, Callable[..., Any]] = {}

    def signal(self, number: int, handler: Callable[..., Any]) -> None:
        thread = threads.current()
        assert thread is not None
        self._handlers[thread] = handler

    def pthread_kill(self, thread: UserThread, number: int) -> None:
        thread.interrupt(lambda: self._handlers[thread](number, None))


@contextlib.contextmanager
def replaced_system(loop: VirtualLoop, network: MemoryNetwork) -> Iterator[None]:
    """While this is entered, drivers and workers started in user threads are simulated ones."""
    # Not the loop's own: how many identifiers a program draws must not move its delays.
    draw = random.Random(loop.seed)
    clock = SimpleNamespace(perf_counter=loop.time, monotonic=loop.time, time=loop.time, sleep=threads.pause)
    system = SimpleNamespace(urandom=draw.randbytes)
    interval = sys.getswitchinterval()

    def transport(_loop: Any, trust: Trust) -> HostTransport:
        return HostTransport(network, trust.tokens.current.decode())

    def nothing(*_args: Any) -> None: ...

    patches = [
        (threading, "Lock", SimulatedLock),
        (queue, "SimpleQueue", SimulatedQueue),
        (inbound_module, "SimpleQueue", SimulatedQueue),
        (actors_module, "SimpleQueue", SimulatedQueue),
        (pulling_module, "Link", SimulatedLink),
        (pulling_module, "DataSocket", lambda way: way),
        (submitter_module, "Future", SimulatedFuture),
        (io_module, "SocketTransport", transport),
        (io_module, "NodeConnector", SimulatedConnector),
        (io_module, "Inbox", SimulatedInbox),
        (driver_module, "IoThread", SimulatedIoThread),
        (main_module, "IoThread", SimulatedIoThread),
        (execution_module, "MainThread", SimulatedMainThread),
        (tasks_module, "signal", _Signals()),
        (tasks_module, "apply_lease_environment", nothing),
        (actors_module, "apply_lease_environment", nothing),
        (calls_module, "time", clock),
        (drain_module, "time", clock),
        (actors_module, "time", clock),
        (ids, "os", system),
        (driver_module, "fresh_worker_id", lambda: draw.randbytes(ids.WORKER_BYTES)),
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))  # a worker that enters a job changes its own
        for module, name, replacement in patches:
            stack.enter_context(mock.patch.object(module, name, replacement))
        try:
            yield
        finally:
            sys.setswitchinterval(interval)
