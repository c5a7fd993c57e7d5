"""What a session leaves behind in its driver and on the machine: the check that it is nothing.

Looked at, before and after: processes with a session's mark; threads, descriptors and memory maps of this process; files of the session
besides its logs; links and spill directories outside. Only what a session makes counts: a log file or a TCP connection that a test
keeps open is its own affair.
"""

from __future__ import annotations

import fnmatch
import gc
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shoal._base import paths, processes

#: Seconds within which everything must be gone.
GONE_S = 5.0
_STEP_S = 0.01
_THREADS = ("shoal-", "asyncio_")
_ANONYMOUS = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[pidfd]", "anon_inode:[timerfd]", "pipe:")


class LeakError(Exception):
    """Something of a session is still there. ``left`` names each thing."""

    def __init__(self, left: Sequence[str], within_s: float) -> None:
        super().__init__(f"{len(left)} things of the session are still there {within_s:g} s after its end:\n  " + "\n  ".join(left))
        self.left = list(left)


@contextmanager
def leak_check(
    *, temp_dir: str | Path | None = None, spill_dir: str | Path | None = None, within_s: float = GONE_S, ignore: Sequence[str] = ()
) -> Iterator[None]:
    """Check that nothing of the sessions that this process starts *and ends* inside the block is left after it.

    Waits at most ``within_s`` seconds for things to go. When the block itself raises, what is left is added to that error as a note: the
    values in its traceback keep maps and descriptors alive, so it proves nothing.

    Args:
        temp_dir: where the sessions' directories lie, if not in the default place.
        spill_dir: where they spill to, if not into their directories.
        ignore: patterns (``fnmatch``) of what may stay, for example ``"descriptor *eventpoll*"``.

    Raises:
        LeakError: something is left.
    """
    check = LeakCheck(temp_dir, spill_dir, ignore)
    try:
        yield
    except BaseException as error:
        if left := check.wait_until_clean(min(within_s, 1.0)):
            error.add_note("Left behind by the session:\n  " + "\n  ".join(left))
        raise
    if left := check.wait_until_clean(within_s):
        raise LeakError(left, within_s)


class LeakCheck:
    """Remembers what is there when it is made; ``left()`` names what came since. For those who cannot use the block."""

    def __init__(self, temp_dir: str | Path | None = None, spill_dir: str | Path | None = None, ignore: Sequence[str] = ()) -> None:
        self._user_dir = (Path(temp_dir) if temp_dir else paths.temp_dir()) / f"shoal-{os.getuid()}"
        self._spill_dir = Path(spill_dir) if spill_dir else None
        self._ignore = tuple(ignore)
        _make_lasting_descriptors()
        self._threads = set(threading.enumerate())
        self._descriptors = self._list_descriptors()
        self._maps = _list_maps()
        self._sessions = set(self._list_sessions())
        self._marked = {session for session, _ in _iter_marked()}

    def wait_until_clean(self, within_s: float) -> list[str]:
        """Look until nothing is left, for at most ``within_s`` seconds; return what still is."""
        deadline = time.monotonic() + within_s
        collected = False
        while left := self.left():
            if not collected:
                gc.collect()  # what only a cycle keeps alive is not left for long
                collected = True
            elif time.monotonic() > deadline:
                break
            else:
                time.sleep(_STEP_S)
        return left

    def left(self) -> list[str]:
        """Name what is there now and was not before."""
        found = [f"process {pid} ({_title(pid)})" for session, pid in _iter_marked() if session not in self._marked]
        found += [
            f"thread {thread.name}" for thread in threading.enumerate() if thread not in self._threads and thread.name.startswith(_THREADS)
        ]
        now = self._list_descriptors()
        found += [f"descriptor {fd} {target}" for fd, target in sorted(now.items()) if self._descriptors.get(fd) != target]
        found += [f"memory map {name} at {where}" for where, name in sorted(_list_maps().items()) if where not in self._maps]
        for session in self._list_sessions():
            if session not in self._sessions:
                found += self._files_of(session)
        return [name for name in found if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self._ignore)]

    def _list_sessions(self) -> list[Path]:
        """Directories of sessions that this process has started, finished or not."""
        me = os.getpid()
        return [*self._user_dir.glob(f"session_*_{me}_*"), *self._user_dir.glob(f".session_*_{me}_*")]

    def _files_of(self, session: Path) -> Iterator[str]:
        if session.name.startswith("."):
            yield f"directory {session}"
            return
        yield from (f"file {entry}" for entry in _entries(session) if entry.name != paths.LOGS)
        for alias in self._user_dir.glob("s_*"):
            if alias.is_symlink() and os.readlink(alias) == str(session):
                yield f"link {alias}"
        if self._spill_dir is not None and (self._spill_dir / session.name).exists():
            yield f"directory {self._spill_dir / session.name}"

    def _list_descriptors(self) -> dict[int, str]:
        found = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue  # the one that listed
            if self._may_be_ours(int(name), target):
                found[int(name)] = target
        return found

    def _may_be_ours(self, fd: int, target: str) -> bool:
        if target.startswith("socket:"):
            return _is_unix_socket(fd)
        return target.startswith((*_ANONYMOUS, "/memfd:shoal", str(self._user_dir)))


def _make_lasting_descriptors() -> None:
    """Let the event loop's library open now what it opens once per process and keeps: a pipe for signals."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()


def _iter_marked() -> Iterator[tuple[str, int]]:
    """Yield (session, pid) of the processes of all sessions that this process has started."""
    for stat in processes.iter_stats():
        if stat.state != "Z" and (session := processes.mark_of(stat.pid, processes.SESSION_MARK)):
            parts = session.split("_")
            if len(parts) >= 2 and parts[-2] == str(os.getpid()) and stat.pid != os.getpid():
                yield session, stat.pid


def _list_maps() -> dict[str, str]:
    """Return address range -> name of this process's maps of object stores."""
    with open("/proc/self/maps") as file:
        lines = [line.split(maxsplit=5) for line in file if "/memfd:shoal" in line]
    return {fields[0]: fields[5].strip() for fields in lines}


def _is_unix_socket(fd: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            return copy.family == socket.AF_UNIX
    except OSError:
        return False


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()[:60]
    except OSError:
        return "gone since"
