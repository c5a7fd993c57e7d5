"""The processes of one session, seen from outside: by the marks that each carries in its environment.

It works on any session of this user, also on one that another process has started, and while the session falls apart.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

from shoal._base import processes
from shoal._base.processes import Stat

from .waiting import wait_for


class SessionProcesses:
    """Finds the processes of the session called ``name`` (the name of its directory). A look costs 20 us per process of the machine."""

    def __init__(self, name: str) -> None:
        self.name = name

    def members(self) -> list[Stat]:
        """Return all processes with the session's mark but zombies, the oldest first: also what tasks have started."""
        return sorted(
            (one for one in processes.iter_stats() if one.state != "Z" and processes.mark_of(one.pid, processes.SESSION_MARK) == self.name),
            key=lambda one: (one.start_time, one.pid),
        )

    def head(self) -> int:
        """Return the head's pid, 0 if there is none."""
        servers = self._servers()
        parents = {one.ppid for one in self.members()}
        return next((one.pid for one in servers if one.pid in parents and one.ppid not in {other.pid for other in servers}), 0)

    def template(self) -> int:
        """Return the pid of the template, from which workers are forked; 0 while there is none."""
        head = self.head()
        return next((one.pid for one in self._servers() if one.ppid == head), 0) if head else 0

    def workers(self) -> dict[int, str]:
        """Return the workers: pid -> worker id (hex), the oldest first. What tasks have started is not among them."""
        found: dict[int, str] = {}
        for one in self.members():
            worker_id = processes.mark_of(one.pid, processes.WORKER_MARK)
            if worker_id not in ("", processes.NO_WORKER) and one.pgrp == one.pid and worker_id not in found.values():
                found[one.pid] = worker_id
        return found

    def _servers(self) -> list[Stat]:
        return [one for one in self.members() if processes.mark_of(one.pid, processes.WORKER_MARK) in ("", processes.NO_WORKER)]


def kill(pid: int, *, number: int = signal.SIGKILL, if_still: Callable[[], bool] | None = None, timeout_s: float = 10.0) -> bool:
    """Stop a process, look again, and kill it; return when it is gone. False if it was gone before, or ``if_still()`` is not true any more.

    ``if_still`` is called while the process stands still, so what it sees is what dies.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if if_still is not None:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            wait_for(lambda: _stands_still(pid), timeout_s, f"The stop of process {pid}")
            if not if_still():
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                return False
        signal.pidfd_send_signal(pidfd, number)
        if if_still is not None and number != signal.SIGKILL:
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        if not _ends(pidfd, timeout_s):  # readable from its end on
            raise TimeoutError(f"Process {pid} has not ended {timeout_s:g} s after signal {number}.")
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def _stands_still(pid: int) -> bool:
    stat = processes.read_stat(pid)
    return stat is None or stat.state in "TtZX"


def _ends(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()  # not select.select, which fails for descriptors above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
