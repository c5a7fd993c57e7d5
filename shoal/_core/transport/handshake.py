"""How two processes prove to each other that they belong to the same cluster, before any message is parsed.

    client                                   server
    hello: magic, version, nonce_c    ──▶
                                      ◀──    hello: magic, version, nonce_s; proof_s
    checks proof_s; proof_c           ──▶    checks proof_c
    frames from here on                      frames from here on

Both proofs are HMAC-SHA256 over all that was said (magic, versions, both nonces). Each role has a key of its own, derived from the
token, so a proof sent back to its author proves nothing; the nonces are fresh, so a recorded handshake proves nothing either. The server
proves first, which saves a round trip on every connection; what a stranger gets by it is an HMAC under a 256-bit random key.
The proofs do not protect what follows: that is the file mode of a Unix socket, or TLS.

Sans-I/O: ``receive(data) -> bytes to send``; the shell enforces the time limit. The hello has had this form since version 1 and keeps
it for ever, so that any two releases can at least tell each other why they part.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from typing import Literal

from shoal._core.transport.errors import HandshakeError, NotShoal, VersionMismatch, WrongToken
from shoal._core.wire.codec import PROTOCOL_VERSION

Role = Literal["client", "server"]

#: Bytes an unproved peer may send before it is refused.
UNPROVED_LIMIT_BYTES = 4096

_MAGIC = b"shoal/hs"
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_HELLO = struct.Struct(f"<8sH{_NONCE_BYTES}s")


class Handshake:
    """One side of one handshake. ``start()`` once, ``receive`` until ``done``; then ``rest`` holds bytes that came after it.

    Raises the subclass of HandshakeError that tells the reason; ``farewell`` is then what to send before hanging up.
    """

    def __init__(self, role: Role, token: bytes, *, nonce: bytes | None = None, version: int = PROTOCOL_VERSION) -> None:
        self.done = False
        self.rest = b""
        self.farewell = b""
        self._role = role
        self._token = token
        self._version = version
        self._nonce = nonce if nonce is not None else secrets.token_bytes(_NONCE_BYTES)
        self._received = b""
        self._transcript = b""
        self._step: Callable[[], bytes | None] = self._server_hello if role == "server" else self._client_proof

    @property
    def heard_nothing(self) -> bool:
        """The peer has not said a word yet."""
        return not self._received and not self._transcript

    def start(self) -> bytes:
        """Return the first bytes to send: the client speaks first."""
        return self._hello() if self._role == "client" else b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the peer, return bytes to send."""
        if self.done:
            self.rest += data
            return b""
        self._received += data
        out = b""
        while not self.done:
            answer = self._step()
            if answer is None:  # not enough yet
                if len(self._received) > UNPROVED_LIMIT_BYTES:
                    raise HandshakeError(f"The peer sent {len(self._received)} bytes before it proved the cluster token.")
                break
            out += answer
        return out

    def _hello(self) -> bytes:
        return _HELLO.pack(_MAGIC, self._version, self._nonce)

    def _read_hello(self, proof_follows: bool) -> tuple[bytes, bytes] | None:
        """Return (hello, proof) of the peer once both are there."""
        data = self._received
        if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
            raise NotShoal(
                f"The other side does not speak shoal's protocol: it sent {data[:32]!r}. Check that the address is that of a shoal process."
            )
        if len(data) < _HELLO.size:
            return None
        version = _HELLO.unpack_from(data)[1]
        if version != self._version:
            self.farewell = self._hello() if self._role == "server" else b""
            raise VersionMismatch(
                f"This process speaks protocol version {self._version}, the other side version {version}. "
                "Use the same release of shoal in all processes of a cluster."
            )
        end = _HELLO.size + (_PROOF_BYTES if proof_follows else 0)
        if len(data) < end:
            return None
        self._received = data[end:]
        return data[: _HELLO.size], data[_HELLO.size : end]

    def _server_hello(self) -> bytes | None:
        got = self._read_hello(proof_follows=False)
        if got is None:
            return None
        if self._received:
            # An honest client cannot go on before it knows our nonce.
            raise HandshakeError(f"The peer sent {len(self._received)} bytes out of turn, before this side had answered.")
        hello = self._hello()
        self._transcript = got[0] + hello
        self._step = self._server_check
        return hello + self._proof("server")

    def _server_check(self) -> bytes | None:
        if len(self._received) < _PROOF_BYTES:
            return None
        self._check(self._received[:_PROOF_BYTES], "client")
        self._finish(self._received[_PROOF_BYTES:])
        return b""

    def _client_proof(self) -> bytes | None:
        got = self._read_hello(proof_follows=True)
        if got is None:
            return None
        self._transcript = self._hello() + got[0]
        self._check(got[1], "server")
        self._finish(self._received)
        return self._proof("client")

    def _finish(self, rest: bytes) -> None:
        self.rest, self._received, self.done = rest, b"", True

    def _proof(self, role: Role) -> bytes:
        key = hmac.digest(self._token, b"shoal handshake key: " + role.encode(), "sha256")
        return hmac.digest(key, self._transcript, "sha256")

    def _check(self, proof: bytes, role: Role) -> None:
        if not hmac.compare_digest(proof, self._proof(role)):
            raise WrongToken(
                f"The {role} at the other side does not hold this cluster's token. It belongs to another cluster or session, "
                "or one side reads an old token file; connect to the address that belongs to the token."
            )
