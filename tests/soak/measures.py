"""What a session costs at one moment, and whether it has grown since an earlier one.

    before = sample(context)      ...work...      sample(context).grown(before)  ->  lines that name what is beyond its bound

Memory is what a process alone holds (RssAnon): pages of the arena belong to the session and come and go with objects. Workers are
compared by their largest, because they may be replaced.
"""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from shoal._base import runtime
from shoal.testing import SessionProcesses

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
SCALE = float(os.environ.get("SOAK_SCALE", "1"))
MIB = 1 << 20
#: Beyond this a process has grown: allocators keep some pages, a table may double once, the head remembers the last actors that died.
GROWTH_BYTES = 4 * MIB
#: A worker also imports what its job needs, and the first sample may meet only those that have run nothing.
WORKER_GROWTH_BYTES = 16 * MIB
#: Descriptors and threads that may come and go: a connection on its way, an idle worker's.
SLACK = 8
#: Workers that may be on their way in or out, with two log files each.
WORKER_SLACK = 24


def scaled(amount: int, least: int = 10) -> int:
    """The issue's figure, or the share of it that SOAK_SCALE asks for."""
    return max(least, int(amount * SCALE))


@dataclass(frozen=True)
class Process:
    anonymous_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Sample:
    """One look at all processes of a session, and at its directory."""

    driver: Process
    head: Process
    template: Process
    workers: tuple[Process, ...]
    #: Objects in the driver's ownership table.
    owned: int
    tables_bytes: int
    log_bytes: int
    log_files: int

    def __str__(self) -> str:
        largest = max((worker.anonymous_bytes for worker in self.workers), default=0)
        return (
            f"driver {_mib(self.driver.anonymous_bytes)}, head {_mib(self.head.anonymous_bytes)}, "
            f"template {_mib(self.template.anonymous_bytes)}, {len(self.workers)} workers up to {_mib(largest)} MiB; "
            f"descriptors {self.driver.descriptors}+{self.head.descriptors}, threads {self.driver.threads}+{self.head.threads}, "
            f"owned {self.owned}, tables {_mib(self.tables_bytes)} MiB, logs {self.log_files} files {_mib(self.log_bytes)} MiB"
        )

    def grown(self, before: Sample) -> list[str]:
        """Name everything that is larger than ``before`` by more than its bound; an empty list is what a test wants."""
        found = []
        # Each worker costs the driver a connection, and the head a connection and a pidfd.
        slack = SLACK + 2 * max(0, len(self.workers) - len(before.workers))
        pairs = [(name, getattr(self, name), getattr(before, name)) for name in ("driver", "head", "template")]
        if self.workers and before.workers:
            pairs.append(("the largest worker", max(self.workers, key=_size), max(before.workers, key=_size)))
        for name, now, then in pairs:
            bound = WORKER_GROWTH_BYTES if "worker" in name else GROWTH_BYTES
            if now.anonymous_bytes - then.anonymous_bytes > bound:
                found.append(f"{name} grew from {_mib(then.anonymous_bytes)} to {_mib(now.anonymous_bytes)} MiB")
            found += [
                f"{name} has {getattr(now, what)} {what}, it had {getattr(then, what)}"
                for what in ("descriptors", "threads")
                if getattr(now, what) - getattr(then, what) > slack
            ]
        if len(self.workers) > len(before.workers) + WORKER_SLACK:
            found.append(f"{len(self.workers)} workers, there were {len(before.workers)}")
        if self.tables_bytes - before.tables_bytes > GROWTH_BYTES:
            found.append(f"the control store's tables grew from {_mib(before.tables_bytes)} to {_mib(self.tables_bytes)} MiB")
        if self.log_bytes - before.log_bytes > GROWTH_BYTES or self.log_files - before.log_files > 2 * WORKER_SLACK:
            found.append(f"the logs grew from {before.log_files} files, {before.log_bytes} B to {self.log_files}, {self.log_bytes} B")
        if self.owned > before.owned + SLACK:
            found.append(f"the driver's ownership table grew from {before.owned} to {self.owned} entries")
        return found


def sample(context) -> Sample:
    """Look at the session of this driver. Collects garbage first: cycles that user code made are not the runtime's."""
    gc.collect()
    owned = owned_objects()  # first: what was dropped is given up by then
    directory = Path(context.address_info["session_dir"]).resolve()
    members = SessionProcesses(directory.name)
    looked = [found for pid in members.workers() if (found := _look(pid)) is not None]
    logs = [size for path in (directory / "logs").iterdir() if (size := _file_bytes(path)) is not None]
    return Sample(
        _certain(os.getpid()),
        _certain(members.head()),
        _certain(members.template()),
        tuple(looked),
        owned,
        sum(_file_bytes(path) or 0 for path in directory.glob("tables.sqlite*")),
        sum(logs),
        len(logs),
    )


def owned_objects() -> int:
    """The number of entries in this process's ownership table, after all that was posted before has been handled."""
    current = runtime.current()
    current.inbox.barrier()
    return len(current.core.objects.own.entries)


def resident_bytes() -> int:
    """The memory of this process, shared pages included."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_driver() -> None:
    """Assert the invariants of the driver's state, on the thread that may look at it."""
    current = runtime.current()
    done = threading.Event()
    failures: list[BaseException] = []

    def check(_arg: object) -> None:
        try:
            current.core.check()
        except BaseException as error:
            failures.append(error)
        done.set()

    current.inbox.post(check, None)
    assert done.wait(60), "the I/O thread does not answer"
    if failures:
        raise failures[0]


def _look(pid: int) -> Process | None:
    """None if the process has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        return Process(int(fields["RssAnon"].split()[0]) * 1024, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]))
    except (OSError, KeyError):
        return None


def _file_bytes(path: Path) -> int | None:
    """None if the file was removed meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _certain(pid: int) -> Process:
    found = _look(pid)
    assert found is not None, f"process {pid} is gone"
    return found


def _size(process: Process) -> int:
    return process.anonymous_bytes


def _mib(amount: int) -> str:
    return f"{amount / MIB:.1f}"
