"""The store's files: a few threads that write, read and delete them.

Owns: the spill directory and the threads. Everything here that blocks runs through ``run``.

Between arena and file the bytes go past the page cache (O_DIRECT), where the file system can: 2.5 GB/s written and 2.0 read here,
against 0.3 to 1.2 and 1.7 through the cache, which would also take the memory again that spilling has just freed. Everything is
page-aligned on both sides, so whole pages are moved.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from shoal._core.object_store.allocation import round_up
from shoal._core.object_store.arena import Arena
from shoal._core.object_store.threads import Threads

log = logging.getLogger("shoal.object_store")

T = TypeVar("T")

#: Seconds for which a disk that refused is not asked again.
PAUSE_S = 1.0
#: Two batches being written, one restore, one deletion: more threads do not make a disk faster.
_THREADS = 4
#: Bytes per system call while copying: large enough for the disk, small enough that ``close`` waits for milliseconds.
_STEP_BYTES = 4 << 20


class Piece(NamedTuple):
    """``nbytes`` that lie at ``arena_offset`` in memory and at ``file_offset`` in the file."""

    arena_offset: int
    file_offset: int
    nbytes: int


def format_bytes(nbytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


class Disk:
    """Files in one directory, which is made at first use and removed by ``close``.

    Args:
        directory: belongs to this store alone.
        limit: share of the file system in use, by whomever, above which nothing is written.
        usage: figures of the file system that holds it; tests inject their own.
    """

    #: What must wait for a full disk is refused: it does not get emptier by itself.
    refuses_at_once = True
    is_remote = False

    def __init__(self, directory: str, limit: float = 0.95, usage: Callable[[str], DiskUsage] | None = None) -> None:
        self.directory = directory
        self._limit = limit
        self._usage = usage or _usage
        self._error = ""
        self._error_until = 0.0
        self._threads = Threads(_THREADS, "shoal-disk")
        self._made = False
        self._closing = False

    def usage(self) -> DiskUsage:
        """Return the figures of now. Does not block."""
        path = self.directory
        while not self._made and path and not os.path.exists(path):
            path = os.path.dirname(path)
        return self._usage(path or "/")

    def path_of(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def run(self, loop: asyncio.AbstractEventLoop, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run a function in one of the threads."""
        return self._threads.run(loop, function, *args)

    def name_of(self, file: str) -> str:
        """Return the name of a file of this store."""
        return file

    def location(self, name: str) -> str:
        """Return where a file lies, for other nodes: nowhere."""
        return ""

    def is_lost(self, error: BaseException) -> bool:
        """Whether a failed read says that the bytes are gone: a disk that cannot read them will not be able to later."""
        return True

    def refusal(self, nbytes: int, now: float) -> str:
        """Say why the disk cannot take ``nbytes`` more, or return the empty string. Does not block."""
        usage = self.usage()
        if now < self._error_until:
            reason = f"cannot be written: {self._error}"
        elif usage.used + nbytes > self._limit * usage.total or nbytes > usage.free:
            reason = f"is above the limit of {self._limit:.0%} (disk_usage_threshold)"
        else:
            return ""
        return (
            f"The object store must write {format_bytes(nbytes) if nbytes else 'objects'} to disk, but {self.directory} "
            f"({format_bytes(usage.used)} of {format_bytes(usage.total)} used) {reason}. Free disk space, spill elsewhere "
            f"(object_spilling_directory), or give the store more memory (object_store_memory)."
        )

    def note_error(self, error: BaseException, now: float) -> None:
        """A write failed: ``refusal`` says so for the next ``PAUSE_S``."""
        if self._closing:
            return
        self._error = str(error)
        self._error_until = now + PAUSE_S
        level = logging.WARNING if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else logging.ERROR
        log.log(level, "cannot write to %s: %s", self.directory, error)

    def write(self, arena: Arena, name: str, pieces: Sequence[Piece]) -> None:
        """Write pieces of the arena into a new file. On failure the file does not exist."""
        fd = self._create(self.path_of(name), os.O_DIRECT)
        try:
            for piece in pieces:
                self._copy_out(arena, fd, piece)
        except OSError:
            self.remove(name)
            raise
        finally:
            os.close(fd)

    def read(self, arena: Arena, name: str, piece: Piece) -> None:
        """Copy from a file into the arena."""
        fd = _open(self.path_of(name), os.O_RDONLY | os.O_DIRECT)
        try:
            self._copy_in(arena, fd, piece)
        finally:
            os.close(fd)

    def read_bytes(self, name: str, offset: int, nbytes: int) -> bytes:
        fd = os.open(self.path_of(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts: list[bytes] = []
            while nbytes:
                part = os.pread(fd, min(nbytes, _STEP_BYTES), offset)
                if not part:
                    raise OSError(f"{self.path_of(name)} ends {nbytes} bytes early")
                parts.append(part)
                offset, nbytes = offset + len(part), nbytes - len(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def reserve(self, name: str, nbytes: int) -> None:
        """Make a file of this size whose blocks are there: a writer that maps it cannot run out of disk. OSError(ENOSPC)."""
        fd = self._create(self.path_of(name))
        try:
            if nbytes:
                os.posix_fallocate(fd, 0, nbytes)
        except OSError:
            self.remove(name)
            raise
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        try:
            os.unlink(self.path_of(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("cannot delete %s: %s", self.path_of(name), error)

    async def close(self) -> None:
        """Stop what is running, delete the directory, join the threads."""
        self._closing = True
        if self._made:
            await self.run(asyncio.get_running_loop(), shutil.rmtree, self.directory, True)
            self._made = False
        await self._threads.close()

    def _create(self, path: str, flags: int = 0) -> int:
        if not self._made:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            self._made = True
        return _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags)

    def _copy_out(self, arena: Arena, fd: int, piece: Piece) -> None:
        done, total = 0, round_up(piece.nbytes)
        while done < total:
            view = arena.view(piece.arena_offset + done, self._step(total - done))
            done += _past_cache(fd, partial(os.pwrite, fd, view, piece.file_offset + done))

    def _copy_in(self, arena: Arena, fd: int, piece: Piece) -> None:
        mapping = arena.writable_map()
        done, total = 0, round_up(piece.nbytes)
        while done < total:
            view = mapping.view(piece.arena_offset + done, self._step(total - done), readonly=False)
            count = _past_cache(fd, partial(os.preadv, fd, [view], piece.file_offset + done))
            if count == 0:
                raise OSError(f"the spill file ends {total - done} bytes early")
            done += count

    def _step(self, nbytes: int) -> int:
        if self._closing:
            raise OSError(errno.ECANCELED, "the object store is closing")
        return min(nbytes, _STEP_BYTES)


def _usage(path: str) -> DiskUsage:
    # Not shutil.disk_usage: its "used" counts blocks that only root may take, which hides a full disk from others.
    figures = os.statvfs(path)
    free = figures.f_bavail * figures.f_frsize
    used = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
    return DiskUsage(used + free, used, free)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise
        # Some file systems know no O_DIRECT; the file may have been created all the same.
        return os.open(path, flags & ~(os.O_DIRECT | os.O_EXCL) | os.O_CLOEXEC, 0o600)


def _past_cache(fd: int, transfer: Callable[[], int]) -> int:
    """Read or write; through the page cache from now on, if the file system cannot do without."""
    try:
        return transfer()
    except OSError as error:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return transfer()
