"""The first words on a TCP connection, before the handshake: for whom is it?

    client                                       server
    magic, version, encrypted, target    ──▶
                                         ◀──     one byte: OPEN, or why not
    from here on TLS, if encrypted; inside of it the handshake, between the client and the target

A node has one port; behind it are the node agent (target: the node's id), its object store, and its workers, who get the socket handed
over. Or somebody there waits to be called back, and the target is the ticket that he gave. Nothing here is secret and nothing is proved: a
target is random and known to members only, and whoever guesses it has the handshake before him, which fails if anybody changed the target
on the way.

Whether a socket is encrypted is told by the addresses on it: loopback is not, everything else is. Both ends look for themselves; the
preamble only lets them tell each other when an address translation between them made them see different things.

Sans-I/O. It has had this form since version 1 and keeps it, so that any two releases can tell each other why they part.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from shoal._base.ids import WORKER_BYTES
from shoal._core.transport.errors import ConnectFailed, EncryptionMismatch, NoSuchProcess, NotShoal, VersionMismatch
from shoal._core.wire.codec import PROTOCOL_VERSION

_MAGIC = b"shoal/to"
_FORM = struct.Struct(f"<8sHH{WORKER_BYTES}s")

PREAMBLE_BYTES = _FORM.size
TARGET_BYTES = WORKER_BYTES
#: The process that listens, where it has no id: a control store.
SELF = bytes(TARGET_BYTES)
#: The reception of a control store: for those who hold the token and have no certificate (yet).
RECEPTION = b"\xfe" * TARGET_BYTES


class Answer(enum.IntEnum):
    """The server's one byte."""

    OPEN = 1
    #: No process of that id is here, or it has ended.
    UNKNOWN = 2
    OTHER_VERSION = 3
    #: Here only encrypted connections are taken.
    ENCRYPTED_ONLY = 4
    #: The server sees a connection within its machine.
    PLAIN_ONLY = 5


class Preamble(NamedTuple):
    version: int
    encrypted: bool
    target: bytes


def encode_preamble(target: bytes, *, encrypted: bool = False, version: int = PROTOCOL_VERSION) -> bytes:
    """Return what a client sends first."""
    return _FORM.pack(_MAGIC, version, encrypted, target)


def decode_preamble(data: bytes) -> Preamble:
    """Return what a client said first. Raises NotShoal."""
    magic, version, encrypted, target = _FORM.unpack(data)
    if magic != _MAGIC:
        raise NotShoal(f"The other side does not speak shoal's protocol: it sent {data[:16]!r}.")
    return Preamble(version, bool(encrypted), target)


def judge(preamble: Preamble, must_encrypt: bool) -> Answer:
    """Return the answer to a preamble on a socket of which the server knows whether it leaves the machine; OPEN if the target is there."""
    if preamble.version != PROTOCOL_VERSION:
        return Answer.OTHER_VERSION
    if preamble.encrypted == must_encrypt:
        return Answer.OPEN
    return Answer.ENCRYPTED_ONLY if must_encrypt else Answer.PLAIN_ONLY


def is_preamble(data: bytes) -> bool:
    """Whether these first bytes can be the beginning of a preamble."""
    return data[: len(_MAGIC)] == _MAGIC[: len(data)]


def check_answer(data: bytes, where: str, target: bytes) -> None:
    """Raise what an answer other than OPEN means for the client."""
    if not data:
        raise NotShoal(f"Whoever listens at {where} hung up at our first words. Check that the address is that of a shoal cluster.")
    answer = data[0]
    if answer == Answer.OPEN:
        return
    if answer == Answer.OTHER_VERSION:
        raise VersionMismatch(
            f"{where} runs another release of shoal: it does not speak protocol version {PROTOCOL_VERSION}. "
            "Use the same release in all processes of a cluster."
        )
    if answer == Answer.UNKNOWN and target == RECEPTION:
        raise ConnectFailed(
            f"At {where} is no control store: it is the port of a node. Use the address of the cluster's control store, which "
            "'shoal status' and 'shoal start --head' print."
        )
    if answer == Answer.UNKNOWN:
        raise NoSuchProcess(f"{where} refused the connection: the process that was asked for is not there, or has ended.")
    if answer == Answer.ENCRYPTED_ONLY:
        raise EncryptionMismatch(
            f"{where} takes encrypted connections only, and this process took the address for one of its own machine. Something forwards "
            "the port; connect to the address that the node itself listens at."
        )
    if answer == Answer.PLAIN_ONLY:
        raise EncryptionMismatch(
            f"{where} leads to a port that serves its own machine only, and takes no encrypted connection. Something forwards the port; "
            "let the node listen at the address of its machine, or connect from there."
        )
    raise NotShoal(
        f"Whoever listens at {where} is no shoal process: {_who_says(data)} {data[:32]!r}. Check the address and the port: they must be "
        "those of a shoal cluster."
    )


def _who_says(data: bytes) -> str:
    """Return what begins like this, for an error."""
    for start, name in (
        (b"HTTP/", "a web server"),
        (b"\x15\x03", "a TLS server"),
        (b"SSH-", "an SSH server"),
        (b"220", "a mail or FTP server"),
    ):
        if data.startswith(start):
            return f"it answered like {name},"
    return "it answered"


def data_of(node_id: bytes) -> bytes:
    """Return the target that is a node's object store: what follows the handshake are bytes of objects.

    Each node's is another, as its agent's is: private addresses are used more than once, and the proof of the token is bound to the
    target, so that no node takes another one's answers for those of whom it meant.
    """
    return bytes(0xFF ^ byte for byte in node_id)
