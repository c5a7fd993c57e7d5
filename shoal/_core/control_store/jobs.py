"""Jobs: registered, finished, remembered for a while.

register -> RUNNING -> finish -> over, but kept while a detached actor needs its settings -> let_go -> history -> dropped
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from shoal._base.ids import JOB_BYTES
from shoal._core.wire.messages import RegisterJob

from .instructions import Instruction
from .rows import COUNTERS, JOBS, NEXT_JOB, JobRow, decode_job, encode
from .storage.interface import Change


class JobStatistics(msgspec.Struct, frozen=True):
    running: int
    kept_for_actors: int
    history: int


class JobTable:
    def __init__(self, history_limit: int) -> None:
        self._history_limit = history_limit
        self._next = 1
        self._jobs: dict[bytes, JobRow] = {}
        #: Worker id of the driver -> job, the finished ones too.
        self._by_driver: dict[bytes, bytes] = {}
        #: Finished jobs that nothing needs any more, oldest first. The rest of the finished ones has live detached actors.
        self._history: deque[bytes] = deque()

    def register(self, message: RegisterJob, now: float) -> tuple[JobRow, list[Instruction]]:
        """Give the job the next number; numbers are never used twice, also across restarts. A driver that is known has its job."""
        known = self._by_driver.get(message.driver.worker_id)
        if known is not None:
            return self._jobs[known], []
        job_id = self._next.to_bytes(JOB_BYTES, "big")
        self._next += 1
        row = JobRow(job_id, message.driver, message.pid, message.namespace, message.entrypoint, message.config, now)
        self._jobs[job_id] = row
        self._by_driver[message.driver.worker_id] = job_id
        return row, [Change(COUNTERS, NEXT_JOB, encode(self._next)), Change(JOBS, job_id, encode(row))]

    def get(self, job_id: bytes) -> JobRow | None:
        return self._jobs.get(job_id)

    def rows(self) -> list[JobRow]:
        return list(self._jobs.values())

    def running(self, job_id: bytes) -> bool:
        row = self._jobs.get(job_id)
        return row is not None and row.running

    def any_running(self) -> bool:
        return any(row.running for row in self._jobs.values())

    def driven_by(self, worker_id: bytes) -> bytes | None:
        """Return the running job of this driver."""
        job_id = self._by_driver.get(worker_id)
        return job_id if job_id is not None and self.running(job_id) else None

    def of_node(self, node_id: bytes) -> list[bytes]:
        """Return the running jobs whose drivers are on this node."""
        return [job_id for job_id, row in self._jobs.items() if row.running and row.driver.node_id == node_id]

    def finish(self, job_id: bytes, now: float, *, keep: bool) -> list[Instruction]:
        """The driver is gone. ``keep``: detached actors live on and their workers will ask for the job's settings."""
        row = self._jobs.get(job_id)
        if row is None or not row.running:
            return []
        row.finished_at = now
        if not keep:
            return self.let_go(job_id)
        return [Change(JOBS, job_id, encode(row))]

    def let_go(self, job_id: bytes) -> list[Instruction]:
        """Nothing of the finished job lives any more: keep a short record of it, and drop the oldest such record."""
        row = self._jobs.get(job_id)
        if row is None or row.running:
            return []
        # The environment of a thousand finished jobs would be megabytes; nobody starts a worker for them again.
        row.config = msgspec.structs.replace(row.config, env={}, sys_path=[], runtime_env="")
        self._history.append(job_id)
        changes: list[Instruction] = [Change(JOBS, job_id, encode(row))]
        while len(self._history) > self._history_limit:
            oldest = self._history.popleft()
            del self._by_driver[self._jobs.pop(oldest).driver.worker_id]
            changes.append(Change(JOBS, oldest, None))
        return changes

    def load(self, rows: Iterable[tuple[bytes, bytes]], next_job: bytes | None, kept: set[bytes]) -> None:
        """Read back; ``kept`` are the jobs that have live detached actors."""
        if next_job is not None:
            self._next = msgspec.msgpack.decode(next_job, type=int)
        for job_id, value in rows:
            row = self._jobs[job_id] = decode_job(value)
            self._by_driver[row.driver.worker_id] = job_id
        finished = (row for row in self._jobs.values() if not row.running and row.job_id not in kept)
        self._history.extend(row.job_id for row in sorted(finished, key=lambda row: row.finished_at))

    def statistics(self) -> JobStatistics:
        running = sum(row.running for row in self._jobs.values())
        history = len(self._history)
        return JobStatistics(running, len(self._jobs) - running - history, history)

    def check(self) -> None:
        assert len(self._history) <= self._history_limit
        assert len(set(self._history)) == len(self._history)
        assert all(not self._jobs[job_id].running for job_id in self._history)
        assert {row.driver.worker_id: job_id for job_id, row in self._jobs.items()} == self._by_driver
        assert all(int.from_bytes(job_id, "big") < self._next for job_id in self._jobs)
