"""What a process proves itself with: the cluster's token, and between machines its node's certificate.

One object per process, shared by all its sockets, so that a new token is everywhere at once. Certificates are read when the first
encrypted socket needs them: a session of one node has none.
"""

from __future__ import annotations

import ssl
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from shoal._core.transport.errors import NoCertificate
from shoal._core.transport.preamble import RECEPTION

Role = Literal["client", "server"]

#: Bytes that a token must have: a short one could be guessed.
SHORTEST_TOKEN_BYTES = 16

#: Files of a session's directory, all 0600: this node's key and certificate, and that of the cluster's authority.
KEY_FILE = "node.key"
CERTIFICATE_FILE = "node.crt"
AUTHORITY_FILE = "authority.crt"


class Tokens(NamedTuple):
    """The cluster's token, and the one before it, which is accepted for as long as there is no newer one. Empty: there was none."""

    current: bytes
    previous: bytes = b""

    def rotated(self, token: bytes) -> Tokens:
        """Return the tokens after a change to ``token``; the same if it is the current one."""
        return self if token == self.current else Tokens(token, self.current)

    def to_text(self) -> str:
        """Return the content of a session's token file: a line per token, the current one first."""
        return "\n".join(token.hex() for token in self if token)

    @classmethod
    def from_text(cls, text: str) -> Tokens:
        """Read what ``to_text`` wrote. Raises ValueError."""
        lines = text.split()
        if not 1 <= len(lines) <= 2:
            raise ValueError(f"A token file has one or two lines, this one {len(lines)}.")
        return cls(*map(bytes.fromhex, lines))


class Trust:
    """One process's. ``directory``: of its session, where the node's certificate lies; "": this process speaks to its own machine only."""

    def __init__(self, tokens: Tokens, directory: str | Path = "") -> None:
        self.tokens = tokens
        self._directory = directory

    def rotate(self, token: bytes) -> None:
        """Prove this token from now on, and accept the one before it. Idempotent."""
        self.tokens = self.tokens.rotated(token)

    @cached_property
    def certificates(self) -> Certificates:
        """The node's. Raises NoCertificate; asked again, it looks again."""
        if not self._directory:
            raise NoCertificate("This process belongs to a session of one machine, so it has no certificate to speak to others with.")
        try:
            return Certificates(Path(self._directory))
        except OSError as error:
            raise NoCertificate(
                f"This node has no certificate of the cluster, without which nothing is sent to another machine ({error}). Nodes get one "
                "when they join a control store that listens beyond loopback: start that with the address of its machine."
            ) from error

    def context(self, role: Role, target: bytes) -> ssl.SSLContext:
        """Return what to speak TLS with on a socket for this target. Raises NoCertificate."""
        if target != RECEPTION:
            return self.certificates.client if role == "client" else self.certificates.server
        return _context(ssl.PROTOCOL_TLS_CLIENT) if role == "client" else self.certificates.reception


class Certificates:
    """A node's certificate and key, loaded for each of the ways in which they are used. Raises OSError (ssl.SSLError is one)."""

    def __init__(self, directory: Path) -> None:
        own, key, authority = (str(directory / name) for name in (CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE))
        #: What the other side sees of us, in the binary form.
        self.own = ssl.PEM_cert_to_DER_cert(Path(own).read_text())
        #: To members of the cluster: both ends show certificates.
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT)
        self.server = _context(ssl.PROTOCOL_TLS_SERVER)
        #: For visitors, who have no certificate yet, and believe any: the proof of the token tells them whom they see.
        self.reception = _context(ssl.PROTOCOL_TLS_SERVER)
        for context in (self.client, self.server):
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
        for context in (self.client, self.server, self.reception):
            context.load_cert_chain(own, key)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nodes are known by their authority, not by their names: addresses change, and one node may have several.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no session is ever resumed
    return context
