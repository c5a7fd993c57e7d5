"""Who belongs to the cluster: certificates for nodes that join, and changes of the token."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from shoal._core.transport.connection import Connection
from shoal._core.wire.messages import Ack, CertificateIssued, IssueCertificate, Message, RotateToken

from .core import Core, Handler, Session
from .rows import SECRETS
from .storage.interface import Change

log = logging.getLogger("shoal.control_store")


class Membership(Protocol):
    """The control store's own secrets, which lie in its session, and in the tables: whoever goes on with these is the same cluster."""

    def restore(self, kept: Mapping[bytes, bytes]) -> None:
        """Take over what the tables hold, from whichever machine they came."""

    def kept(self) -> dict[bytes, bytes]:
        """Return what belongs into the tables now."""

    def issue(self, request: bytes) -> tuple[bytes, bytes]:
        """Return (certificate, the authority's certificate). LookupError: there is no authority; ValueError: it is no good request."""

    def rotate(self, token: bytes) -> None:
        """Take this token from now on; the one before it is accepted still. ValueError: it is too short."""

    def latest_token(self) -> bytes:
        """Return the token if it has changed since the session was made; b"" otherwise."""


class MembershipService:
    def __init__(self, core: Core, membership: Membership) -> None:
        self._core = core
        self._membership = membership

    def handlers(self) -> dict[type[Message], Handler]:
        return {IssueCertificate: self._issue, RotateToken: self._rotate}

    def load(self, kept: Iterable[tuple[bytes, bytes]]) -> None:
        self._membership.restore(dict(kept))
        self._keep()

    def node_joined(self, connection: Connection) -> None:
        """The node may have missed a change of the token: it may have been cut off, or have joined with the previous one."""
        token = self._membership.latest_token()
        if token:
            self._core.outbox.request(connection, RotateToken(0, token), _told)

    def _issue(self, session: Session, message: IssueCertificate) -> None:
        outbox = self._core.outbox
        try:
            certificate, authority = self._membership.issue(message.request)
        except (LookupError, ValueError) as error:
            outbox.fail(session.connection, message.rid, type(error).__name__, f"{error}")
            return
        outbox.send(session.connection, CertificateIssued(message.rid, certificate, authority))

    def _rotate(self, session: Session, message: RotateToken) -> None:
        """Change the token here, then at every node that is there; answer when all have answered, or are gone."""
        core = self._core
        try:
            self._membership.rotate(message.token)
        except ValueError as error:
            core.outbox.fail(session.connection, message.rid, "ValueError", f"{error}")
            return
        self._keep()
        waiting = set(core.agents)

        def answered(node_id: bytes, _reply: Any, error: BaseException | None) -> None:
            if error is not None:
                log.warning("Node %s did not take the new token: %s", node_id.hex(), error)
            waiting.discard(node_id)
            if not waiting:
                core.outbox.send(session.connection, Ack(message.rid))

        for node_id, connection in core.agents.items():
            core.outbox.request(connection, RotateToken(0, message.token), partial(answered, node_id))
        if not waiting:
            core.outbox.send(session.connection, Ack(message.rid))

    def _keep(self) -> None:
        for key, value in self._membership.kept().items():
            self._core.outbox.write(Change(SECRETS, key, value))


def _told(reply: Any, error: BaseException | None) -> None:
    if error is not None:
        log.warning("A node that joined did not take the current token: %s", error)
