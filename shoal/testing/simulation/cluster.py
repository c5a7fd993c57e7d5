"""A simulated session: a real head whose workers are simulated processes, faults, and the check that nothing is left.

with SimulatedCluster(seed=7) as cluster:
    cluster.run(program)        # ``program()`` is the driver's program: it uses shoal's public API
    cluster.check_nothing_left()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from shoal._base import runtime as holder
from shoal._base.ids import NODE_BYTES, WORKER_BYTES
from shoal._base.settings import Settings
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import MemoryStorage
from shoal._core.node_agent.server import NodeAgent
from shoal._core.object_store import Arena, ObjectStore
from shoal._core.transport.connection import Connection
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.transport.shared import SharedConnections
from shoal._core.transport.trust import Tokens
from shoal._core.wire.messages import JobConfigRecord, Message, NodeRecord, ProcessExiting
from shoal._core.worker.core import Core
from shoal._core.worker.driver import connect_driver
from shoal._core.worker.main import run_worker
from shoal._core.worker.worker_start import WorkerStart
from shoal.testing.simulation.leftovers import core_leftovers
from shoal.testing.simulation.processes import SimulatedProcess, replaced_system
from shoal.testing.virtual_loop import VirtualLoop

#: Values above this many bytes lie in the object store: small, so that a program need not move megabytes.
INLINE_BYTES = 600
#: Virtual seconds after which a program that has not ended hangs.
HANG_S = 120.0
#: Virtual seconds in which everything that was dropped must be gone: longer than any grace of the settings.
DRAIN_S = 30.0
SETTINGS = Settings(
    inline_limit_bytes=INLINE_BYTES, idle_worker_s=0.5, cancel_grace_s=2.0, adoption_grace_s=2.0, log_to_driver=False,
    ignore_unhandled_errors=True,
)  # fmt: skip


@dataclass(frozen=True)
class Chances:
    """How slow things are, in virtual seconds (shortest, longest), and how large the node is."""

    frame_s: tuple[float, float] = (0.00005, 0.002)
    fork_s: tuple[float, float] = (0.002, 0.03)
    death_s: tuple[float, float] = (0.0, 0.004)
    cpus: int = 2
    arena_bytes: int = 1 << 20


class Hang(AssertionError):
    """The program did not end in time."""


class Leak(AssertionError):
    """Something is left at the end."""


class Fault(AssertionError):
    """Something is wrong that no get could show: an exception in a handler, a broken invariant."""


class SimulatedCluster:
    """One session. Everything happens inside ``run``; use as a context manager."""

    def __init__(self, seed: int, chances: Chances | None = None, settings: Settings = SETTINGS) -> None:
        self.seed = seed
        self.chances = chances or Chances()
        self.settings = settings
        self.loop = VirtualLoop(seed)
        self.random = self.loop.random
        self.network = MemoryNetwork(self.loop, self.random, delay_s=self.chances.frame_s)
        self.workers: dict[bytes, SimulatedProcess] = {}
        self.driver: SimulatedProcess | None = None
        #: What was logged as an error, or raised where nobody catches it.
        self.faults: list[str] = []
        self._started = 0
        self._stack = contextlib.ExitStack()

    # --- life ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        stack = self._stack
        stack.enter_context(replaced_system(self.loop, self.network))
        self._directory = tempfile.mkdtemp(prefix=f"shoal-sim-{self.seed}-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        self.arena = Arena.create(self.chances.arena_bytes)
        stack.callback(self.arena.close)
        stack.callback(self.loop.close)
        self.loop.set_exception_handler(self._unhandled)
        handler = _Collector(self.faults)
        logger = logging.getLogger("shoal")
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        logger = logging.getLogger("asyncio")
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        self._on_loop(self._start_head())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for process in [self.driver, *self.workers.values()]:
                if process is not None:
                    process.kill()
            self._on_loop(self._stop_head())
        finally:
            self._stack.close()

    async def _start_head(self) -> None:
        loop, chances = self.loop, self.chances
        node_id = b"node".ljust(NODE_BYTES, b"\0")
        resources = {"CPU": chances.cpus * 10_000}
        node = NodeRecord(node_id, "agent", "simulated", "127.0.0.1", dict(resources), dict(resources), {}, name="simulated")
        self.control_store = ControlStore(loop, MemoryStorage(), self.settings, clock=loop.time)
        self.object_store = ObjectStore(loop, self.arena, f"{self._directory}/spill", self.settings, warm_ahead_bytes=0)
        self._worker_ids = 0
        self._agent_transport = MemoryTransport(self.network, "node agent")
        self._peers = SharedConnections(loop, self._agent_transport, _no_message)
        self.agent = NodeAgent(
            loop, node, self.object_store, self, self.settings, self._directory, self.arena.path, self.arena.nbytes, "control",
            connect=lambda address: self._peers.connect(address.address), new_worker_id=self._new_worker_id,
        )  # fmt: skip
        await MemoryTransport(self.network, "control store").listen("control", self.control_store.accept)
        inside = MemoryNetwork(loop, copy=False)
        await MemoryTransport(inside, "control store").listen("control", self.control_store.accept)
        connection = await MemoryTransport(inside, "node agent").connect("control", _no_message)
        registered = self.agent.attach_control(connection)
        await self._agent_transport.listen("agent", self.agent.accept)
        self.agent.start()
        await registered

    async def _stop_head(self) -> None:
        await self.agent.close()
        await self.object_store.close()
        self.control_store.close()

    def _on_loop(self, work: Any) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(work)
        finally:
            asyncio.set_event_loop(None)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = _Collector.formatter.formatException((type(error), error, error.__traceback__)) if error is not None else ""
        self.faults.append(f"{context.get('message')} {text}")

    # --- the launcher that the node agent is given ---------------------------------------------------------

    def _new_worker_id(self) -> bytes:
        self._worker_ids += 1
        return (b"w%06d" % self._worker_ids).ljust(WORKER_BYTES, b"-")

    def start(self, worker_id: bytes) -> None:
        self._started += 1
        number = self._started
        name = f"w{number}"
        start = WorkerStart(worker_id, "agent", Tokens(name.encode()), self._directory, self.arena.fd, self.arena.nbytes)
        process = SimulatedProcess(self.loop, self.network, name, lambda: run_worker(start))
        process.on_end = lambda code: self._end(worker_id, code, None)
        process.on_kill = lambda: self.kill_process(process)
        process.on_crash = lambda error: self._crashed(worker_id, error)
        self.workers[worker_id] = process
        self.loop.call_later(self._draw(self.chances.fork_s), self._fork, process)

    def _fork(self, process: SimulatedProcess) -> None:
        if not process.dead:
            process.start()

    def _crashed(self, worker_id: bytes, error: Exception) -> None:
        self.faults.append(f"{self.workers[worker_id].name} crashed: {''.join(traceback.format_exception(error))}")
        self.loop.call_soon(self._end, worker_id, 1, None)

    def kill(self, worker_id: bytes) -> None:
        """SIGKILL a worker, a moment later."""
        if worker_id in self.workers:
            self.loop.call_later(self._draw(self.chances.death_s), self._end, worker_id, None, 9)

    def tail(self, worker_id: bytes) -> list[str]:
        return []

    def kill_process(self, process: SimulatedProcess) -> None:
        """SIGKILL a worker at once: it does not take another step. Any thread; in its own, it must wait for ever after this."""
        worker_id = next((one for one, other in self.workers.items() if other is process), None)
        if worker_id is not None:
            self.loop.call_soon(self._end, worker_id, None, 9)

    def kill_some_worker(self, pick: int) -> None:
        """SIGKILL one of the workers that have started."""
        started = [process for process in self.workers.values() if process.core is not None]
        if started:
            self.kill_process(started[pick % len(started)])

    def _end(self, worker_id: bytes, code: int | None, signal: int | None) -> None:
        process = self.workers.pop(worker_id, None)
        if process is None:
            return
        process.kill()
        self.loop.call_later(self._draw(self.chances.death_s), self.agent.worker_exited, worker_id, 1000 + self._started, code, signal)

    def _draw(self, bounds: tuple[float, float]) -> float:
        return self.random.uniform(*bounds)

    # --- the driver ----------------------------------------------------------------------------------------

    def run(self, program: Callable[[], Any]) -> Any:
        """Run a driver's program to its end, on the virtual clock. Raises Hang, or what the program raised."""

        def main() -> Any:
            runtime = connect_driver(
                agent_address="agent", control_address="control", session_dir=self._directory, tokens=Tokens(b"driver"),
                job=JobConfigRecord({}, os.getcwd(), []), settings=self.settings, entrypoint="simulation", log_to_driver=False,
            )  # fmt: skip
            holder.install(runtime)
            return program()

        driver = self.driver = SimulatedProcess(self.loop, self.network, "driver", main)
        driver.start()
        deadline = self.loop.time() + HANG_S
        while not driver.thread.finished and self.loop.time() < deadline:
            self._advance(0.05)
        if not driver.thread.finished:
            raise Hang(f"The program of seed {self.seed} has not ended after {HANG_S:g} virtual seconds.\n{self.describe()}")
        if driver.thread.error is not None:
            raise driver.thread.error
        return driver.result

    def _advance(self, seconds: float) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.advance(seconds)
        finally:
            asyncio.set_event_loop(None)

    def living_cores(self) -> dict[str, Core]:
        """Return the cores of the processes that live, the driver's first."""
        processes = [self.driver, *self.workers.values()]
        return {one.name: one.core for one in processes if one is not None and not one.dead and one.core is not None}

    # --- looking -------------------------------------------------------------------------------------------

    def check_nothing_left(self) -> None:
        """Let everything that was dropped go, then raise Leak if something is left. The driver must hold nothing any more."""
        deadline = self.loop.time() + DRAIN_S
        while (left := self.leftovers()) and self.loop.time() < deadline:
            self._advance(0.1)
        self.check()
        if left:
            raise Leak("left over at the end:\n  " + "\n  ".join(left))

    def is_clean_without_driver(self) -> bool:
        """End the driver by SIGKILL; return whether what it left were objects only, and whether all of them go with it.

        A process that dies between registering a third one with an owner and sending it the reference leaves a registration that nobody
        gives back (docs/design/core.md, "References: the rules", 6): it lasts until the third process ends.
        """
        left = self.leftovers()
        if any(not (": objects: " in one or "AdoptedObject(" in one or one.startswith("object store: ")) for one in left):
            return False
        assert self.driver is not None
        self.driver.kill()
        deadline = self.loop.time() + DRAIN_S
        while self.leftovers() and self.loop.time() < deadline:
            self._advance(0.1)
        return not self.leftovers()

    def check(self) -> None:
        """Assert the invariants of every part, and that nobody logged an error."""
        for name, core in self.living_cores().items():
            try:
                core.check()
            except AssertionError as error:
                raise Fault(f"check() of {name}: {error}") from error
        self.agent.check()
        self.object_store.check()
        self.control_store.check()
        if self.faults:
            raise Fault("errors were logged:\n" + "\n".join(self.faults))

    def leftovers(self) -> list[str]:
        """Name what a session without references, tasks and actors should not hold."""
        found = []
        for name, core in self.living_cores().items():
            found += [f"{name}: {what}" for what in core_leftovers(core)]
        leases = self.agent.leases
        if leases.leases:
            found.append(f"node agent: leases {list(leases.leases)}")
        if leases.waiting:
            found.append("node agent: lease requests that wait")
        if (available := leases.available()) != self.agent.node.total:
            found.append(f"node agent: {available} of {self.agent.node.total} are free")
        adopted = len(self.agent.adopted.state.objects)
        if adopted:
            found.append(f"node agent: {list(self.agent.adopted.state.objects.values())}")
        if hosted := len(self.agent.actors._actors):
            found.append(f"node agent: {hosted} actors")
        objects = self.object_store.statistics()
        if objects.objects or objects.used_bytes or objects.waiting or objects.pinned_bytes:
            found.append(f"object store: {objects}")
        return found

    def describe(self) -> str:
        """Say who waits for what."""
        lines = [f"virtual time {self.loop.time():.3f} s"]
        for process in [self.driver, *self.workers.values()]:
            if process is None:
                continue
            lines.append(f"{process.name}: waits for {process.thread.waits_for}")
            if process.core is not None and not process.dead:
                lines += [f"    {what}" for what in core_leftovers(process.core)]
        lines.append(f"leases {self.agent.leases.leases} waiting {self.agent.leases.waiting} workers {self.agent.pool.statistics()}")
        lines += self.faults
        return "\n".join(lines)


class _Collector(logging.Handler):
    """Keeps what is logged as an error."""

    formatter = logging.Formatter("%(name)s: %(message)s")

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        self._into.append(self.formatter.format(record))


def _no_message(connection: Connection, message: Message) -> None:
    if isinstance(message, ProcessExiting):  # its objects are the node agent's now
        connection.finish()
        return
    logging.getLogger("shoal.head").error("A %s came from %s unasked.", type(message).__name__, connection.peer)
