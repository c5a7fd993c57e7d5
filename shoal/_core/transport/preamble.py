"""The first words on a TCP connection, before the handshake: for whom is it?

    client                                       server
    magic, version, zero, target         ──▶
                                         ◀──     one byte: OPEN, or why not
    from here on the handshake, between the client and the target

A node has one port; behind it are the node agent (target SELF) and its workers, who get the socket handed over. Nothing here is secret and
nothing is proved: the target's id is random and known to members only, and whoever guesses it has the handshake before him.

Sans-I/O. It has had this form since version 1 and keeps it, so that any two releases can tell each other why they part.
"""

from __future__ import annotations

import enum
import struct

from shoal._base.ids import WORKER_BYTES
from shoal._core.transport.errors import ConnectFailed, NotShoal, VersionMismatch
from shoal._core.wire.codec import PROTOCOL_VERSION

_MAGIC = b"shoal/to"
_FORM = struct.Struct(f"<8sH2x{WORKER_BYTES}s")

PREAMBLE_BYTES = _FORM.size
TARGET_BYTES = WORKER_BYTES
#: The process that listens.
SELF = bytes(TARGET_BYTES)
#: Its object store: what follows the handshake are bytes of objects.
DATA = b"\xff" * TARGET_BYTES


class Answer(enum.IntEnum):
    """The server's one byte."""

    OPEN = 1
    #: No process of that id is here, or it has ended.
    UNKNOWN = 2
    OTHER_VERSION = 3


def encode_preamble(target: bytes, *, version: int = PROTOCOL_VERSION) -> bytes:
    """Return what a client sends first."""
    return _FORM.pack(_MAGIC, version, target)


def decode_preamble(data: bytes) -> tuple[bytes, Answer]:
    """Return (target, OPEN or OTHER_VERSION). Raises NotShoal."""
    magic, version, target = _FORM.unpack(data)
    if magic != _MAGIC:
        raise NotShoal(f"The other side does not speak shoal's protocol: it sent {data[:16]!r}.")
    return target, Answer.OPEN if version == PROTOCOL_VERSION else Answer.OTHER_VERSION


def is_preamble(data: bytes) -> bool:
    """Whether these first bytes can be the beginning of a preamble."""
    return data[: len(_MAGIC)] == _MAGIC[: len(data)]


def check_answer(data: bytes, where: str) -> None:
    """Raise what an answer other than OPEN means for the client."""
    if not data:
        raise NotShoal(f"Whoever listens at {where} hung up at our first words. Check that the address is that of a shoal cluster.")
    if data[0] == Answer.OPEN:
        return
    if data[0] == Answer.OTHER_VERSION:
        raise VersionMismatch(
            f"{where} runs another release of shoal: it does not speak protocol version {PROTOCOL_VERSION}. "
            "Use the same release in all processes of a cluster."
        )
    if data[0] == Answer.UNKNOWN:
        raise ConnectFailed(f"{where} refused the connection: the process that was asked for is not there, or has ended.")
    raise NotShoal(f"Whoever listens at {where} answered {data!r}. Check that the address is that of a shoal cluster.")
