"""Whether the machine at the other end of a connection still acknowledges what was sent there.

The kernel's own questions (``port.tune``) are asked on an idle connection only. Where something was sent and no acknowledgement comes, it
sends it again for a quarter of an hour before it gives up; and where the control store reaches both ends, nobody declares either dead.
A peer that is only slow, or stopped, has a kernel that acknowledges: it is left alone, which TCP_USER_TIMEOUT would not do.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

#: Seconds without an acknowledgement, as with the kernel's questions, and times that what was sent was sent again.
CUT_OFF_S, _RETRANSMISSIONS = 15.0, 3
#: Seconds between two looks.
LOOK_S = 3.0
#: Linux' ``struct tcp_info``: the third byte counts retransmissions, the last number is milliseconds since the last acknowledgement.
_INFO = struct.Struct("=8B13I")


def is_cut_off(sock: socket.socket) -> bool:
    """Whether nothing has come back for too long. Raises OSError for a socket that is closed."""
    found = _INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
    retransmissions, silent_ms = found[2], found[-1]
    return bool(retransmissions >= _RETRANSMISSIONS and silent_ms >= 1000 * CUT_OFF_S)


class Acknowledgements:
    """Looks after the connections of a process to other machines. Used on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: What tells whether a connection goes on, after a look at it.
        self._looks: set[Callable[[], bool]] = set()
        self._waiting = False

    def watch(self, look: Callable[[], bool]) -> None:
        """Call ``look`` again and again, until it says False: the connection has ended, or was ended for its silence."""
        self._looks.add(look)
        self._look_later()

    def _look_later(self) -> None:
        if self._looks and not self._waiting:
            self._waiting = True
            self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._waiting = False
        self._looks = {look for look in self._looks if look()}
        self._look_later()
