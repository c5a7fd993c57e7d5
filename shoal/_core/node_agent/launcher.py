"""Worker processes: have them forked, kill them, learn how they ended.

    start(worker_id) ─▶ queue ─(one packet under way)─▶ template ─(report: pid)─▶ Children.watch ─(exit)─▶ on_exit
                                    └ template died: start another, take what has been forked, ask again for the rest

One packet at a time, of all starts that came together: a single start leaves at once, a burst shares its forks.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from shoal._core.node_agent.children import Children
from shoal._core.node_agent.fork_protocol import BATCH, HELLO, REPORT

log = logging.getLogger("shoal.node_agent")

#: Seconds between attempts when the machine has no room for another process, and attempts before the start has failed.
_RETRY_S = 0.1
_ATTEMPTS = 20
#: Seconds between two templates at least, so that one that cannot start does not eat the machine; doubled up to the limit.
_RESTART_S = 0.05
_RESTART_LIMIT_S = 5.0
#: Seconds until what was killed is looked at again.
_STRANGERS_S = 0.005
#: Templates in a row that end before they can fork, until the starts that wait are given up.
_USELESS_LIMIT = 3
#: Ended workers whose last lines can still be asked for.
_REMEMBERED = 1000

WorkerExited = Callable[[bytes, int, int | None, int | None], None]  # worker id, pid (0: never started), exit code, signal


class WorkerLogs(Protocol):
    """What the launcher asks of the log reader (``logs.py``)."""

    def started(self, worker_id: bytes, pid: int) -> None: ...
    def ended(self, worker_id: bytes) -> None: ...
    def tail(self, worker_id: bytes, lines: int = 20) -> list[str]: ...


class LauncherStatistics(msgspec.Struct, frozen=True):
    queued: int
    running: int
    forked_total: int
    template_pid: int
    template_restarts: int


class TemplateLauncher:
    """Starts workers by asking the template.

    Args:
        channel: this end of the socket to the running template.
        new_template: starts a template that knows the given workers; returns its pid and a new channel.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        session: str,
        template_pid: int,
        channel: int,
        new_template: Callable[[list[int]], tuple[int, int]],
        logs: WorkerLogs | None = None,
    ) -> None:
        self.on_exit: WorkerExited = lambda worker_id, pid, exit_code, signal: None
        self.logs = logs
        self.template_pid = template_pid
        self._loop = loop
        self._new_template = new_template
        self._channel = channel
        #: Starts that no template was asked for yet, oldest first.
        self._queue: deque[bytes] = deque()
        #: The packet that the template works on.
        self._asked: list[bytes] = []
        #: Pids of all and only workers that were reported and have not been reaped.
        self._pids: dict[bytes, int] = {}
        self._attempts: dict[bytes, int] = {}
        #: Ordered to be killed before they had a pid.
        self._unwanted: set[bytes] = set()
        self._failures: dict[bytes, str] = {}
        self._restart_s = _RESTART_S
        self._restarts = 0
        self._useless = 0
        self._forked_total = 0
        self._closed = False
        self.children = Children(loop, session, self._is_live)
        self._adopt_template()
        loop.call_soon(self.children.reap)  # for those that ended before the handler was there

    # --- orders ---

    def start(self, worker_id: bytes) -> None:
        """Fork a worker. ``on_exit`` follows for certain, with pid 0 if it never came to be."""
        self._queue.append(worker_id)
        self._ask()

    def kill(self, worker_id: bytes) -> None:
        """SIGKILL the worker and its process group, as soon as it has a pid. ``on_exit`` follows."""
        pid = self._pids.get(worker_id)
        if pid is not None:
            self.children.kill(pid)
        elif worker_id in self._queue:
            self._queue.remove(worker_id)
            self._loop.call_soon(self._exited, worker_id, 0, None, 9)
        elif worker_id in self._asked or worker_id in self._attempts:
            self._unwanted.add(worker_id)

    def pid_of(self, worker_id: bytes) -> int | None:
        return self._pids.get(worker_id)

    def tail(self, worker_id: bytes, lines: int = 20) -> list[str]:
        """Return the last lines that the worker wrote, also after its end; why it could not start, if it never did."""
        if worker_id in self._failures:
            return [self._failures[worker_id]]
        return self.logs.tail(worker_id, lines) if self.logs else []

    def statistics(self) -> LauncherStatistics:
        return LauncherStatistics(
            len(self._queue) + len(self._asked), len(self._pids), self._forked_total, self.template_pid, self._restarts
        )

    async def close(self, timeout_s: float) -> bool:
        """Kill all that descends from this process, the template excepted; return whether nothing is left."""
        self._closed = True
        self._queue.clear()
        deadline = self._loop.time() + timeout_s
        # A worker that the template forks at this moment is nobody's child here until the report comes.
        while self.children.kill_all(frozenset({self.template_pid})) or (self._asked and self._channel >= 0):
            if self._loop.time() > deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    # --- the template ---

    def _adopt_template(self) -> None:
        os.set_blocking(self._channel, False)
        self._loop.add_reader(self._channel, self._on_report)
        self.children.watch(self.template_pid, self._template_exited, leads_group=True)

    def _ask(self) -> None:
        if self._asked or not self._queue or self._channel < 0 or self._closed:
            return
        while self._queue and len(self._asked) < BATCH:
            self._asked.append(self._queue.popleft())
        try:
            os.write(self._channel, b"".join(self._asked))
        except OSError as error:  # its exit is on the way
            log.debug("asking the template failed: %s", error)

    def _on_report(self) -> None:
        try:
            packet = os.read(self._channel, REPORT.size * BATCH)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._drop_channel()
            return
        if packet == HELLO:
            self._useless = 0
            return
        self._restart_s = _RESTART_S
        self._asked.clear()
        for worker_id, pid, error in REPORT.iter_unpack(packet):
            if pid:
                self._forked(worker_id, pid)
            else:
                self._fork_failed(worker_id, error)
        self._ask()
        if not self._asked:
            self.children.forget_early()

    def _forked(self, worker_id: bytes, pid: int) -> None:
        self._forked_total += 1
        self._attempts.pop(worker_id, None)
        self._pids[worker_id] = pid
        if self.logs:
            self.logs.started(worker_id, pid)
        self.children.watch(pid, lambda pid, code, signal: self._exited(worker_id, pid, code, signal), leads_group=True)
        if worker_id in self._unwanted or self._closed:
            self._unwanted.discard(worker_id)
            self.children.kill(pid)

    def _fork_failed(self, worker_id: bytes, error: int) -> None:
        attempts = self._attempts[worker_id] = self._attempts.get(worker_id, 0) + 1
        if worker_id in self._unwanted:
            self._exited(worker_id, 0, None, 9)
        elif attempts < _ATTEMPTS:
            self._loop.call_later(_RETRY_S, self._start_again, worker_id)
        else:
            reason = f"{errno.errorcode.get(error, error)}: {os.strerror(error)}" if error else "the forking process died"
            self._fail(
                worker_id,
                f"This node could not start a worker process in {attempts} attempts ({reason}). Look at the limits on processes and memory "
                "(ulimit -u, pids.max and memory.max of the cgroup), or run fewer workers.",
            )

    def _start_again(self, worker_id: bytes) -> None:
        if worker_id in self._unwanted:
            self._exited(worker_id, 0, None, 9)
        else:
            self.start(worker_id)

    def _template_exited(self, pid: int, exit_code: int | None, signal: int | None) -> None:
        self._drop_channel()
        if self._closed:
            return
        log.warning("The template process %d ended (exit code %s, signal %s); starting another.", pid, exit_code, signal)
        self.template_pid = 0
        self._useless += 1
        self.children.kill_strangers()  # the middle process first of all, if a packet is under way
        self._loop.call_later(self._restart_s, self._restart_template)
        self._restart_s = min(_RESTART_LIMIT_S, 2 * self._restart_s)

    def _give_up_starts(self) -> None:
        """No template comes up: better an error for each start than silence."""
        for worker_id in list(self._queue):
            self._fail(worker_id, "The process that workers are forked from cannot start; head.err in the session's logs tells why.")
        self._queue.clear()

    def _restart_template(self) -> None:
        if self._closed:
            return
        if self.children.kill_strangers():  # what the dead middle process had forked has come to us since
            self._loop.call_later(_STRANGERS_S, self._restart_template)
            return
        self._restarts += 1
        self._adopt_workers()
        if self._useless >= _USELESS_LIMIT:
            self._give_up_starts()
        self.template_pid, self._channel = self._new_template(list(self._pids.values()))
        self._adopt_template()
        for worker_id in [w for w in self._queue if w in self._unwanted]:
            self._unwanted.discard(worker_id)
            self.kill(worker_id)
        self._ask()

    def _adopt_workers(self) -> None:
        """Nobody has reported on the packet under way: take what was forked for it, which may serve already; ask again for the rest."""
        asked, self._asked = self._asked, []
        born = self.children.unreported() if asked else {}
        for worker_id in reversed(asked):
            pid = born.get(worker_id.hex())
            if pid is None:
                self._queue.appendleft(worker_id)
            else:
                self._forked(worker_id, pid)

    def _drop_channel(self) -> None:
        if self._channel >= 0:
            self._loop.remove_reader(self._channel)
            os.close(self._channel)
            self._channel = -1

    # --- ends ---

    def _exited(self, worker_id: bytes, pid: int, exit_code: int | None, signal: int | None) -> None:
        self._pids.pop(worker_id, None)
        self._attempts.pop(worker_id, None)
        self._unwanted.discard(worker_id)
        if self.logs and pid:
            self.logs.ended(worker_id)
        if not self._closed:
            self.on_exit(worker_id, pid, exit_code, signal)

    def _is_live(self, worker: str) -> bool:
        worker_id = bytes.fromhex(worker)
        return worker_id in self._pids or worker_id in self._asked

    def _fail(self, worker_id: bytes, why: str) -> None:
        self._failures[worker_id] = why
        while len(self._failures) > _REMEMBERED:
            del self._failures[next(iter(self._failures))]
        self._loop.call_soon(self._exited, worker_id, 0, None, None)
