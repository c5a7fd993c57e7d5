"""The bytes of objects between two nodes: sockets of their own, used by threads, so that no loop stands still meanwhile.

    puller                                             source
    handshake                                   ◀──▶   handshake
    object id, offset, length                    ──▶
                                                 ◀──   found or not, size of the object; the bytes, by sendfile
    ...                                                the socket is kept for the next object

Everything here blocks and runs in threads of ``pulls.py`` and ``uploads.py``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from shoal._base.ids import OBJECT_BYTES
from shoal._core.transport.errors import HandshakeError
from shoal._core.transport.greeting import HANDSHAKE_TIMEOUT_S
from shoal._core.transport.handshake import Handshake, Role

#: Object id, offset of the first byte wanted, number of bytes wanted.
REQUEST = struct.Struct(f"<{OBJECT_BYTES}sQQ")
#: 1 if the object is there, its size.
REPLY = struct.Struct("<BQ")
#: Seconds in which some bytes must move. A node that is only slow moves some.
STALL_S = 30.0
#: Bytes per system call: large enough for the network, small enough to notice a stall.
_STEP_BYTES = 8 << 20
_TIMEVAL = struct.Struct("ll")


def prepare(sock: socket.socket) -> None:
    """Make a socket block, with ``STALL_S`` as its limit. Not ``settimeout``, with which ``sendfile`` would not wait."""
    sock.setblocking(True)
    limit_wait(sock, STALL_S)


def limit_wait(sock: socket.socket, seconds: float) -> None:
    """Have system calls on the socket fail with BlockingIOError when nothing has moved for so long."""
    limit = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def prove(sock: socket.socket, role: Role, token: bytes) -> bytes:
    """Do the handshake; return what came after it. Raises HandshakeError, OSError."""
    limit_wait(sock, HANDSHAKE_TIMEOUT_S)
    handshake = Handshake(role, token)
    sock.sendall(handshake.start())
    while not handshake.done:
        data = sock.recv(4096)
        if not data:
            raise HandshakeError("The other node hung up during the handshake.")
        sock.sendall(handshake.receive(data))
    limit_wait(sock, STALL_S)
    return handshake.rest


def hang_up(sock: socket.socket) -> None:
    """Wake up the thread that waits on the socket, which then closes it. Any thread."""
    with contextlib.suppress(OSError):  # it has ended already
        sock.shutdown(socket.SHUT_RDWR)


def receive_exactly(sock: socket.socket, nbytes: int, begun: bytes = b"") -> bytes:
    """Read ``nbytes``, of which ``begun`` came already; b"" when the peer hung up before the first. Raises EOFError when it did later."""
    data = begun
    while len(data) < nbytes:
        piece = sock.recv(nbytes - len(data))
        if not piece:
            if data:
                raise EOFError("The other node hung up in the middle of a message.")
            return b""
        data += piece
    return data


def receive_into(sock: socket.socket, target: memoryview) -> None:
    """Fill ``target``. Raises EOFError, OSError."""
    done = 0
    while done < len(target):
        count = sock.recv_into(target[done:], min(len(target) - done, _STEP_BYTES))
        if not count:
            raise EOFError(f"The other node hung up after {done} of {len(target)} bytes.")
        done += count


def send_range(sock: socket.socket, descriptor: int, offset: int, nbytes: int) -> None:
    """Send a range of a file, without a copy in this process. Raises EOFError if the file is shorter, OSError."""
    while nbytes:
        sent = os.sendfile(sock.fileno(), descriptor, offset, min(nbytes, _STEP_BYTES))
        if not sent:
            raise EOFError("The file of the object is shorter than the object.")
        offset += sent
        nbytes -= sent
