"""The memory file that all processes of a node share.

A memfd: it has no name, needs no room in /dev/shm, and vanishes with the last process that maps it, whatever killed them.

Three ways to the same bytes, each made at first use:

    read     shared, read-only: a stray write cannot corrupt an object that others read
    write    shared, writable: only ``write`` and the store's own disk work go through it
    private  copy on write, one map per view: for tensors, which their users may write

Measured on a 2-CPU virtual machine (Linux 6.18), GB/s, objects of 100 to 800 MB:

    page is                        memcpy into the map   pwrite(fd)
    fresh (the host gives it)            0.3 - 1.0        0.35 - 1.3
    there, unknown to the process        3.3              4.2
    ... populated in one call first      5.6              4.2
    there, one huge page                11.5              5.0
    there, known to the process         11.7              4.6

So objects are written by memcpy, entries are made in one call, pages are recycled, and a thread in the head (``warming.py``) readies huge
pages ahead of use.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from typing import Protocol

from shoal._core.object_store.mapping import HUGE_PAGE_BYTES, PAGE_BYTES, Mapping

#: Writes below this are not worth the call that makes page-table entries.
_POPULATE_BYTES = 1 << 20


class Writable(Protocol):
    """A serialized value."""

    @property
    def nbytes(self) -> int: ...
    def write_into(self, target: memoryview) -> None: ...
    def write_to(self, fd: int, offset: int) -> None: ...


class ArenaClosed(Exception):
    """The memory is given back in this process, for good."""


class Arena:
    """A memory file of fixed size. Thread-safe. After ``close``, whatever needs a new view raises ArenaClosed."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._fd = fd
        #: Held while a mapping is made, so that ``close`` cannot take the descriptor away meanwhile.
        self._lock = threading.Lock()
        self._read: Mapping | None = None
        self._write: Mapping | None = None
        #: Huge pages whose entries this process has made for writing.
        self._populated: set[int] = set()

    @classmethod
    def create(cls, nbytes: int, *, inheritable: bool = False) -> Arena:
        """Make a new one. It takes no memory before it is written. ``inheritable``: the descriptor survives exec."""
        nbytes = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        fd = os.memfd_create("shoal-objects", (0 if inheritable else os.MFD_CLOEXEC) | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, nbytes)
        # Nobody can shrink it, so no reader can be killed by SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd, nbytes)

    @classmethod
    def open(cls, path_or_fd: str | int, nbytes: int) -> Arena:
        """Open another process's arena by path (``/proc/PID/fd/N``), or by an inherited descriptor, which is duplicated."""
        if isinstance(path_or_fd, int):
            fd = fcntl.fcntl(path_or_fd, fcntl.F_DUPFD_CLOEXEC, 0)
        else:
            fd = os.open(path_or_fd, os.O_RDWR | os.O_CLOEXEC)
        return cls(fd, nbytes)

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def path(self) -> str:
        """Where processes of the same user can open it while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def view(self, offset: int, nbytes: int, on_release: Callable[[], None] | None = None) -> memoryview:
        """Return a read-only view; ``on_release`` runs once, in any thread, when the last view derived from it is gone."""
        mapping = self._read
        if mapping is None:
            with self._lock:
                mapping = self._read = self._map(self.nbytes, writable=False, huge=True)
        return mapping.view(offset, nbytes, on_release)

    def private_view(self, offset: int, nbytes: int, on_release: Callable[[], None] | None = None) -> memoryview:
        """Return a writable view whose changes nobody else sees.

        A map of its own per view, so that two readers of one object in one process do not see each other's changes, and nothing stale
        is left behind when the range is used again.
        """
        with self._lock:
            mapping = self._map(max(nbytes, 1), offset, writable=True, private=True)
        return mapping.view(0, nbytes, on_release, readonly=False)

    def write(self, offset: int, value: Writable) -> None:
        """Copy a value to ``offset``, with the interpreter lock released while large buffers are copied."""
        value.write_into(self.writable_range(offset, value.nbytes))

    def writable_range(self, offset: int, nbytes: int) -> memoryview:
        """Return a range to write to, with its pages ready."""
        assert offset >= 0
        assert offset + nbytes <= self.nbytes
        mapping = self.writable_map()
        if nbytes >= _POPULATE_BYTES:
            self._populate(mapping, offset, nbytes)
        return mapping.view(offset, nbytes, readonly=False)

    def writable_map(self) -> Mapping:
        mapping = self._write
        if mapping is None:
            with self._lock:
                mapping = self._write = self._map(self.nbytes, writable=True, huge=True)
        return mapping

    def _map(self, nbytes: int, offset: int = 0, *, writable: bool, private: bool = False, huge: bool = False) -> Mapping:
        if self._fd < 0:
            raise ArenaClosed
        return Mapping(self._fd, nbytes, offset, writable=writable, private=private, huge=huge)

    def _populate(self, mapping: Mapping, offset: int, nbytes: int) -> None:
        chunks = set(range(offset // HUGE_PAGE_BYTES, -(-(offset + nbytes) // HUGE_PAGE_BYTES)))
        if not chunks <= self._populated:
            start = offset // PAGE_BYTES * PAGE_BYTES
            mapping.populate(start, -(-(offset + nbytes) // PAGE_BYTES) * PAGE_BYTES - start)
            self._populated |= chunks

    def warm(self, chunk: int) -> bool:
        """Ready the pages of the ``chunk``-th 2 MiB. Blocks for up to 10 ms; keeps the content. False when the system cannot."""
        start = chunk * HUGE_PAGE_BYTES
        nbytes = min(HUGE_PAGE_BYTES, self.nbytes - start)
        mapping = self.writable_map()
        if nbytes == HUGE_PAGE_BYTES:
            # A huge page is made out of a range that has at least one page; the holes are filled with zeros.
            os.posix_fallocate(self._fd, start, PAGE_BYTES)
            if mapping.collapse(start):
                return True
        return mapping.populate(start, nbytes)

    def close(self) -> None:
        """Give back descriptor and mappings. Views stay valid. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                os.close(fd)
            self._read = self._write = None
