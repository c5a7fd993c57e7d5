"""What other programs see of a process: its command line (``ps``, ``top``) and its first environment (``/proc/PID/environ``).

Both lie in the process's own stack, between addresses that ``/proc/self/stat`` names, and may be overwritten in place, never made longer. A
forked child inherits them, which is the point: a process that a task forked and forgot still carries the mark of its worker.
"""

from __future__ import annotations

import ctypes
import os


def set_title(text: str) -> None:
    """Show ``text`` in place of the command line; cut where the original one ended. O(1); never raises."""
    try:
        start, end = _area(47, 48)
        room = end - start
        if room > 1:
            data = text.encode("utf-8", "replace")[: room - 1]
            # The last byte must stay zero: otherwise the kernel takes the environment for a part of the title.
            ctypes.memmove(start, data.ljust(room, b"\0"), room)
    except (OSError, ValueError):
        pass  # a title is a courtesy


def set_mark(name: str, value: str) -> bool:
    """Overwrite variable ``name`` of the first environment by a value of the same length; also set it in ``os.environ``.

    Returns False when the variable is not there in that length: then ``/proc/PID/environ`` goes on showing what it showed.
    """
    os.environ[name] = value
    try:
        start, end = _area(49, 50)
        block = ctypes.string_at(start, end - start)
    except (OSError, ValueError):
        return False
    key = b"\0" + name.encode() + b"="
    at = (b"\0" + block).find(key)
    data = value.encode()
    if at < 0 or block[at + len(key) - 1 + len(data) : at + len(key) + len(data)] != b"\0":
        return False
    ctypes.memmove(start + at + len(key) - 1, data, len(data))
    return True


def _area(first: int, last: int) -> tuple[int, int]:
    """Return two address fields of /proc/self/stat (numbered from 0)."""
    with open("/proc/self/stat", "rb") as file:
        values = file.read().rpartition(b")")[2].split()
    return int(values[first - 2]), int(values[last - 2])
