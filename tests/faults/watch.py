"""What is there of a session, seen from outside: by its mark, its directory, its shared memory. Nothing here asks the session itself."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from pathlib import Path

import uvloop

from shoal._base import processes
from shoal.testing import waiting
from shoal.testing.session_processes import SessionProcesses

#: Seconds after which nothing may be left of a session whose driver or head was killed.
GONE_S = 2.0
#: Seconds that a test waits for anything at all.
SAFETY_S = 20.0


#: For what only /proc or a file tells: everything else is waited for by events.
wait_for = partial(waiting.wait_for, timeout_s=SAFETY_S)


class Session:
    """The processes and files of the session in this directory."""

    def __init__(self, session_dir):
        self.directory = Path(session_dir).resolve()
        self.memory = None
        found = SessionProcesses(self.directory.name)
        self.members, self.head, self.template = found.members, found.head, found.template
        self.workers = lambda: list(found.workers())

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
        # Other tests of this process may hold stores of their own, in a cycle that waits for the collector.
        self.memory = _memory_files(os.getpid())

    def leftovers(self):
        now = Here()
        found = [f"thread {thread.name}" for thread in now.threads - self.threads]
        if now.descriptors > self.descriptors:
            links = sorted(
                os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")
            )
            found.append(f"{now.descriptors - self.descriptors} descriptors more among {links}")
        return found + [f"memory file {inode} of this process" for inode in now.memory - self.memory]


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
