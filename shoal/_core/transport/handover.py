"""How a socket goes from the node agent to another process of its node.

    agent    offer(socket) ─▶ ticket ── in a message, over the connection that the process has ──▶ process
    process  fetch(path, ticket) ── Unix socket: the ticket ──▶ agent
             ◀── SCM_RIGHTS: the socket ─────────────────────────┘

A Unix socket of its own, because event loops read streams without looking at the descriptors that travel along. Only processes of the same
user get in, and only with a ticket of 128 random bits, which is good for once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
import stat
import struct

from shoal._core.transport.errors import ConnectFailed

log = logging.getLogger("shoal.transport")

TICKET_BYTES = 16
#: Seconds until an offered socket that nobody fetched is closed: its process has died, or hangs.
OFFER_S = 10.0
_BACKLOG = 128
#: Seconds between attempts to get in.
_RETRY_S = 0.005
_UCRED = struct.Struct("3i")
_INT = struct.Struct("i")


class Handover:
    """The agent's side: gives sockets away. Used from the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str) -> None:
        self._loop = loop
        self.path = path
        self._offers: dict[bytes, tuple[socket.socket, asyncio.TimerHandle]] = {}
        self._visitors: dict[socket.socket, asyncio.TimerHandle] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        os.fchmod(self._listener.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        self._listener.bind(path)
        self._listener.listen(_BACKLOG)
        loop.add_reader(self._listener.fileno(), self._accept)

    def offer(self, sock: socket.socket) -> bytes:
        """Keep a socket for the process that will show the ticket. It is ours no longer."""
        ticket = secrets.token_bytes(TICKET_BYTES)
        self._offers[ticket] = sock, self._loop.call_later(OFFER_S, self._expire, ticket)
        return ticket

    def close(self) -> None:
        """Close what was not fetched, and let nobody in. Idempotent."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            os.unlink(self.path)
        for ticket in list(self._offers):
            self._expire(ticket)
        for visitor in list(self._visitors):
            self._see_off(visitor)

    def _expire(self, ticket: bytes) -> None:
        sock, timer = self._offers.pop(ticket)
        timer.cancel()
        sock.close()

    def _accept(self) -> None:
        try:
            visitor, _ = self._listener.accept()
        except OSError as error:
            log.debug("Nobody is let in at %s: %s", self.path, error)
            return
        uid = _UCRED.unpack(visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        if uid != os.getuid():
            visitor.close()
            return
        visitor.setblocking(False)
        self._visitors[visitor] = self._loop.call_later(OFFER_S, self._see_off, visitor)
        self._loop.add_reader(visitor.fileno(), self._serve, visitor)

    def _serve(self, visitor: socket.socket) -> None:
        try:
            ticket = visitor.recv(TICKET_BYTES)
            offer = self._offers.pop(ticket, None)
            if offer is not None:
                offer[1].cancel()
                with offer[0] as sock:
                    socket.send_fds(visitor, [b"+"], [sock.fileno()])
        except OSError as error:
            log.debug("A socket was not fetched at %s: %s", self.path, error)
        self._see_off(visitor)

    def _see_off(self, visitor: socket.socket) -> None:
        self._visitors.pop(visitor).cancel()
        self._loop.remove_reader(visitor.fileno())
        visitor.close()


async def fetch(loop: asyncio.AbstractEventLoop, path: str, ticket: bytes) -> socket.socket:
    """Get the socket that a ticket stands for. Raises ConnectFailed when it is not there any more."""
    readable: asyncio.Future[None] = loop.create_future()

    def answered() -> None:
        if not readable.done():
            readable.set_result(None)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as ours:
        try:
            async with asyncio.timeout(OFFER_S):
                while ours.connect_ex(path) == errno.EAGAIN:  # more wait there than the system allows
                    await asyncio.sleep(_RETRY_S)
            ours.send(ticket)
            loop.add_reader(ours.fileno(), answered)
            try:
                async with asyncio.timeout(OFFER_S):
                    await readable
            finally:
                loop.remove_reader(ours.fileno())
            descriptor = _receive_descriptor(ours)
        except (OSError, TimeoutError) as error:
            raise ConnectFailed(f"The node agent did not hand over a connection at {path}: {error}") from error
    if descriptor is None:
        raise ConnectFailed("The node agent has no such connection any more: it was offered for too long, or the agent is ending.")
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock


def _receive_descriptor(sock: socket.socket) -> int | None:
    """``socket.recv_fds`` ignores its flags before Python 3.13, so that a program started at this moment would inherit the descriptor."""
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_LEN(_INT.size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found: int = _INT.unpack(data)[0]
            return found
    return None
