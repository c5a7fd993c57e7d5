"""Who belongs to a cluster, at both ends.

control store   Membership: its session's token and authority; reception(): what those without a certificate may ask
node            join(): a key of its own, a certificate of the authority, both in its session's directory
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from shoal._core.control_link.addresses import dial, split
from shoal._core.process.session import Session
from shoal._core.transport import Connection, NoCertificate, RequestFailed, SocketTransport, Trust
from shoal._core.transport.addresses import UnixAddress, is_loopback, parse_address
from shoal._core.transport.authority import Authority, adopt_authority, keep_certificate, new_request, open_authority
from shoal._core.transport.preamble import RECEPTION
from shoal._core.transport.trust import SHORTEST_TOKEN_BYTES, Tokens
from shoal._core.wire.messages import DrainNode, IssueCertificate, ListNodes, Message, Ping, RotateToken

if TYPE_CHECKING:
    from shoal._core.wire.messages import CertificateIssued

log = logging.getLogger("shoal.head")

#: Names of the secrets in the tables.
_TOKENS, _KEY, _CERTIFICATE = b"tokens", b"authority_key", b"authority_certificate"
#: What may be asked by those who hold the token and have no certificate: the command line of a machine without a node, and nodes that join.
_ASKED_BY_VISITORS = (Ping, ListNodes, IssueCertificate, RotateToken, DrainNode)


def leaves(address: str) -> bool:
    """Whether other machines see what is sent to an address, or one of several, or what comes to who listens there."""
    places = [parse_address(one) for one in split(address)]
    return any(not isinstance(where, UnixAddress) and not is_loopback(where.host) for where in places)


class Membership:
    """The control store's side of it (``control_store.membership_service.Membership``).

    Args:
        session, trust: of the control store's process.
        authority: None if nobody outside of this machine can reach it.
    """

    def __init__(self, session: Session, trust: Trust, authority: Authority | None) -> None:
        self._session = session
        self._trust = trust
        self._authority = authority

    @classmethod
    def of_listener(cls, session: Session, trust: Trust, listen: str) -> Membership:
        """Make, or find again, the authority that listening at this address needs. ImportError says what to install for it."""
        return cls(session, trust, open_authority(session.directory) if leaves(listen) else None)

    def restore(self, kept: Mapping[bytes, bytes]) -> None:
        if text := kept.get(_TOKENS):
            tokens = Tokens.from_text(text.decode())
            if self._trust.tokens.current not in tokens:
                tokens = tokens.rotated(self._trust.tokens.current)  # started with another one: that is a change of it
            self._trust.tokens = tokens
            self._session.keep_tokens(tokens)
        if self._authority is not None and _KEY in kept:
            self._authority = Authority(kept[_KEY], kept[_CERTIFICATE])
            adopt_authority(self._session.directory, self._authority)

    def kept(self) -> dict[bytes, bytes]:
        found = {_TOKENS: self._trust.tokens.to_text().encode()}
        if self._authority is not None:
            found |= {_KEY: self._authority.key, _CERTIFICATE: self._authority.certificate}
        return found

    def issue(self, request: bytes) -> tuple[bytes, bytes]:
        if self._authority is None:
            raise LookupError(
                "The cluster's control store listens on loopback only, so it issues no certificates, and nodes must do the same. Start it "
                "at an address of its machine."
            )
        return self._authority.issue(request), self._authority.certificate

    def rotate(self, token: bytes) -> None:
        if len(token) < SHORTEST_TOKEN_BYTES:
            raise ValueError(f"A token must have at least {SHORTEST_TOKEN_BYTES} bytes, got {len(token)}: a short one could be guessed.")
        change_token(self._session, self._trust, token)

    def latest_token(self) -> bytes:
        return self._trust.tokens.current if self._trust.tokens.previous else b""


def change_token(session: Session, trust: Trust, token: bytes) -> None:
    """Use a new token from now on, in this process and in those of the session that start later. Idempotent."""
    trust.rotate(token)
    session.keep_tokens(trust.tokens)


def reception(accept: Callable[[Connection], None]) -> Callable[[Connection], None]:
    """Return what to do with visitors of a server that ``accept``s members: they may ask a few things."""

    def receive(connection: Connection) -> None:
        accept(connection)
        serve = connection.on_message

        def on_message(asker: Connection, message: Message) -> None:
            if isinstance(message, _ASKED_BY_VISITORS):
                serve(asker, message)
                return
            log.warning("A visitor, %s, sent a %s.", asker.peer, type(message).__name__)
            asker.abort()

        connection.on_message = on_message

    return receive


async def join(transport: SocketTransport, control_address: str, listen: str, directory: Path) -> None:
    """Get a certificate for this node, if it has to do with other machines, and put it where its processes find it.

    Raises ConnectFailed, ConnectionLost; NoCertificate when the control store issues none; ImportError that says what to install.
    """
    if not leaves(control_address) and not (listen and leaves(listen)):
        return
    key, request = new_request()
    connection = await dial(split(control_address), lambda one: transport.connect(one, pass_over, target=RECEPTION))
    try:
        issued: CertificateIssued = await connection.request(IssueCertificate(0, request))
    except RequestFailed as error:
        raise NoCertificate(f"{control_address} issued no certificate: {error.message}") from error
    finally:
        connection.close()
    keep_certificate(directory, key, issued.certificate, issued.authority)


def pass_over(_connection: Connection, _message: Message) -> None:
    """What comes unasked is for members."""
