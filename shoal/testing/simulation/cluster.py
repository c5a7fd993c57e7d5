"""A simulated cluster: real control store, node agents and object stores, simulated processes, faults, and the check that nothing is left.

with SimulatedCluster(seed=7) as cluster:
    cluster.run(program)        # ``program()`` is the driver's program: it uses shoal's public API
    cluster.check_nothing_left()

host n0              host n1, n2...          host head
driver, workers      workers                 control store      one node alone: inside its agent, as ``init()`` has it
agent, store         agent, store
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shoal._base import runtime as holder
from shoal._base.processes import is_running
from shoal._base.settings import Settings
from shoal._core.scheduling.resources import UNIT
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.transport.trust import Tokens
from shoal._core.wire.messages import JobConfigRecord
from shoal._core.worker.core import Core
from shoal._core.worker.driver import connect_driver
from shoal.testing.simulation.control import SimulatedControlStore
from shoal.testing.simulation.hosts import HostTransport
from shoal.testing.simulation.leftovers import core_leftovers
from shoal.testing.simulation.nodes import SimulatedNode
from shoal.testing.simulation.processes import SimulatedProcess, replaced_system
from shoal.testing.simulation.world import SETTINGS, Chances, World
from shoal.testing.virtual_loop import VirtualLoop

#: Virtual seconds after which a program that has not ended hangs.
HANG_S = 120.0
#: Virtual seconds in which everything that was dropped must be gone: longer than any grace of the settings.
DRAIN_S = 30.0


_FORMAT = logging.Formatter("%(name)s: %(message)s")
#: Where the directories of simulations are.
_PLACE = Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
_PREFIX = "shoal-sim-"


class Hang(AssertionError):
    """The program did not end in time."""


class Leak(AssertionError):
    """Something is left at the end."""


class Fault(AssertionError):
    """Something is wrong that no get could show: an exception in a handler, a broken invariant."""


class SimulatedCluster:
    """One cluster. Everything happens inside ``run``; use as a context manager."""

    def __init__(self, seed: int, chances: Chances | None = None, settings: Settings = SETTINGS) -> None:
        self.world = World(VirtualLoop(seed), chances or Chances(), settings)
        self.loop, self.network, self.random = self.world.loop, self.world.network, self.world.random
        #: All nodes there ever were, in the order in which they joined. The driver is on the first.
        self.nodes: list[SimulatedNode] = []
        self.driver: SimulatedProcess | None = None
        self.control = SimulatedControlStore(self.world)
        self._stack = contextlib.ExitStack()

    # --- life ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        stack = self._stack
        stack.enter_context(replaced_system(self.loop, self.network))
        directory = self.world.directory = make_directory(_PLACE)
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.callback(self.loop.close)
        self.loop.set_exception_handler(self._unhandled)
        handler = _Collector(self.world.errors)
        for name in ("shoal", "asyncio"):
            logger = logging.getLogger(name)
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        if self.is_alone:
            self._start_alone()
        else:
            self._start_many()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.driver is not None:
                self.driver.kill()
            for node in self.living_nodes():
                node.workers.kill_all()
                node.loop.resume()
                node.loop.complete(node.close())
            self.control.kill()
        finally:
            self._stack.close()

    @property
    def is_alone(self) -> bool:
        return len(self.world.chances.nodes) == 1

    def _start_alone(self) -> None:
        """Start what ``init()`` starts: one process with everything in it."""
        node = self._first_node(self.world.chances.nodes[0])
        store = self.control.store = self.control.inside(node.loop)
        inside = MemoryNetwork(node.loop, copy=False)

        async def start() -> None:
            await HostTransport(self.network, "n0/agent").listen(self.world.control_address, store.accept)
            await MemoryTransport(inside, "control store").listen(self.world.control_address, store.accept)
            await node.start(MemoryTransport(inside, "node agent"))

        node.loop.complete(start())

    def _start_many(self) -> None:
        """Start a control store of its own, and the nodes at the same time."""
        self.control.start()
        starts = [node.loop.create_task(node.start(None)) for node in map(self._first_node, self.world.chances.nodes)]
        while not (all(start.done() for start in starts) and all(len(node.agent.view.nodes()) == len(starts) for node in self.nodes)):
            self.advance(0.01)
            assert self.loop.time() < HANG_S, "The nodes have not found each other."
        for start in starts:
            start.result()

    def add_node(self, resources: dict[str, int]) -> None:
        """Have one more node join, in the midst of everything."""
        node = self._new_node(resources)
        node.loop.create_task(node.start(None))

    def _start_anew(self, node: SimulatedNode) -> None:
        """The node has heard that it was declared dead: what it has ends, and it joins under another id."""
        self.loop.call_soon(node.kill)
        self.loop.call_later(self.world.draw(self.world.chances.fork_s), self.add_node, node.resources)

    def _first_node(self, cpus: int) -> SimulatedNode:
        # Amounts that let nothing wait for ever: bundles of all groups fit a single node.
        plenty = {"bundle": 20, "seat": 100, f"at n{len(self.nodes)}": 2}
        return self._new_node({name: amount * UNIT for name, amount in {"CPU": cpus, **({} if self.is_alone else plenty)}.items()})

    def _new_node(self, resources: dict[str, int]) -> SimulatedNode:
        node = SimulatedNode(self.world, len(self.nodes), resources, self.living_node, is_alone=self.is_alone)
        node.on_declared_dead = lambda: self._start_anew(node)
        self.nodes.append(node)
        return node

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = _FORMAT.formatException((type(error), error, error.__traceback__)) if error is not None else ""
        self.world.errors.append(f"{context.get('message')} {text}")

    # --- nodes, and what can happen to them -----------------------------------------------------------------

    def living_nodes(self) -> list[SimulatedNode]:
        return [node for node in self.nodes if not node.dead]

    def living_node(self, node_id: bytes) -> SimulatedNode | None:
        return next((node for node in self.living_nodes() if node.node_id == node_id), None)

    def kill_some_worker(self, pick: int) -> None:
        """SIGKILL one of the workers that have started."""
        started = [(node, process) for node in self.living_nodes() for process in node.workers.started()]
        if started:
            node, process = started[pick % len(started)]
            node.workers.kill_process(process)

    def lose(self, object_id: bytes) -> None:
        """All object stores forget the value, if they have it."""
        for node in self.living_nodes():
            node.object_store.lose(object_id)

    # --- the driver ----------------------------------------------------------------------------------------

    def run(self, program: Callable[[], Any]) -> Any:
        """Run a driver's program to its end, on the virtual clock. Raises Hang, or what the program raised."""
        node = self.nodes[0]

        def main() -> Any:
            runtime = connect_driver(
                agent_address=node.address,
                control_address=self.world.control_address,
                session_dir=node.directory,
                tokens=Tokens(b"driver"),
                job=JobConfigRecord({}, os.getcwd(), []),
                settings=self.world.settings,
                entrypoint="simulation",
                log_to_driver=False,
            )
            holder.install(runtime)
            return program()

        driver = self.driver = SimulatedProcess(self.loop, self.network, "driver", node.name, main)
        driver.start()
        deadline = self.loop.time() + HANG_S
        while not driver.thread.finished and self.loop.time() < deadline:
            self.advance(0.05)
        if not driver.thread.finished:
            raise Hang(f"The program of seed {self.loop.seed} has not ended after {HANG_S:g} virtual seconds.\n{self.describe()}")
        if driver.thread.error is not None:
            raise driver.thread.error
        return driver.result

    def advance(self, seconds: float) -> None:
        """Let virtual time pass. Not from inside of it."""
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.advance(seconds)
        finally:
            asyncio.set_event_loop(None)

    def _processes(self) -> list[SimulatedProcess]:
        """Return the processes that live and were started, the driver first."""
        driver = [self.driver] if self.driver is not None and not self.driver.dead else []
        return driver + [process for node in self.living_nodes() for process in node.workers.by_id.values() if not process.dead]

    def living_cores(self) -> dict[str, Core]:
        """Return the cores of the processes that live, the driver's first."""
        return {one.name: one.core for one in self._processes() if one.core is not None}

    # --- looking -------------------------------------------------------------------------------------------

    def check_nothing_left(self) -> None:
        """Let everything that was dropped go, then raise Leak if something is left. The driver must hold nothing any more."""
        deadline = self.loop.time() + DRAIN_S
        while (left := self.leftovers()) and self.loop.time() < deadline:
            self.advance(0.1)
        self.check()
        if left:
            raise Leak("left over at the end:\n  " + "\n  ".join(left))

    def is_clean_without_driver(self) -> bool:
        """End the driver by SIGKILL; return whether what it left were objects only, and whether all of them go with it.

        A process that dies between registering a third one with an owner and sending it the reference leaves a registration that nobody
        gives back (docs/design/core.md, "References: the rules", 6): it lasts until the third process ends.
        """
        left = self.leftovers()
        if any(not (": objects: " in one or " node agent: adopted " in one or " object store: " in one) for one in left):
            return False
        assert self.driver is not None
        self.driver.kill()
        deadline = self.loop.time() + DRAIN_S
        while self.leftovers() and self.loop.time() < deadline:
            self.advance(0.1)
        return not self.leftovers()

    def check(self) -> None:
        """Assert the invariants of every part, and that nobody logged an error."""
        for name, core in self.living_cores().items():
            try:
                core.check()
            except AssertionError as error:
                raise Fault(f"check() of {name}: {error}") from error
        for node in self.living_nodes():
            node.check()
        self.control.store.check()
        if self.world.errors:
            raise Fault("errors were logged:\n" + "\n".join(self.world.errors))

    def leftovers(self) -> list[str]:
        """Name what a cluster without references, tasks and actors should not hold."""
        found = [f"{name}: {what}" for name, core in self.living_cores().items() for what in core_leftovers(core)]
        return found + [what for node in self.living_nodes() for what in node.leftovers()]

    def describe(self) -> str:
        """Say who waits for what."""
        lines = [f"virtual time {self.loop.time():.3f} s"]
        for process in self._processes():
            lines.append(f"{process.name}: waits for {process.thread.waits_for}")
            if process.core is not None:
                lines += [f"    {what}" for what in core_leftovers(process.core)]
        for node in self.living_nodes():
            leases = node.agent.leases
            lines.append(f"{node.name}: leases {leases.leases} waiting {list(leases.waiting)} workers {node.agent.pool.statistics()}")
        lines += self.world.errors
        return "\n".join(lines)


def make_directory(place: Path) -> str:
    """Make a directory that names this process."""
    sweep(place)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place)


@functools.cache
def sweep(place: Path) -> None:
    """Remove the directories of processes that were killed; once per process."""
    for left in place.glob(f"{_PREFIX}*-*"):
        pid = left.name[len(_PREFIX) :].partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)  # it may be another user's


class _Collector(logging.Handler):
    """Keeps what is logged as an error, but for disks that are full because they were made so."""

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if not (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            self._into.append(_FORMAT.format(record))
