"""The worker processes of this node and which of them serves a lease.

Owns: the state of every worker from its start order to its exit.
Must not know: how processes are started, connections, resources.

    STARTING -> FRESH -> LEASED <-> IDLE -> ENDING -> (gone)

A fresh worker has run nothing and serves anybody. From its first lease on a worker belongs to one job, one runtime environment and one
set of GPUs (a CUDA context sees the devices of its creation), and is reused within these only. An actor has a fresh worker, to the end:
``kill`` of the actor must not take along what the tasks of another own.

As many fresh workers as the node has CPUs are kept ready; they are refilled in the background, one round after the leases that wait.
A node of a cluster keeps this reserve from the moment when a job begins, or a lease comes, until nothing has run for a while: two fresh
workers and all that a template imports for them are half of the memory of a node that has nothing to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import msgspec

#: Idle workers of a live job, up to the number of CPUs, stay this many times ``idle_worker_s``: what they imported is worth more than
#: their memory.
WARM_FACTOR = 30
#: Starts that die before they register, in a row, before the leases that wait are given up.
START_ATTEMPTS = 3


class State(Enum):
    STARTING = "starting"
    FRESH = "fresh"
    IDLE = "idle"
    LEASED = "leased"
    ENDING = "ending"


class Worker(msgspec.Struct, eq=False):
    worker_id: bytes
    state: State = State.STARTING
    pid: int = 0
    job_id: bytes = b""
    runtime_env: str = ""
    #: GPU indices of the leases it has served; () for none.
    devices: tuple[tuple[str, tuple[int, ...]], ...] = ()
    lease_id: int = 0
    idle_since: float = 0.0


class WorkerDemand(msgspec.Struct, frozen=True):
    """What a lease asks of its worker."""

    lease_id: int
    job_id: bytes
    runtime_env: str = ""
    devices: tuple[tuple[str, tuple[int, ...]], ...] = ()
    dedicated: bool = False  # an actor


class StartWorker(msgspec.Struct, frozen=True):
    worker_id: bytes


class UseWorker(msgspec.Struct, frozen=True):
    lease_id: int
    worker: Worker


class RetireWorker(msgspec.Struct, frozen=True):
    """Ask the worker to leave in good order."""

    worker: Worker


class StartFailed(msgspec.Struct, frozen=True):
    """No worker could be started for this lease."""

    lease_id: int


Instruction = StartWorker | UseWorker | RetireWorker | StartFailed


class PoolStatistics(msgspec.Struct, frozen=True):
    starting: int
    fresh: int
    idle: int
    leased: int
    ending: int
    started_total: int


@dataclass
class WorkerPool:
    """State of the workers of one node.

    Args:
        prestart: fresh workers to keep ready.
        max_starting: starts under way at once; more would only slow each other down.
        idle_worker_s: seconds until a surplus idle worker is retired.
        rests: keep no reserve while nobody asks for workers.
        new_worker_id: source of ids (random in the server, counted in tests).
    """

    prestart: int
    max_starting: int
    idle_worker_s: float
    new_worker_id: Callable[[], bytes]
    rests: bool = False

    workers: dict[bytes, Worker] = field(default_factory=dict)
    #: The same workers by state: no decision may visit all of a thousand actors.
    _in_state: dict[State, dict[bytes, Worker]] = field(default_factory=lambda: {state: {} for state in State})
    #: Leases that have no worker yet, oldest first.
    _waiting: deque[WorkerDemand] = field(default_factory=deque)
    _finished_jobs: set[bytes] = field(default_factory=set)
    _failed_starts: int = 0
    _started_total: int = 0
    _closed: bool = False
    #: There is no reserve now: nobody has asked for a worker, or not for long.
    _resting: bool = False
    #: Since when nothing runs and nothing waits; None: something does.
    _unused_since: float | None = None

    def __post_init__(self) -> None:
        self._resting = self.rests

    def wake(self) -> list[Instruction]:
        """Work will come: fill the reserve."""
        self._resting, self._unused_since = False, None
        return self.refill()

    def assign(self, demand: WorkerDemand) -> list[Instruction]:
        """Find a worker for a lease: at once if one is idle, else when one has started."""
        self._resting, self._unused_since = False, None
        worker = self._choose(demand)
        if worker is None:
            self._waiting.append(demand)
            return self.refill()
        return [self._use(worker, demand), *self.refill()]

    def withdraw(self, lease_id: int) -> bool:
        """The lease has ended before it got a worker; False when it has one."""
        for demand in self._waiting:
            if demand.lease_id == lease_id:
                self._waiting.remove(demand)
                return True
        return False

    def registered(self, worker_id: bytes, pid: int, now: float) -> list[Instruction]:
        """A started worker is ready."""
        worker = self.workers[worker_id]
        worker.pid = pid
        if worker.state is not State.STARTING:
            return []
        self._failed_starts = 0
        worker.idle_since = now
        self._move(worker, State.FRESH)
        return [*self._serve_waiting(), *self.refill()]

    def released(self, worker_id: bytes, now: float) -> list[Instruction]:
        """The worker's lease has ended in good order."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is not State.LEASED:
            return []
        worker.lease_id, worker.idle_since = 0, now
        self._move(worker, State.IDLE)
        if worker.job_id in self._finished_jobs:
            self._move(worker, State.ENDING)
            return [RetireWorker(worker)]
        return self._serve_waiting()

    def ending(self, worker_id: bytes) -> None:
        """The worker is about to leave or to be killed: nothing new for it."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            self._move(worker, State.ENDING)

    def exited(self, worker_id: bytes) -> tuple[Worker | None, list[Instruction]]:
        """The process is gone. Returns its record as it was, and the replacements."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return None, []
        del self._in_state[worker.state][worker_id]
        out: list[Instruction] = []
        if worker.state is State.STARTING:
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS and not self._starting():
                out += [StartFailed(demand.lease_id) for demand in self._waiting]
                self._waiting.clear()
                self._failed_starts = 0
                return worker, out
        return worker, out + self.refill()

    def job_finished(self, job_id: bytes) -> list[Worker]:
        """Never reuse the job's workers again; returns them all. Those of detached actors live on, and what these lease."""
        self._finished_jobs.add(job_id)
        mine = [worker for worker in self.workers.values() if worker.job_id == job_id]
        for worker in mine:
            if worker.state is State.IDLE:
                self._move(worker, State.ENDING)
        return mine

    def tick(self, now: float) -> list[Instruction]:
        """Retire workers that were idle for too long, longest idle first; in the end the reserve, on a node that rests."""
        idle = sorted(self._in_state[State.IDLE].values(), key=lambda one: one.idle_since)
        surplus = len(idle) - self.prestart
        out: list[Instruction] = []
        for worker in idle:
            limit = self.idle_worker_s if surplus > 0 else self.idle_worker_s * WARM_FACTOR
            if now - worker.idle_since >= limit:
                self._move(worker, State.ENDING)
                surplus -= 1
                out.append(RetireWorker(worker))
        return out + self._rest(now)

    def retire_idle(self) -> list[Instruction]:
        """The node leaves: have those end that have run something and run nothing now, in good order."""
        out: list[Instruction] = []
        for worker in list(self._in_state[State.IDLE].values()):
            self._move(worker, State.ENDING)
            out.append(RetireWorker(worker))
        return out

    def leaving(self) -> int:
        """Return how many are about to end."""
        return self._count(State.ENDING)

    def refill(self) -> list[Instruction]:
        """Start what the waiting leases need; and when that is under way, what is missing of the fresh reserve."""
        if self._closed:
            return []
        starting, fresh = self._starting(), self._count(State.FRESH)
        missing = len(self._waiting) - starting
        if missing <= 0 and self._failed_starts < START_ATTEMPTS:
            missing = len(self._waiting) + (0 if self._resting else self.prestart) - fresh - starting
        number = min(missing, self.max_starting - starting)
        return [self._start() for _ in range(number)]

    def close(self) -> None:
        """Start nothing any more."""
        self._closed = True
        self._waiting.clear()

    def statistics(self) -> PoolStatistics:
        count = {state: self._count(state) for state in State}
        return PoolStatistics(
            count[State.STARTING], count[State.FRESH], count[State.IDLE], count[State.LEASED], count[State.ENDING], self._started_total
        )

    def check(self) -> None:
        leased = [worker.lease_id for worker in self.workers.values() if worker.state is State.LEASED]
        assert all(leased), "a leased worker without lease"
        assert len(set(leased)) == len(leased), "two workers for one lease"
        assert not {demand.lease_id for demand in self._waiting} & set(leased)
        assert self._starting() <= self.max_starting
        assert sum(len(workers) for workers in self._in_state.values()) == len(self.workers)
        for worker in self.workers.values():
            assert self._in_state[worker.state][worker.worker_id] is worker
            assert (worker.state not in (State.STARTING, State.FRESH)) or not worker.job_id, "a fresh worker belongs to nobody"
            assert worker.state is not State.FRESH or not self._waiting, "a lease waits beside a fresh worker"

    def _rest(self, now: float) -> list[Instruction]:
        """Give up the reserve if nothing has run for long."""
        if not self.rests or self._resting or self._waiting or self._starting() or self._count(State.LEASED):
            self._unused_since = None
            return []
        if self._unused_since is None:
            self._unused_since = now
        if now - self._unused_since < self.idle_worker_s * WARM_FACTOR:
            return []
        self._resting = True
        fresh = list(self._in_state[State.FRESH].values())
        for worker in fresh:
            self._move(worker, State.ENDING)
        return [RetireWorker(worker) for worker in fresh]

    def _choose(self, demand: WorkerDemand) -> Worker | None:
        """Tasks take the warmest worker of their own job, else a fresh one; actors a fresh one."""
        fresh = next(iter(self._in_state[State.FRESH].values()), None)
        if demand.dedicated:
            return fresh
        # In the order of becoming idle: the last one is the warmest.
        own = next((worker for worker in reversed(self._in_state[State.IDLE].values()) if _suits(worker, demand)), None)
        return own or fresh

    def _use(self, worker: Worker, demand: WorkerDemand) -> UseWorker:
        self._move(worker, State.LEASED)
        worker.lease_id = demand.lease_id
        worker.job_id, worker.runtime_env, worker.devices = demand.job_id, demand.runtime_env, demand.devices
        return UseWorker(demand.lease_id, worker)

    def _serve_waiting(self) -> list[Instruction]:
        out: list[Instruction] = []
        for demand in list(self._waiting):
            worker = self._choose(demand)
            if worker is not None:
                self._waiting.remove(demand)
                out.append(self._use(worker, demand))
        return out

    def _start(self) -> StartWorker:
        worker = Worker(self.new_worker_id())
        self.workers[worker.worker_id] = self._in_state[State.STARTING][worker.worker_id] = worker
        self._started_total += 1
        return StartWorker(worker.worker_id)

    def _starting(self) -> int:
        return self._count(State.STARTING)

    def _count(self, state: State) -> int:
        return len(self._in_state[state])

    def _move(self, worker: Worker, state: State) -> None:
        del self._in_state[worker.state][worker.worker_id]
        worker.state = state
        self._in_state[state][worker.worker_id] = worker


def _suits(worker: Worker, demand: WorkerDemand) -> bool:
    return worker.job_id == demand.job_id and worker.runtime_env == demand.runtime_env and worker.devices == demand.devices
