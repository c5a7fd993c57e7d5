"""The bytes of objects between two nodes: what is said on a DATA socket, and the one place where it is read and written.

    puller                                             source
    handshake                                   ◀──▶   handshake
    id of its node                               ──▶
    a batch of pieces                            ──▶
    the next batch, while the first is received  ──▶
                                                 ◀──   an answer for each piece; the bytes of those that are here, by sendfile
    ...                                                the socket is kept for what is wanted next

Several small objects, or a stretch of a large one, are one batch: an exchange, a wake-up of each side's loop and thread. Everything
here blocks and runs in the threads of ``links.py`` and ``serving.py``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence

from shoal._base.ids import NODE_BYTES, OBJECT_BYTES
from shoal._core.object_store.pulls import Answer, Found, Piece
from shoal._core.transport.errors import HandshakeError
from shoal._core.transport.greeting import HANDSHAKE_TIMEOUT_S
from shoal._core.transport.handshake import Handshake, Role

#: Seconds in which some bytes must move. A node that is only slow moves some.
STALL_S = 30.0
#: More pieces in one batch are no batch of ours.
MOST_PIECES = 1024
#: Bytes per system call: large enough for the network, small enough to notice a stall.
_STEP_BYTES = 8 << 20
_TIMEVAL = struct.Struct("ll")
_COUNT = struct.Struct("<I")
#: Object, its size, first byte wanted, bytes wanted, 1 if the receiver is asked as relay, a relay that was of no use (or zeros).
_PIECE = struct.Struct(f"<{OBJECT_BYTES}sQQIB{NODE_BYTES}s")
#: What was found, and the node to ask instead.
_ANSWER = struct.Struct(f"<B{NODE_BYTES}s")
_NOBODY = bytes(NODE_BYTES)


class DataSocket:
    """A connected DATA socket, used by one thread at a time. Everything raises OSError, and EOFError when the peer hung up."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        #: Came with the handshake, and belongs to what follows.
        self._rest = b""
        # Not ``settimeout``, with which ``sendfile`` would not wait.
        sock.setblocking(True)
        self.limit_wait(STALL_S)

    def limit_wait(self, seconds: float) -> None:
        """Have reads and writes fail with BlockingIOError when nothing has moved for so long."""
        limit = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def prove(self, role: Role, token: bytes) -> None:
        """Do the handshake. Raises HandshakeError, too."""
        self.limit_wait(HANDSHAKE_TIMEOUT_S)
        handshake = Handshake(role, token)
        self.send(handshake.start())
        while not handshake.done:
            data = self._sock.recv(4096)
            if not data:
                raise HandshakeError("The other node hung up during the handshake.")
            self.send(handshake.receive(data))
        self.limit_wait(STALL_S)
        self._rest = handshake.rest

    def hang_up(self) -> None:
        """Wake up the thread that waits on the socket, which then closes it. Any thread."""
        with contextlib.suppress(OSError):  # it has ended already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()

    # --- bytes ---

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def send_range(self, descriptor: int, offset: int, nbytes: int) -> None:
        """Send a range of a file, without a copy in this process. EOFError also if the file is shorter."""
        while nbytes:
            sent = os.sendfile(self._sock.fileno(), descriptor, offset, min(nbytes, _STEP_BYTES))
            if not sent:
                raise EOFError("The file of the object is shorter than the object.")
            offset += sent
            nbytes -= sent

    def receive(self, nbytes: int) -> bytes:
        """Read exactly so many; b"" when the peer hung up before the first."""
        data, self._rest = self._rest[:nbytes], self._rest[nbytes:]
        while len(data) < nbytes:
            piece = self._sock.recv(nbytes - len(data))
            if not piece:
                if data:
                    raise EOFError("The other node hung up in the middle of a message.")
                return b""
            data += piece
        return data

    def receive_into(self, target: memoryview) -> None:
        """Fill ``target``."""
        done = 0
        while done < len(target):
            # MSG_WAITALL: one wake-up for a piece, not one for each segment.
            count = self._sock.recv_into(target[done:], min(len(target) - done, _STEP_BYTES), socket.MSG_WAITALL)
            if not count:
                raise EOFError(f"The other node hung up after {done} of {len(target)} bytes.")
            done += count

    # --- batches ---

    def send_batch(self, pieces: Sequence[Piece], *, as_relay: bool) -> None:
        asked = [_PIECE.pack(p.object_id, p.nbytes, p.offset, p.length, as_relay, p.avoid or _NOBODY) for p in pieces]
        self.send(_COUNT.pack(len(asked)) + b"".join(asked))

    def receive_batch(self) -> tuple[list[Piece], bool]:
        """Return (pieces, whether they are asked of a relay); no pieces: the peer hung up between two batches."""
        count = self.receive(_COUNT.size)
        if not count:
            return [], False
        number = _COUNT.unpack(count)[0]
        if not 0 < number <= MOST_PIECES:
            raise EOFError(f"{number} pieces were asked for at once.")
        found = list(_PIECE.iter_unpack(self._rest_of(number * _PIECE.size)))
        pieces = [
            Piece(object_id, nbytes, offset, length, b"" if avoid == _NOBODY else avoid)
            for object_id, nbytes, offset, length, _, avoid in found
        ]
        return pieces, any(asked_as_relay for *_, asked_as_relay, _ in found)

    def send_answers(self, answers: Sequence[Answer]) -> None:
        self.send(b"".join(_ANSWER.pack(answer.found, answer.node_id or _NOBODY) for answer in answers))

    def receive_answers(self, count: int) -> list[Answer]:
        return [
            Answer(Found(found), b"" if node_id == _NOBODY else node_id)
            for found, node_id in _ANSWER.iter_unpack(self._rest_of(count * _ANSWER.size))
        ]

    def _rest_of(self, nbytes: int) -> bytes:
        data = self.receive(nbytes)
        if not data:
            raise EOFError("The other node hung up.")
        return data
