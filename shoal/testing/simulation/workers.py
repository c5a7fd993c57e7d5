"""The worker processes of one simulated node: started, ended and killed as the launcher of a real node does it, with seeded delays."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from shoal._core.object_store import Arena
from shoal._core.transport.trust import Tokens
from shoal._core.worker.main import run_worker
from shoal._core.worker.worker_start import WorkerStart
from shoal.testing.simulation.process_loop import ProcessLoop
from shoal.testing.simulation.processes import SimulatedProcess
from shoal.testing.simulation.world import World


class SimulatedWorkers:
    """The ``Launcher`` of a node's agent.

    Args:
        host: where the workers run.
        agent_loop: the agent's; ``worker_exited`` is called on it: (worker id, pid, exit code, signal).
    """

    def __init__(self, world: World, host: str, agent_loop: ProcessLoop, agent_address: str, directory: str, arena: Arena) -> None:
        self.by_id: dict[bytes, SimulatedProcess] = {}
        self.worker_exited: Callable[[bytes, int, int | None, int | None], None]
        self._world = world
        self._host = host
        self._agent_loop = agent_loop
        self._agent_address = agent_address
        self._directory = directory
        self._arena = arena
        self._started = 0

    def started(self) -> list[SimulatedProcess]:
        """Return those that have joined the session."""
        return [process for process in self.by_id.values() if process.core is not None]

    # --- the launcher's side ---

    def start(self, worker_id: bytes) -> None:
        world = self._world
        self._started += 1
        name = f"{self._host}/w{self._started}"
        start = WorkerStart(worker_id, self._agent_address, Tokens(name.encode()), self._directory, self._arena.fd, self._arena.nbytes)
        process = SimulatedProcess(world.loop, world.network, name, self._host, lambda: run_worker(start))
        process.on_end = lambda code: self._end(worker_id, code, None)
        process.on_kill = lambda: self.kill_process(process)
        process.on_crash = lambda error: self._crashed(worker_id, error)
        self.by_id[worker_id] = process
        self._agent_loop.call_later(world.draw(world.chances.fork_s), self._fork, process)

    def _fork(self, process: SimulatedProcess) -> None:
        if not process.dead:
            process.start()

    def kill(self, worker_id: bytes) -> None:
        """SIGKILL a worker, a moment later."""
        if worker_id in self.by_id:
            self._world.loop.call_later(self._world.draw(self._world.chances.death_s), self._end, worker_id, None, 9)

    def tail(self, worker_id: bytes) -> list[str]:
        return []

    # --- ends ---

    def kill_process(self, process: SimulatedProcess) -> None:
        """SIGKILL a worker at once: it does not take another step. Any thread; in its own, it must wait for ever after this."""
        worker_id = next((one for one, other in self.by_id.items() if other is process), None)
        if worker_id is not None:
            self._world.loop.call_soon(self._end, worker_id, None, 9)

    def kill_all(self) -> None:
        """They end with their agent, which hears nothing of it. Not from one of them."""
        for process in self.by_id.values():
            process.kill()
        self.by_id.clear()

    def _crashed(self, worker_id: bytes, error: Exception) -> None:
        self._world.errors.append(f"{self.by_id[worker_id].name} crashed: {''.join(traceback.format_exception(error))}")
        self._world.loop.call_soon(self._end, worker_id, 1, None)

    def _end(self, worker_id: bytes, code: int | None, signal: int | None) -> None:
        process = self.by_id.pop(worker_id, None)
        if process is None:
            return
        process.kill()
        delay = self._world.draw(self._world.chances.death_s)
        self._agent_loop.call_later(delay, self.worker_exited, worker_id, 1000 + self._started, code, signal)
