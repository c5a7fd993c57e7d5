"""Where a worker's standard output and error go: its log files. A disk without room costs lines, never a task that prints."""

from __future__ import annotations

import errno
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: What a disk says that has no room, for all or for this user.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class LogFile(io.FileIO):
    """A log file's descriptor. What finds no room is dropped and counted, and the log says how much when there is room again."""

    _lost = 0

    def write(self, data: Buffer, /) -> int:
        try:
            if self._lost:
                super().write(b"\n[%d bytes of output were lost here: the disk was full]\n" % self._lost)
                self._lost = 0
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            nbytes = memoryview(data).nbytes
            self._lost += nbytes
            return nbytes


def text_stream(descriptor: int) -> io.TextIOWrapper:
    """Return a stream for ``sys.stdout`` or ``sys.stderr`` that writes each line at once, whatever characters it has."""
    binary = io.BufferedWriter(LogFile(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", line_buffering=True)
