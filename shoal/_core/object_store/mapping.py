"""Memory maps through libc, and views of them that say when the last one is gone.

Why not the ``mmap`` module: it cannot place a map on a huge-page boundary, holds a duplicate descriptor per map, and unmapping raises
while views exist. Here a view keeps its map alive, and the map is undone when the last view dies.

Why a ctypes array under each view: NumPy and Arrow collapse chains of ``base`` down to the object that exports the buffer, so a
finalizer on anything above that object runs too early. The array *is* the exporter.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_MADV_COLLAPSE = 25  # Linux 6.1

#: CDLL, not PyDLL: the interpreter lock is released during each call.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_munmap = _libc.munmap


class Mapping:
    """A mapped stretch of a file, undone when nobody refers to it any more.

    Args:
        fd: may be closed afterwards.
        nbytes: more than 0.
        offset: multiple of the page size.
        writable: the process may write.
        private: writes stay in this process (copy on write).
        huge: start on a huge-page boundary, so that one page-table entry can cover 2 MiB.
    """

    __slots__ = ("_reserved", "address", "nbytes")

    def __init__(self, fd: int, nbytes: int, offset: int = 0, *, writable: bool, private: bool = False, huge: bool = False) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        self._reserved = (0, 0)
        if huge:
            reserved = nbytes + HUGE_PAGE_BYTES
            start = _map(None, reserved, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
            self._reserved = (start, reserved)
            aligned = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
            self.address = _map(aligned, nbytes, protection, flags | _MAP_FIXED, fd, offset)
        else:
            self.address = _map(None, nbytes, protection, flags, fd, offset)
            self._reserved = (self.address, nbytes)
        self.nbytes = nbytes

    def __del__(self, munmap: Callable[[int, int], int] = _munmap) -> None:
        start, nbytes = self._reserved
        if nbytes:
            munmap(start, nbytes)

    def view(self, offset: int, nbytes: int, on_release: Callable[[], None] | None = None, *, readonly: bool = True) -> memoryview:
        """Return a view of the bytes. ``on_release`` is called once, in any thread, when the last view derived from it is gone."""
        exporter = _Exporter.from_address(self.address + offset)
        exporter.mapping = self
        exporter.on_release = on_release
        view = memoryview(exporter)[:nbytes].cast("B")
        return view.toreadonly() if readonly else view

    def populate(self, offset: int, nbytes: int) -> bool:
        """Make page-table entries for a range in one call: 11 GB/s here against 5 GB/s by faults. False: not supported."""
        return bool(_libc.madvise(self.address + offset, nbytes, _MADV_POPULATE_WRITE) == 0)

    def collapse(self, offset: int) -> bool:
        """Back 2 MiB by one huge page. Keeps the content, also while others read and write it. False: not possible here."""
        return bool(_libc.madvise(self.address + offset, HUGE_PAGE_BYTES, _MADV_COLLAPSE) == 0)


class _Exporter(ctypes.c_ubyte * (1 << 46)):  # type: ignore[misc]
    """Exports the buffer of a view. One type for all lengths (its views are sliced), because making a type costs 30 us."""

    mapping: Mapping
    on_release: Callable[[], None] | None = None

    def __del__(self) -> None:
        release = self.on_release
        if release is not None:
            self.on_release = None
            release()


def _map(address: int | None, nbytes: int, protection: int, flags: int, fd: int, offset: int) -> int:
    result = _libc.mmap(address, nbytes, protection, flags, fd, offset)
    if result is None or result == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {nbytes} bytes: {os.strerror(code)}")
    return int(result)
