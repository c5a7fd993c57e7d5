"""Processes of this machine as the kernel shows them, and the few system calls that the standard library lacks (Linux).

A pid alone names nobody for long: pids are used again. Whoever may act late keeps the pid *and* the start time, or looks again
after opening a pidfd, which is bound to one process for good.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from typing import NamedTuple

#: Carried by the environment of every process of a session, and by whatever they start.
SESSION_MARK = "SHOAL_SESSION"
#: Carried by workers and whatever they start: which worker. All zeros in the head and the template.
WORKER_MARK = "SHOAL_WORKER_ID"
NO_WORKER = "0" * 56

_MOST_DESCRIPTORS = 1 << 20
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Stat(NamedTuple):
    """One line of /proc/PID/stat, shortened."""

    pid: int
    state: str  # "Z" is a zombie
    ppid: int
    pgrp: int
    start_time: int  # clock ticks after boot


def read_stat(pid: int) -> Stat | None:
    """Return what the kernel says of a process, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except OSError:
        return None
    values = data[data.rindex(b")") + 2 :].split(None, 21)
    return Stat(pid, values[0].decode(), int(values[1]), int(values[2]), int(values[19]))


def iter_stats() -> Iterator[Stat]:
    """Look at all processes of the machine. About 15 us each."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            yield stat


def is_running(pid: int, start_time: int | None = None) -> bool:
    """Return whether the process exists, is no zombie, and (if given) is the one that started then."""
    stat = read_stat(pid)
    return stat is not None and stat.state != "Z" and start_time in (None, stat.start_time)


def children_of(pid: int) -> list[int]:
    """Return the children of a process's main thread, zombies included: cheap where the kernel lists them, else a look at all processes."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return [stat.pid for stat in iter_stats() if stat.ppid == pid]


def mark_of(pid: int, name: str) -> str:
    """Return a variable of the process's first environment; "" if it has none or is not ours to read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            block = file.read()
    except OSError:
        return ""
    _, found, rest = (b"\0" + block).partition(b"\0" + name.encode() + b"=")
    return rest.partition(b"\0")[0].decode("ascii", "replace") if found else ""


def kill_group(pid: int) -> None:
    """SIGKILL a process and the process group that it leads. The caller must know that ``pid`` is not reused."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def kill_marked(session: str, spare: frozenset[int]) -> int:
    """SIGKILL every process that carries the mark of the session, except ``spare``; return how many were found."""
    found = 0
    for name in os.listdir("/proc"):
        pid = int(name) if name.isdigit() else 0
        if not pid or pid in spare or mark_of(pid, SESSION_MARK) != session:
            continue
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            # Looked at again: between the look and the open, the pid may have changed hands.
            if mark_of(pid, SESSION_MARK) == session:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                found += 1
        except OSError:
            pass
        finally:
            os.close(pidfd)
    return found


def become_subreaper() -> None:
    """Adopt all orphans among the descendants of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Get a SIGKILL when the parent's main thread ends. The caller checks afterwards that the parent is still the right one."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard limit, a million at most (some programs walk through all of them); return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
        except (OSError, ValueError):
            pass
    return soft


def close_descriptors_except(keep: set[int]) -> None:
    """Close every descriptor that is not in ``keep``."""
    first = 0
    for descriptor in sorted(keep):
        if first < descriptor:  # an empty range closes everything (CPython 3.11 hands -1 to close_range)
            os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, 1 << 30)


def return_free_memory() -> None:
    """Give the kernel back what the start of this process has left unused in its heap: 1.3 of 20 MiB of a head; in 1 ms."""
    trim = getattr(_libc, "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
