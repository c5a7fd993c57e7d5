"""The template: a warm, single-threaded process from which workers are forked; the janitor when the head is gone.

    head ──(packet: worker ids)──▶ template ── fork ──▶ middle ── fork ──▶ worker, worker, ...
         ◀─(packet: id, pid, errno)──┘  ◀──(pids)──────┘ exits at once, so the workers become children of the head (a subreaper)

- It never runs user code and never starts a thread, so every fork is safe, and it always notices the end of the head (end of its socket).
- Then it kills what the session left: workers' process groups, and every process with the session's mark; removes the files; leaves.
- One middle process serves all requests of one packet: 0.9 ms for one, 1.8 ms for the pair, so bursts cost half.
- The worker waits for the end of the middle process before it asks for the parent-death signal: asked earlier, it would mean the middle.
- It leads a session of its own, so neither Ctrl-C nor a signal to the head's group reaches it.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

import msgspec

from shoal._base import processes
from shoal._base.ids import WORKER_BYTES
from shoal._base.paths import worker_logs
from shoal._base.process_title import set_mark, set_title
from shoal._core.node_agent.fork_protocol import HELLO, REPORT
from shoal._core.process import bootstrap
from shoal._core.process import session as sessions
from shoal._core.process.worker_output import text_stream
from shoal._core.worker.worker_start import WorkerStart

#: Seconds that the janitor goes on looking for processes of the session.
JANITOR_S = 2.0
#: Added to a worker's badness, in 1/1000 of the memory: enough against the head, not against a true hog elsewhere.
_OOM_SCORE = 300
_PACKET_BYTES = 64 * 1024


class TemplateOptions(msgspec.Struct):
    """What a template must know. Travels on the command line when the head restarts it, so it holds no secret."""

    channel: int  # descriptor of the socket to the head, which preserves packets
    presence: int  # descriptor that tells the driver, by its end, that nothing is left
    head_pid: int
    session_dir: str
    arena_fd: int
    arena_bytes: int
    worker_entry: str  # "module:function"
    #: Workers forked by an earlier template.
    workers: list[int] = []


def main(argument: str) -> NoReturn:
    """Run a template in a fresh interpreter."""
    run(msgspec.json.decode(argument, type=TemplateOptions))


def load_entry(entry: str) -> Callable[[WorkerStart], object]:
    """Import the function that a worker runs, and with it all that a worker needs."""
    module, _, name = entry.partition(":")
    found: Callable[[WorkerStart], object] = getattr(import_module(module), name)
    return found


def run(options: TemplateOptions) -> NoReturn:
    """Be the template of the head that is this process's parent, until the head's end."""
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        processes.close_descriptors_except({0, 1, 2, options.channel, options.presence, options.arena_fd})
        set_title("shoal: template")
        sys.argv[:] = [""]  # what started the head is not for user code to see
        template = Template(options)
        # Whatever is alive now is never collected again, so the collector does not touch, and thereby copy, the pages of a forked child.
        gc.collect()
        gc.freeze()
        template.serve()
        template.clean_up()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Template:
    def __init__(self, options: TemplateOptions) -> None:
        self.options = options
        self.session = sessions.open_session(options.session_dir)
        bootstrap.import_root()
        self.entry = load_entry(options.worker_entry)
        #: Start times of the workers forked so far; those that ended are dropped now and then.
        self.workers: dict[int, int] = {}
        self._prune_at = 256
        self._note(options.workers)

    def serve(self) -> None:
        """Fork what is asked for, until the head is gone."""
        os.write(self.options.channel, HELLO)
        while True:
            try:
                packet = os.read(self.options.channel, _PACKET_BYTES)
            except ConnectionError:
                return
            if not packet:
                return
            ids = [packet[at : at + WORKER_BYTES] for at in range(0, len(packet), WORKER_BYTES)]
            reports = self._fork(ids)
            try:
                os.write(self.options.channel, reports)
            except OSError:
                return

    def _fork(self, ids: list[bytes]) -> bytes:
        """Fork a worker per id; return the reports."""
        read_end, write_end = os.pipe()
        try:
            middle = os.fork()
        except OSError as error:
            os.close(read_end)
            os.close(write_end)
            return b"".join(REPORT.pack(worker_id, 0, error.errno or 0) for worker_id in ids)
        if middle == 0:
            self._fork_from_the_middle(ids, write_end)
        os.close(write_end)
        reports = os.read(read_end, _PACKET_BYTES)
        os.close(read_end)
        os.waitpid(middle, 0)
        done = len(reports) // REPORT.size
        self._note([REPORT.unpack_from(reports, i * REPORT.size)[1] for i in range(done)])
        return reports + b"".join(REPORT.pack(worker_id, 0, 0) for worker_id in ids[done:])

    def _fork_from_the_middle(self, ids: list[bytes], write_end: int) -> NoReturn:
        reports = b""
        middle = os.getpid()
        try:
            for worker_id in ids:
                try:
                    pid = os.fork()
                except OSError as error:
                    reports += REPORT.pack(worker_id, 0, error.errno or 0)
                    continue
                if pid == 0:
                    self._become_worker(worker_id, middle)
                reports += REPORT.pack(worker_id, pid, 0)
            os.write(write_end, reports)
        finally:
            os._exit(0)  # whatever happened: this copy of the template must not go on to serve

    def _become_worker(self, worker_id: bytes, middle: int) -> NoReturn:
        """Turn this fresh fork into a worker; leave with its exit status."""
        code = 1
        try:
            os.setpgid(0, 0)
            set_mark(processes.WORKER_MARK, worker_id.hex())
            self._redirect_output(worker_id)
            processes.close_descriptors_except({0, 1, 2, self.options.arena_fd})
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._die_with_head(middle)
            _offer_to_oom_killer()
            set_title("shoal::idle")
            faulthandler.enable()  # a crash in native code leaves its Python stack in the log
            options = self.options
            start = WorkerStart(
                worker_id, self.session.agent_address, self.session.tokens(), options.session_dir, options.arena_fd, options.arena_bytes
            )
            result = self.entry(start)
            code = result if isinstance(result, int) else 0
        except SystemExit as leaving:
            code = _exit_code(leaving)
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(code)

    def _redirect_output(self, worker_id: bytes) -> None:
        for path, descriptor in zip(worker_logs(self.session.logs_dir, worker_id, os.getpid()), (1, 2), strict=True):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.dup2(file, descriptor)
            os.close(file)
        sys.stdout = text_stream(1)
        sys.stderr = text_stream(2)

    def _die_with_head(self, middle: int) -> None:
        """Arrange to be killed when the head ends; leave if it has ended already."""
        while os.getppid() == middle:
            time.sleep(0.0005)
        processes.die_with_parent()
        if os.getppid() != self.options.head_pid:
            os._exit(1)

    def _note(self, pids: list[int]) -> None:
        for pid in pids:
            if pid and (stat := processes.read_stat(pid)) is not None:
                self.workers[pid] = stat.start_time
        if len(self.workers) > self._prune_at:
            self.workers = {pid: start for pid, start in self.workers.items() if processes.is_running(pid, start)}
            self._prune_at = max(256, 2 * len(self.workers))

    def clean_up(self) -> None:
        """The head is gone: end whatever belongs to the session, then remove its files."""
        me = frozenset({os.getpid()})
        deadline = time.monotonic() + JANITOR_S
        while True:
            found = self._kill_groups() + processes.kill_marked(self.session.name, me)
            if not found or time.monotonic() > deadline:
                break
            time.sleep(0.005)
        self.session.remove()

    def _kill_groups(self) -> int:
        """Kill the groups of forked workers, also those whose leader the kernel has taken already."""
        found = 0
        for stat in processes.iter_stats():
            start = self.workers.get(stat.pgrp)
            if start is None or stat.state == "Z":
                continue
            leader = processes.read_stat(stat.pgrp)
            if leader is None or leader.start_time == start:  # otherwise the number names a stranger's group
                processes.kill_group(stat.pid)
                found += 1
        return found


def _offer_to_oom_killer() -> None:
    """Let the kernel, when our own memory watch came too late, end a worker rather than the head or the driver."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(_OOM_SCORE))
    except OSError:
        pass  # somebody has set a higher score already


def _exit_code(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    print(leaving.code, file=sys.stderr)
    return 1


def _leave(code: int) -> NoReturn:
    """End a worker: what user code registered with ``atexit`` runs; the stack below, which is the template's, does not unwind."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(code)
