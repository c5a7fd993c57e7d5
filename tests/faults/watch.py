"""What is there of a session, seen from outside: by its mark, its directory, its shared memory. Nothing here asks the session itself."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import uvloop

from shoal._base import processes

#: Seconds after which nothing may be left of a session whose driver or head was killed.
GONE_S = 2.0
#: Seconds that a test waits for anything at all.
SAFETY_S = 20.0


def wait_for(condition, timeout_s=SAFETY_S, what="the condition"):
    """Return what the condition gives once it is true. For what only /proc or a file tells: everything else is waited for by events."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what() if callable(what) else what} did not come true within {timeout_s} s"
        time.sleep(0.005)
    return found


class Session:
    """The processes and files of the session in this directory."""

    def __init__(self, session_dir):
        self.directory = Path(session_dir).resolve()
        self.memory = None

    def members(self):
        return [
            stat
            for stat in processes.iter_stats()
            if stat.state != "Z" and processes.mark_of(stat.pid, processes.SESSION_MARK) == self.directory.name
        ]

    def workers(self):
        return [one.pid for one in self.members() if self._is_worker(one)]

    def head(self):
        return int(json.loads((self.directory / "session.json").read_text())["pid"])

    def template(self):
        """The oldest child of the head that is no worker: a younger one will be a worker in a moment."""
        head = self.head()
        return min((one for one in self.members() if one.ppid == head and not self._is_worker(one)), key=lambda one: one.start_time).pid

    def _is_worker(self, stat):
        return processes.mark_of(stat.pid, processes.WORKER_MARK) not in ("", processes.NO_WORKER)

    def remember_memory(self):
        """Note which memory file is the session's: what holds it is asked for when the head is gone."""
        self.memory = _memory_files(self.head())
        assert self.memory, "the head holds no shared memory"

    def leftovers(self):
        """Name what is there: processes, processes that hold its shared memory, files besides logs (sockets are files)."""
        found = [f"process {one.pid} {_title(one.pid)}" for one in self.members()]
        if self.memory:
            found += [
                f"memory held by {one.pid} {_title(one.pid)}"
                for one in processes.iter_stats()
                if one.state != "Z" and one.pid != os.getpid() and _memory_files(one.pid) & self.memory
            ]
        if self.directory.exists():
            found += [f"file {path.name}" for path in self.directory.iterdir() if path.name != "logs"]
        return found

    def wait_until_gone(self, since, limit_s=SAFETY_S):
        """Return the seconds from ``since`` (monotonic) until nothing is left."""
        while left := self.leftovers():
            assert time.monotonic() - since < limit_s, f"left after {limit_s} s: {left}"
            time.sleep(0.005)
        return time.monotonic() - since


class Here:
    """Threads, descriptors and memory files of this process, to be compared with later."""

    def __init__(self):
        uvloop.new_event_loop().close()  # libuv makes a pipe for the whole process with its first loop, for good
        self.threads = set(threading.enumerate())
        self.descriptors = len(os.listdir("/proc/self/fd"))

    def leftovers(self):
        now = Here()
        found = [f"thread {thread.name}" for thread in now.threads - self.threads]
        if now.descriptors > self.descriptors:
            links = sorted(
                os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")
            )
            found.append(f"{now.descriptors - self.descriptors} descriptors more among {links}")
        return found + [f"memory file {inode} of this process" for inode in _memory_files(os.getpid())]


def _memory_files(pid):
    """Inodes of the object stores' memory files that a process has open or mapped."""
    inodes = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            try:
                if "memfd:shoal-objects" in os.readlink(path):
                    inodes.add(os.stat(path).st_ino)
            except FileNotFoundError:
                pass
        with open(f"/proc/{pid}/maps") as maps:
            inodes.update(int(line.split()[4]) for line in maps if "memfd:shoal-objects" in line)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return inodes


def _title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()[:40].replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
