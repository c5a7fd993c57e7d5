"""The children of the head process: who ended and how; orphans that workers left behind.

The head is a subreaper, so its children are the workers, the template, and every process whose parents below the head are gone. All of
them are reaped here, from one SIGCHLD handler: **nobody else in this process may wait for children** (no ``subprocess``, no asyncio
subprocesses; use ``watch``).

    SIGCHLD ─▶ peek (waitid, WNOWAIT) ─▶ a worker: SIGKILL its group while the zombie still holds the number ─▶ reap ─▶ callback
                                      └▶ anything ended: soon look for orphans; kill those whose worker has ended

A worker's process group covers what its tasks started in the ordinary way. What left the group (``setsid``, daemons) comes to the head
when its parents end, and is known by the mark in its environment. It may live as long as its worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

from shoal._base import processes

#: Statuses of children nobody watches yet: a worker can end before the template's report of its pid is read.
_EARLY_LIMIT = 4096
#: Seconds from an exit to the look for orphans, which costs up to 15 us per process of the machine: never more than a 20th of the time.
_LOOK_DELAY_S = 0.02
_LOOK_SHARE = 20

OnExit = Callable[[int, int | None, int | None], None]  # pid, exit code, signal


class Children:
    """Reaps all children of this process. Lives on the loop's thread, which must be the main thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session: str, is_live: Callable[[str], bool]) -> None:
        self._loop = loop
        self._session = session
        #: Whether a worker with this id (hex) is starting or running.
        self._is_live = is_live
        self._watched: dict[int, OnExit] = {}
        #: Watched children that lead a process group which ends with them.
        self._leaders: set[int] = set()
        self._early: dict[int, int] = {}
        self._look_timer: asyncio.TimerHandle | None = None
        self._look_delay_s = _LOOK_DELAY_S
        self._signalled = False
        # Not the loop's own add_signal_handler: uvloop keeps SIGCHLD to itself.
        signal.signal(signal.SIGCHLD, self._on_signal)

    def close(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._look_timer is not None:
            self._look_timer.cancel()

    def watch(self, pid: int, on_exit: OnExit, *, leads_group: bool) -> None:
        """Call ``on_exit`` when the child has ended, soon if it has already. ``leads_group``: SIGKILL what is left of its group then."""
        status = self._early.pop(pid, None)
        if status is not None:
            self._loop.call_soon(on_exit, pid, *_decode(status))
            return
        self._watched[pid] = on_exit
        if leads_group:
            self._leaders.add(pid)

    def kill(self, pid: int) -> None:
        """SIGKILL a watched child, with its group if it leads one. No effect once it was reaped."""
        if pid in self._leaders:
            processes.kill_group(pid)
        elif pid in self._watched:
            os.kill(pid, signal.SIGKILL)

    def _on_signal(self, number: int, frame: object) -> None:
        if not self._signalled:
            self._signalled = True
            self._loop.call_soon_threadsafe(self.reap)

    def reap(self) -> None:
        """Take leave of every child that has ended."""
        self._signalled = False
        ended = False
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None:
                break
            pid = found.si_pid
            ended = True
            if pid in self._leaders:
                # Before reaping: until then nobody else can get this number.
                processes.kill_group(pid)
            _, status = os.waitpid(pid, 0)
            self._leaders.discard(pid)
            on_exit = self._watched.pop(pid, None)
            if on_exit is not None:
                on_exit(pid, *_decode(status))
            elif len(self._early) < _EARLY_LIMIT:
                self._early[pid] = status
        if ended and self._look_timer is None:
            self._look_timer = self._loop.call_later(self._look_delay_s, self._look_for_orphans)

    def forget_early(self) -> None:
        """Drop the statuses of children nobody asked for: no report is under way that could name them."""
        self._early.clear()

    def kill_strangers(self) -> int:
        """SIGKILL half-born workers: children that nobody watches and that carry no live worker's mark; return how many were there.

        For when the template has died. What they have forked comes here when they are gone: repeat until 0.
        """
        found = 0
        for pid in self._unwatched():
            worker = processes.mark_of(pid, processes.WORKER_MARK)
            if processes.mark_of(pid, processes.SESSION_MARK) == self._session and not self._is_live(worker):
                processes.kill_group(pid)
                found += 1
        return found

    def unreported(self) -> dict[str, int]:
        """Return worker id (hex) -> pid of children nobody watches: the oldest of a mark, for what a worker starts carries it, too."""
        stats = [stat for pid in self._unwatched() if (stat := processes.read_stat(pid)) is not None and stat.state != "Z"]
        workers: dict[str, int] = {}
        for stat in sorted(stats, key=lambda stat: (stat.start_time, stat.pid)):
            worker = processes.mark_of(stat.pid, processes.WORKER_MARK)
            if worker and worker != processes.NO_WORKER and self._is_ours(stat.pid):
                workers.setdefault(worker, stat.pid)
        return workers

    def kill_all(self, spare: frozenset[int] = frozenset()) -> int:
        """SIGKILL all children except ``spare`` and other sessions' processes; return how many were still there. Repeat until 0."""
        self.reap()
        left = 0
        for pid in processes.children_of(os.getpid()):
            if pid not in spare and self._is_ours(pid):
                processes.kill_group(pid)
                left += 1
        return left

    def _look_for_orphans(self) -> None:
        self._look_timer = None
        begin = time.perf_counter()
        for pid in self._unwatched():
            worker = processes.mark_of(pid, processes.WORKER_MARK)
            if worker and worker != processes.NO_WORKER and not self._is_live(worker) and self._is_ours(pid):
                processes.kill_group(pid)
        self._look_delay_s = max(_LOOK_DELAY_S, _LOOK_SHARE * (time.perf_counter() - begin))

    def _unwatched(self) -> list[int]:
        return [pid for pid in processes.children_of(os.getpid()) if pid not in self._watched]

    def _is_ours(self, pid: int) -> bool:
        """Not part of another session that a task has started: that one ends by itself and cleans up after itself."""
        return processes.mark_of(pid, processes.SESSION_MARK) in ("", self._session)


def _decode(status: int) -> tuple[int | None, int | None]:
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None
