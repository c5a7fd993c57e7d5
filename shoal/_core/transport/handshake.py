"""How two processes prove to each other that they belong to the same cluster, before any message is parsed.

    client                                                    server
    hello: magic, version, nonce_c, names of its tokens  ──▶
                                                         ◀──  hello: magic, version, nonce_s, name of the token chosen; proof_s
    checks proof_s; proof_c                              ──▶  checks proof_c
    frames from here on                                       frames from here on

A token is named by a fingerprint salted with the nonce: whoever does not hold the token learns nothing by it, not even that two hellos name
the same. Each side holds one token, or for a while two, so a pair of processes of which one has the newest token already finds the one that
both hold. To a client that names none of its tokens the server proves nothing.

Both proofs are HMAC-SHA256 over all that was said (magic, versions, nonces, names) and over the binding: what else both sides know of the
connection, each from its own view. On TCP it is the target of the preamble, and under TLS the server's certificate, so a man in
the middle, who has to show another certificate, has no proof to pass on. Each role has a key of its own, derived from the token, so a
proof sent back to its author proves nothing; the nonces are fresh, so a recorded handshake proves nothing either. The server proves first,
which saves a round trip on every connection. The proofs do not protect what follows: that is the file mode of a Unix socket, or TLS.

Sans-I/O: ``receive(data) -> bytes to send``; the shell enforces the time limit. The hello has had this form since version 1 and keeps
it for ever, so that any two releases can at least tell each other why they part.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable

from shoal._core.transport.errors import HandshakeError, NotShoal, VersionMismatch, WrongToken
from shoal._core.transport.trust import Role, Tokens
from shoal._core.wire.codec import PROTOCOL_VERSION

#: Bytes an unproved peer may send before it is refused.
UNPROVED_LIMIT_BYTES = 4096

_MAGIC = b"shoal/hs"
_NONCE_BYTES = 32
_NAME_BYTES = 8
_PROOF_BYTES = 32
_HELLO = struct.Struct(f"<8sH{_NONCE_BYTES}s{_NAME_BYTES}s{_NAME_BYTES}s")


class Handshake:
    """One side of one handshake. ``start()`` once, ``receive`` until ``done``; then ``rest`` holds bytes that came after it.

    Raises the subclass of HandshakeError that tells the reason; ``farewell`` is then what to send before hanging up.

    Args:
        binding: what both sides must see alike.
    """

    def __init__(
        self, role: Role, tokens: Tokens, binding: bytes = b"", *, nonce: bytes | None = None, version: int = PROTOCOL_VERSION
    ) -> None:
        self.done = False
        self.rest = b""
        self.farewell = b""
        self._role = role
        self._tokens = tokens
        #: The one that both sides hold, once that is known.
        self._token = tokens.current
        self._binding = binding
        self._version = version
        self._nonce = nonce if nonce is not None else secrets.token_bytes(_NONCE_BYTES)
        self._received = b""
        self._transcript = b""
        self._step: Callable[[], bytes | None] = self._server_hello if role == "server" else self._client_hello

    @property
    def heard_nothing(self) -> bool:
        """The peer has not said a word yet."""
        return not self._received and not self._transcript

    def start(self) -> bytes:
        """Return the first bytes to send: the client speaks first."""
        return self._hello(self._tokens) if self._role == "client" else b""

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

    def _hello(self, tokens: Tokens) -> bytes:
        names = [_name(token or tokens.current, self._nonce) for token in tokens]
        return _HELLO.pack(_MAGIC, self._version, self._nonce, *names)

    def _read_hello(self) -> bytes | None:
        """Return the peer's hello once it is there; the token is chosen then."""
        data = self._received
        if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
            raise NotShoal(
                f"The other side does not speak shoal's protocol: it sent {data[:32]!r}. Check that the address is that of a shoal process."
            )
        if len(data) < _HELLO.size:
            return None
        _, version, nonce, *named = _HELLO.unpack_from(data)
        if version != self._version:
            self.farewell = self._hello(self._tokens) if self._role == "server" else b""
            raise VersionMismatch(
                f"This process speaks protocol version {self._version}, the other side version {version}. "
                "Use the same release of shoal in all processes of a cluster."
            )
        self._received = data[_HELLO.size :]
        held = [token for token in self._tokens if token and _name(token, nonce) in named]
        if not held:
            self.farewell = self._hello(self._tokens) if self._role == "server" else b""
            raise _wrong_token("server" if self._role == "client" else "client")
        self._token = held[0]
        return data[: _HELLO.size]

    def _server_hello(self) -> bytes | None:
        got = self._read_hello()
        if got is None:
            return None
        if self._received:
            # An honest client cannot go on before it knows our nonce.
            raise HandshakeError(f"The peer sent {len(self._received)} bytes out of turn, before this side had answered.")
        hello = self._hello(Tokens(self._token))
        self._transcript = got + hello
        self._step = self._server_check
        return hello + self._proof("server")

    def _server_check(self) -> bytes | None:
        if len(self._received) < _PROOF_BYTES:
            return None
        self._check(self._received[:_PROOF_BYTES], "client")
        self._finish()
        return b""

    def _client_hello(self) -> bytes | None:
        got = self._read_hello()
        if got is None:
            return None
        self._transcript = self._hello(self._tokens) + got
        self._step = self._client_proof
        return b""

    def _client_proof(self) -> bytes | None:
        if len(self._received) < _PROOF_BYTES:
            return None
        self._check(self._received[:_PROOF_BYTES], "server")
        self._finish()
        return self._proof("client")

    def _finish(self) -> None:
        self.rest, self._received, self.done = self._received[_PROOF_BYTES:], b"", True

    def _proof(self, role: Role) -> bytes:
        key = hmac.digest(self._token, b"shoal handshake key: " + role.encode(), "sha256")
        return hmac.digest(key, self._transcript + self._binding, "sha256")

    def _check(self, proof: bytes, role: Role) -> None:
        if not hmac.compare_digest(proof, self._proof(role)):
            raise _wrong_token(role)


def _name(token: bytes, nonce: bytes) -> bytes:
    return hmac.digest(token, b"shoal token name: " + nonce, "sha256")[:_NAME_BYTES]


def _wrong_token(role: Role) -> WrongToken:
    return WrongToken(
        f"The {role} at the other side does not hold this cluster's token. It belongs to another cluster or session, one side reads an "
        "old token file, or somebody between the two reads along; connect to the address that belongs to the token."
    )
