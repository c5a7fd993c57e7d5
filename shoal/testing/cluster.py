"""A session for one test: everything is fresh, its processes can be harmed, and at the end nothing of it may be left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shoal._base import processes
from shoal._core.api.lifecycle import init, shutdown
from shoal._core.api.ray_context import RayContext

from .chaos import Chaos
from .faults import Fault, Faults, Hold, label_of
from .leaks import GONE_S, leak_check
from .session_processes import SessionProcesses, kill
from .stored_objects import actor_worker_id, hold_store_memory, lose_stored_copy
from .waiting import wait_for

#: Enough for tests, and made within milliseconds.
DEFAULT_OPTIONS = {"num_cpus": 2, "object_store_memory": 256 << 20}
FAULT_WORKER = "shoal.testing.fault_worker:run_worker"


@dataclass(frozen=True)
class WorkerProcess:
    """A worker, as it was when it was looked at."""

    pid: int
    worker_id: str  # hex
    #: What it ran, by the names of the functions and methods; always empty in a cluster without ``faults``.
    running: tuple[str, ...] = ()
    #: The class of the actor that lives in it, "" for none; known in a cluster with ``faults``.
    actor: str = ""


class Cluster:
    """The session that ``fresh_cluster`` has started. Its methods act from outside: on processes, and by orders that calls find.

    A function is named by the remote function, the actor class (its ``__init__``), a handle's method, or a string such as ``"f"`` or
    ``"Counter.add"``.
    """

    def __init__(self, context: RayContext, *, with_faults: bool) -> None:
        #: What ``shoal.init`` returned.
        self.context = context
        self.session_dir = Path(context.address_info["session_dir"]).resolve()
        self.processes = SessionProcesses(self.session_dir.name)
        self._faults = Faults(self.session_dir) if with_faults else None
        self._paused: dict[int, int] = {}

    # --- looking ---------------------------------------------------------------------------------------------

    @property
    def head_pid(self) -> int:
        """The head's pid; 0 if it is gone."""
        return self.processes.head()

    @property
    def template_pid(self) -> int:
        """The pid of the process that workers are forked from; 0 while there is none."""
        return self.processes.template()

    def workers(self) -> list[WorkerProcess]:
        """Return the workers that are there now, the oldest first."""
        return [self._look_at(pid, worker_id) for pid, worker_id in self.processes.workers().items()]

    def wait_running(self, function: Any, timeout_s: float = 10.0) -> int:
        """Block until a worker runs the function; return its pid. TimeoutError after ``timeout_s`` seconds."""
        self._need_faults("wait_running")
        label = label_of(function)
        return wait_for(
            lambda: next((worker.pid for worker in self.workers() if label in worker.running), 0), timeout_s, f"A worker that runs {label}"
        )

    def _look_at(self, pid: int, worker_id: str) -> WorkerProcess:
        actor, *running = self._faults.box.told(pid) if self._faults is not None else [""]
        return WorkerProcess(pid, worker_id, tuple(running), actor)

    # --- killing ---------------------------------------------------------------------------------------------

    def kill_worker(
        self, *, running: Any = None, actor: Any = None, idle: bool = False, pid: int | None = None, timeout_s: float = 10.0
    ) -> int:
        """SIGKILL one worker: one that runs a function, an actor's, an idle one, a given one, or (with nothing said) the oldest.

        Waits until there is such a worker, and then until it is gone; returns its pid. The worker stands still while it is looked
        at, so what dies is what was asked for.

        Raises:
            TimeoutError: no such worker came within ``timeout_s`` seconds.
        """
        if sum((running is not None, actor is not None, idle, pid is not None)) > 1:
            raise ValueError("Give one of running, actor, idle and pid.")
        if pid is not None:
            if pid not in self.processes.workers():
                raise ValueError(f"Process {pid} is no worker of this session; these are: {list(self.processes.workers())}.")
            kill(pid, timeout_s=timeout_s)
            return pid
        if actor is not None:
            return self._kill_first(lambda worker: worker.worker_id == actor_worker_id(actor), f"the worker of {actor!r}", timeout_s)
        if running is not None:
            self._need_faults("kill_worker(running=...)")
            label = label_of(running)
            return self._kill_first(lambda worker: label in worker.running, f"a worker that runs {label}", timeout_s)
        if idle:
            self._need_faults("kill_worker(idle=True)")
            return self._kill_first(lambda worker: not worker.running and not worker.actor, "an idle worker", timeout_s)
        return self._kill_first(lambda _worker: True, "a worker", timeout_s)

    def kill_template(self) -> int:
        """SIGKILL the process that workers are forked from; return its pid when it is gone. The head starts another."""
        pid: int = wait_for(lambda: self.template_pid, what="The template")
        kill(pid)
        return pid

    def kill_head(self) -> int:
        """SIGKILL the head, and with it the session; return its pid when it is gone."""
        pid: int = wait_for(lambda: self.head_pid, what="The head")
        kill(pid)
        return pid

    def chaos(self, *, seed: int, kills_per_s: float = 5.0) -> Chaos:
        """Return a context manager that kills a random worker now and then, for as long as its block runs.

        ``seed`` draws when, and which worker. What the workers do meanwhile is up to them: a seed repeats the attack, not the race.
        """
        return Chaos(self.processes, seed, kills_per_s)

    def _kill_first(self, wanted: Callable[[WorkerProcess], bool], what: str, timeout_s: float) -> int:
        def still_wanted(worker: WorkerProcess) -> bool:
            return wanted(self._look_at(worker.pid, worker.worker_id))

        def find_and_kill() -> int:
            for worker in self.workers():
                if wanted(worker) and kill(worker.pid, if_still=partial(still_wanted, worker)):
                    return worker.pid
            return 0

        return wait_for(find_and_kill, timeout_s, f"The presence of {what}")

    # --- standing still --------------------------------------------------------------------------------------

    def pause(self, pid: int) -> None:
        """Stop a process of the session (SIGSTOP): it is there and does nothing. The end of the cluster resumes it."""
        if pid not in {one.pid for one in self.processes.members()}:
            raise ValueError(f"Process {pid} does not belong to this session.")
        stat = processes.read_stat(pid)
        os.kill(pid, signal.SIGSTOP)
        self._paused[pid] = stat.start_time if stat else 0

    def resume(self, pid: int) -> None:
        """Let a paused process go on."""
        start_time = self._paused.pop(pid, None)
        if start_time is not None and processes.is_running(pid, start_time):
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def paused(self, pid: int) -> Iterator[None]:
        """Pause a process for the length of the block."""
        self.pause(pid)
        try:
            yield
        finally:
            self.resume(pid)

    # --- calls that go wrong -----------------------------------------------------------------------------------

    def fail_next(self, function: Any, error: BaseException | type[BaseException], *, times: int = 1) -> Fault:
        """Let the next ``times`` calls of a function raise ``error`` in the place of running. Retries count as calls."""
        return self._need_faults("fail_next").fail(function, error, times)

    def crash_next(self, function: Any, *, times: int = 1, number: int = signal.SIGKILL) -> Fault:
        """Let the next ``times`` calls of a function end their worker by a signal before they run."""
        return self._need_faults("crash_next").crash(function, times, number)

    def delay_next(self, function: Any, seconds: float, *, times: int = 1) -> Fault:
        """Let the next ``times`` calls of a function take ``seconds`` longer. To be sure of an order, use ``hold_next``."""
        return self._need_faults("delay_next").delay(function, seconds, times)

    def hold_next(self, function: Any, *, times: int = 1) -> Hold:
        """Let the next ``times`` calls of a function wait where they begin, until the ``with`` block of the result ends."""
        return self._need_faults("hold_next").hold(function, times)

    def _need_faults(self, what: str) -> Faults:
        if self._faults is None:
            raise RuntimeError(f"{what} needs workers that look for faults: start the cluster with fresh_cluster(faults=True).")
        return self._faults

    # --- objects -----------------------------------------------------------------------------------------------

    def lose_object(self, ref: Any, timeout_s: float = 10.0) -> None:
        """Lose the stored copy of an object, in memory and on disk, as when a machine is lost. Waits until the object is there.

        The next ``get`` finds it lost: a task's result is computed again, what came from ``put`` raises ObjectLostError. Arrays over the
        old memory, here or elsewhere, stay as they are.

        Raises:
            ValueError: the object has no stored copy: small values travel inside messages and live in their owner.
        """
        lose_stored_copy(ref, timeout_s)

    @contextmanager
    def full_store(self, nbytes: int | None = None) -> Iterator[None]:
        """Take memory of the object store in one piece, all of it unless ``nbytes`` is given, for the length of the block.

        What is stored is spilled to make room. New objects wait for room, and go to files of their own after
        ``SHOAL_STORE_FULL_TIMEOUT_S``.

        Raises:
            RuntimeError: the room cannot be made, because values in it are being read.
        """
        with hold_store_memory(nbytes):
            yield

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go what is held and paused, and end the session. Idempotent."""
        if self._faults is not None:
            self._faults.close()
        for pid in list(self._paused):
            self.resume(pid)
        shutdown()


@contextmanager
def fresh_cluster(*, faults: bool = True, within_s: float = GONE_S, ignore_leaks: Sequence[str] = (), **options: Any) -> Iterator[Cluster]:
    """Start a session, end it with the block, and check that nothing of it is left.

    Args:
        faults: let calls look for orders to fail (``fail_next`` and its like, ``running=``): about 20 us per call. Without, workers are
            exactly those of ``shoal.init``.
        within_s: seconds within which everything must be gone.
        ignore_leaks: patterns of what may stay, as of ``leak_check``.
        options: of ``shoal.init``; default are 2 CPUs and 256 MiB of object store.

    Raises:
        LeakError: at the end, something is left.
        RuntimeError: a session runs already.

    Example:
        >>> with fresh_cluster(num_cpus=1) as cluster:
        ...     fault = cluster.fail_next("f", OSError("disk on fire"))
    """
    options = {**DEFAULT_OPTIONS, **options}
    if options.get("local_mode"):
        faults = False
    elif faults:
        options["_worker_entry"] = FAULT_WORKER
    with leak_check(
        temp_dir=options.get("_temp_dir"), spill_dir=options.get("object_spilling_directory"), within_s=within_s, ignore=ignore_leaks
    ):
        cluster = Cluster(init(**options), with_faults=faults)
        try:
            yield cluster
        finally:
            cluster.close()
