"""The bytes of objects between two nodes: what is said on a DATA socket, and the one place where it is read and written.

    puller                                             source
    handshake                                   ◀──▶   handshake
    id of its node                               ──▶
    a batch of pieces                            ──▶
    the next batch, while the first is received  ──▶
                                                 ◀──   an answer for each piece; the bytes of those that are here
    ...                                                the socket is kept for what is wanted next

Several small objects, or a stretch of a large one, are one batch: an exchange, a wake-up of each side's loop and thread. Everything
here blocks and runs in the threads of ``links.py`` and ``serving.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from shoal._base.ids import NODE_BYTES, OBJECT_BYTES
from shoal._core.object_store.pulls import Answer, Found, Piece
from shoal._core.transport.blocking import BlockingSocket

#: Seconds in which some bytes must move. A node that is only slow moves some.
STALL_S = 30.0
#: More pieces in one batch are no batch of ours.
MOST_PIECES = 1024
_COUNT = struct.Struct("<I")
#: Object, its size, first byte wanted, bytes wanted, 1 if the receiver is asked as relay, a relay that was of no use (or zeros).
_PIECE = struct.Struct(f"<{OBJECT_BYTES}sQQIB{NODE_BYTES}s")
#: What was found, and the node to ask instead.
_ANSWER = struct.Struct(f"<B{NODE_BYTES}s")
_NOBODY = bytes(NODE_BYTES)


class DataSocket(BlockingSocket):
    """A socket for the bytes of objects, used by one thread at a time. Everything raises OSError, and EOFError when the peer hung up."""

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
