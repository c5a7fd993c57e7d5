"""What workers print: read from their files, cut into lines, handed on for the driver.

    worker ── stdout, stderr ──▶ logs/worker-<id>-<pid>.out|.err ──(inotify)──▶ WorkerLogReader ──▶ emit(LogLines) ──▶ driver

Files, not pipes: a worker never blocks on a slow reader, and its last words survive it. The kernel tells that a file has grown, so idle
workers cost nothing; without inotify, sizes are polled while workers live. After a sign of life the reader waits a moment, so that
a flood costs one read per moment and not one per line. When ``emit`` says that the driver is slow, the rest stays in the file.

Files are kept small: beyond a set limit a file is moved to ``<name>.1`` and starts anew; beyond ``total_bytes`` per session the files
of the workers that ended first are deleted. Empty files of ended workers are deleted at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from shoal._base.paths import worker_logs
from shoal._base.settings import Settings
from shoal._core.wire.messages import LogLines

#: Seconds between a sign of life and reading: short enough to feel immediate.
MOMENT_S = 0.03
#: Seconds between looks at the sizes, without inotify.
POLL_S = 0.1
#: Bytes read from one file before the next one has its turn.
READ_BYTES = 256 * 1024
#: Bytes after which an unfinished line is sent in pieces.
LONGEST_LINE_BYTES = 64 * 1024
#: Ended workers whose last lines can still be asked for.
REMEMBERED = 1000
_IN_MODIFY = 0x2
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT = struct.Struct("iIII")

Emit = Callable[[LogLines], bool]  # False: not taken, come again later


class _Stream:
    """One file of one worker."""

    def __init__(self, path: str, worker: _Worker, is_error: bool) -> None:
        self.path = path
        self.worker = worker
        self.is_error = is_error
        self.offset = 0
        self.partial = b""

    def size(self) -> int:
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    def read(self) -> bytes:
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read(READ_BYTES)
        except OSError:
            return b""
        self.offset += len(data)
        return data


class _Worker:
    def __init__(self, worker_id: bytes, pid: int, logs_dir: str) -> None:
        self.worker_id = worker_id
        self.pid = pid
        self.job_id = b""
        self.name = ""
        out, err = worker_logs(logs_dir, worker_id, pid)
        self.streams = [_Stream(out, self, False), _Stream(err, self, True)]


class WorkerLogReader:
    """Follows the log files of this node's workers. Lives on the loop's thread.

    Lines of a worker without a job stay in the file until it has one. Set ``emit`` before the first worker has a job.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        logs_dir: Path | str,
        settings: Settings,
        *,
        ip: str = "",
        total_bytes: int = 1 << 30,
        inotify: bool = True,
    ) -> None:
        self.emit: Emit = lambda lines: True
        self._loop = loop
        self._logs_dir = str(logs_dir)
        self._forward = settings.log_to_driver
        self._ip = ip
        self._rotate_bytes = settings.log_rotate_bytes or sys.maxsize
        self._total_bytes = total_bytes
        self._workers: dict[bytes, _Worker] = {}
        self._streams: dict[str, _Stream] = {}  # by file name, as inotify tells it
        #: Streams with something to read; a dict for its order.
        self._grown: dict[_Stream, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: Files of ended workers and their sizes, oldest first.
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._ended_bytes = 0
        self._paths: OrderedDict[bytes, list[str]] = OrderedDict()
        self._inotify = _watch_directory(self._logs_dir) if inotify else -1
        if self._inotify >= 0:
            loop.add_reader(self._inotify, self._on_grown)

    # --- what the node agent tells ---

    def started(self, worker_id: bytes, pid: int) -> None:
        worker = self._workers[worker_id] = _Worker(worker_id, pid, self._logs_dir)
        for stream in worker.streams:
            self._streams[os.path.basename(stream.path)] = stream
        self._paths[worker_id] = [stream.path for stream in worker.streams]
        while len(self._paths) > max(REMEMBERED, 2 * len(self._workers)):
            self._paths.popitem(last=False)
        if self._inotify < 0:
            self._schedule(POLL_S)

    def assign(self, worker_id: bytes, job_id: bytes) -> None:
        """The worker belongs to this job from now on; so does what it has written already."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.job_id = job_id
            self._look(worker)

    def rename(self, worker_id: bytes, name: str) -> None:
        """What the worker writes from now on appears under ``name``; what it has written so far keeps the name it had, if it had one."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.name == name:
            return
        if worker.name:
            self._read_out(worker)
        worker.name = name

    def flush(self, job_id: bytes | None = None) -> None:
        """Read and hand on now what workers (of the job) have written: before a driver is told that its job is over."""
        for worker in list(self._workers.values()):
            if job_id in (None, worker.job_id):
                self._read_out(worker)

    def ended(self, worker_id: bytes) -> None:
        """The worker's process is gone: hand on the rest, unfinished lines included."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        self._read_out(worker, to_the_end=True)
        for stream in worker.streams:
            self._grown.pop(stream, None)
            self._streams.pop(os.path.basename(stream.path), None)
            size = stream.size()
            if size == 0:
                with contextlib.suppress(OSError):
                    os.unlink(stream.path)
            else:
                self._ended[stream.path] = size
                self._ended_bytes += size
        while self._ended_bytes > self._total_bytes and len(self._ended) > 1:
            path, size = self._ended.popitem(last=False)
            self._ended_bytes -= size
            for name in (path, path + ".1"):
                with contextlib.suppress(OSError):
                    os.unlink(name)

    def tail(self, worker_id: bytes, lines: int = 20) -> list[str]:
        """Return the last lines of the worker's standard error, or of its standard output if that is empty; also after its end."""
        for path in reversed(self._paths.get(worker_id, [])):
            found = _last_lines(path, lines)
            if found:
                return found
        return []

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._inotify >= 0:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    # --- reading ---

    def _on_grown(self) -> None:
        try:
            events = os.read(self._inotify, 64 * 1024)
        except BlockingIOError:
            return
        at = 0
        while at < len(events):
            watch, _, _, size = _EVENT.unpack_from(events, at)
            name = events[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0").decode("utf-8", "replace")
            at += _EVENT.size + size
            if watch < 0:  # overflow: anything may have grown
                self._grown.update(dict.fromkeys(self._streams.values()))
            elif (stream := self._streams.get(name)) is not None:
                self._grown[stream] = None
        # Not listening meanwhile: the kernel merges what repeats.
        self._loop.remove_reader(self._inotify)
        self._schedule(MOMENT_S)

    def _schedule(self, delay_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._inotify < 0:
            self._grown.update((stream, None) for stream in self._streams.values() if stream.size() != stream.offset)
        refused = False
        for stream in list(self._grown):
            taken, more = self._read(stream)
            refused = refused or not taken
            if taken and not more:
                self._grown.pop(stream, None)
                self._rotate(stream)
        if self._inotify >= 0:
            self._loop.add_reader(self._inotify, self._on_grown)
        if self._grown:
            self._schedule(POLL_S if refused else 0)
        elif self._inotify < 0 and self._workers:
            self._schedule(POLL_S)

    def _look(self, worker: _Worker) -> None:
        for stream in worker.streams:
            if stream.size() != stream.offset:
                self._grown[stream] = None
        if self._grown:
            self._schedule(0)

    def _read(self, stream: _Stream) -> tuple[bool, bool]:
        """Read one piece and hand on its lines; return whether they were taken and whether there is more."""
        worker = stream.worker
        if not self._forward:
            stream.offset = stream.size()
            return True, False
        if not worker.job_id:
            return True, False  # ``assign`` looks again
        before = stream.offset, stream.partial
        data = stream.read()
        *lines, rest = (stream.partial + data).split(b"\n")
        if len(rest) > LONGEST_LINE_BYTES:
            lines.append(rest)
            rest = b""
        stream.partial = rest
        if lines and not self._hand_on(stream, lines):
            stream.offset, stream.partial = before
            return False, True
        return True, len(data) == READ_BYTES

    def _read_out(self, worker: _Worker, to_the_end: bool = False) -> None:
        for stream in worker.streams:
            if not worker.job_id or (stream.size() == stream.offset and not stream.partial):
                continue
            more = True
            while more:
                taken, more = self._read(stream)
                if not taken:
                    break
            if to_the_end and stream.partial:
                self._hand_on(stream, [stream.partial])
                stream.partial = b""

    def _hand_on(self, stream: _Stream, lines: list[bytes]) -> bool:
        worker = stream.worker
        texts = [line.rstrip(b"\r").decode("utf-8", "replace") for line in lines]
        return self.emit(LogLines(worker.job_id, worker.pid, worker.name, stream.is_error, texts, self._ip))

    def _rotate(self, stream: _Stream) -> None:
        """Start the file anew when it is large. What is written between the last look and the cut is lost: microseconds per 64 MiB."""
        if stream.offset < self._rotate_bytes:
            return
        with contextlib.suppress(OSError):
            with open(stream.path, "rb+", buffering=0) as file, open(stream.path + ".1", "wb", buffering=0) as old:
                sent = 0
                while count := os.sendfile(old.fileno(), file.fileno(), sent, 16 << 20):
                    sent += count
                file.truncate(0)
            stream.offset = 0
            stream.partial = b""


def _watch_directory(path: str) -> int:
    """Return a descriptor that tells which files in a directory grow; -1 if the kernel gives none (too many instances, other systems)."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor: int = libc.inotify_init1(_IN_NONBLOCK_CLOEXEC)
        if descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_MODIFY) < 0:
            os.close(descriptor)
            descriptor = -1
        return descriptor
    except (OSError, AttributeError):
        return -1


def _last_lines(path: str, count: int) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16 * 1024))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []
