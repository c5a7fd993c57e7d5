"""Who must die when the node runs out of memory.

Owns: reading the node's memory (cgroup or machine, whichever is tighter) and the choice of the victim.
Must not know: tasks, leases, connections.

    every memory_monitor_s: read_memory ─▶ MemoryWatch.handle ─▶ Kill(worker, reason)

The victim is chosen among the **large** workers, those with at least a third of the largest one's memory: of these the newest that can be
retried, else the newest. Newest first, because it has lost the least work and the older ones can finish; large only, because killing a
small neighbour frees nothing, and the hog would kill them all, one by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal._base.processes import iter_stats

#: Share of the largest worker's memory from which on a worker counts as large.
LARGE_SHARE = 1 / 3
#: Seconds after a kill during which the kernel may still be freeing its memory.
SETTLE_S = 1.0
_SHOWN = 5
_PAGE = os.sysconf("SC_PAGE_SIZE")


class MemorySample(msgspec.Struct, frozen=True):
    used_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        return self.used_bytes / self.total_bytes if self.total_bytes else 0.0


class Candidate(msgspec.Struct, frozen=True):
    """A worker that runs something."""

    worker_id: bytes
    pid: int
    name: str
    retriable: bool
    started_at: float
    used_bytes: int = 0  # private memory of its process group


class Kill(msgspec.Struct, frozen=True):
    worker_id: bytes
    reason: str


@dataclass
class MemoryWatch:
    """Decides, from samples, which worker is killed. No clock, no files."""

    threshold: float
    node: str = "this node"
    _quiet_until: float = 0.0

    def is_short(self, sample: MemorySample, now: float) -> bool:
        """Memory is short and the last kill has had its effect: time to measure the workers and call ``handle``."""
        return sample.share > self.threshold and now >= self._quiet_until

    def handle(self, sample: MemorySample, candidates: Sequence[Candidate], now: float) -> Kill | None:
        """Choose the victim; None while memory suffices or nobody runs. O(candidates)."""
        if not candidates or not self.is_short(sample, now):
            return None
        victim = choose_victim(candidates)
        self._quiet_until = now + SETTLE_S
        return Kill(victim.worker_id, explain(sample, victim, candidates, self.threshold, self.node))


def choose_victim(candidates: Sequence[Candidate]) -> Candidate:
    largest = max(candidate.used_bytes for candidate in candidates)
    large = [candidate for candidate in candidates if candidate.used_bytes >= largest * LARGE_SHARE]
    return max(large, key=lambda candidate: (candidate.retriable, candidate.started_at))


def explain(sample: MemorySample, victim: Candidate, candidates: Sequence[Candidate], threshold: float, node: str) -> str:
    """Say what happened, who used what, and what to do: the text of OutOfMemoryError."""
    users = sorted(candidates, key=lambda candidate: -candidate.used_bytes)[:_SHOWN]
    top = "; ".join(f"{user.name or 'a worker'} (pid {user.pid}) {_gb(user.used_bytes)}" for user in users)
    return (
        f"{node} ran out of memory: {_gb(sample.used_bytes)} of {_gb(sample.total_bytes)} used ({sample.share:.1%}), more than the "
        f"threshold of {threshold:.0%}. {victim.name or 'The worker'} (pid {victim.pid}) was killed to free its {_gb(victim.used_bytes)}. "
        f"Largest users: {top}. "
        "Run fewer tasks at once (a larger num_cpus, or memory=... in their options), or give the node more memory; "
        "SHOAL_MEMORY_USAGE_THRESHOLD moves the threshold."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.1f} MB"


# --- reading the machine ------------------------------------------------------------------------------------------------------


def read_memory(root: str = "/") -> MemorySample:
    """Return the fullest of: the machine, and each cgroup with a limit that this process is in. About 0.1 ms."""
    return max([_machine(root), *_cgroups(root)], key=lambda sample: sample.share)


def read_capacity(root: str = "/") -> MemorySample:
    """Return the smallest of them: what this node may use at most."""
    return min([_machine(root), *_cgroups(root)], key=lambda sample: sample.total_bytes)


def group_memory(leaders: Iterable[int]) -> dict[int, int]:
    """Return the private memory of each process group: resident pages that are neither files nor shared memory. Looks at all processes."""
    wanted = dict.fromkeys(leaders, 0)
    for stat in iter_stats():
        if stat.pgrp in wanted:
            wanted[stat.pgrp] += private_memory(stat.pid)
    return wanted


def private_memory(pid: int) -> int:
    """Return the private resident bytes of a process, 0 if it is gone. Does not walk its memory map, as PSS would."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = file.read().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE


def cgroup_files(controller: str, name: str, root: str = "/") -> Iterator[str]:
    """Read a control file of this process's cgroup and of each one above it, where it exists. Version 2 and version 1."""
    for directory in _cgroup_directories(controller, root):
        try:
            yield (directory / name).read_text().strip()
        except OSError:
            continue


def _cgroup_directories(controller: str, root: str) -> Iterator[Path]:
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops = [Path(root, "sys/fs/cgroup"), Path(root, "sys/fs/cgroup/unified")]
        elif controller in controllers.split(","):
            tops = [Path(root, "sys/fs/cgroup", controller), Path(root, "sys/fs/cgroup", controllers)]
        else:
            continue
        for top in dict.fromkeys(tops):
            directory = top / path.lstrip("/")
            while True:  # inside a container the path may name what only the host sees; the top is then our own group
                yield directory
                if directory == top or top not in directory.parents:
                    break
                directory = directory.parent


def _machine(root: str) -> MemorySample:
    values: dict[str, int] = {}
    with open(Path(root, "proc/meminfo"), "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            if name in (b"MemTotal", b"MemAvailable"):
                values[name.decode()] = int(rest.split()[0]) * 1024
                if len(values) == 2:
                    break
    return MemorySample(values["MemTotal"] - values["MemAvailable"], values["MemTotal"])


def _cgroups(root: str) -> Iterator[MemorySample]:
    """Limits of version 2 and version 1, with pages that the kernel drops at need (inactive file cache) taken off the usage."""
    for limit_name, usage_name, inactive in (
        ("memory.max", "memory.current", "inactive_file "),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ):
        for directory in _cgroup_directories("memory", root):
            try:
                limit = (directory / limit_name).read_text().strip()
                if not limit.isdigit() or int(limit) > 1 << 60:
                    continue
                used = int((directory / usage_name).read_text())
                stat = (directory / "memory.stat").read_text()
            except (OSError, ValueError):
                continue
            cache = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith(inactive)), 0)
            yield MemorySample(max(0, used - cache), int(limit))
