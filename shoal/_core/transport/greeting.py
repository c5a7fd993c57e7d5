"""The first moments of a socket: who is there, and does it hold the token?

A greeter is the protocol object of a socket until the handshake is done. It has a time limit, reads no more than the handshake needs
and knows nothing of messages. Strangers cost the server one of a bounded number of places, one line in the debug log, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import cast

from shoal._core.transport.connection import OnClose, OnMessage
from shoal._core.transport.errors import ConnectFailed, HandshakeError, HandshakeTimeout
from shoal._core.transport.handshake import Handshake
from shoal._core.transport.sealing import Seal, SealedHandshake
from shoal._core.transport.stream import SocketConnection

log = logging.getLogger("shoal.transport")

#: Seconds from connect to proof. A healthy peer needs less than a millisecond; a suspended one holds its place no longer than this.
HANDSHAKE_TIMEOUT_S = 5.0
#: Seconds after which a peer that still proves nothing loses its place to a newcomer when all are taken. Younger ones keep theirs: in a
#: burst of honest peers the newest is refused, and tries again.
PATIENCE_S = 1.0

_UCRED = struct.Struct("3i")

#: Makes a connection of a socket whose peer has proved itself: (socket, peer's name, what encrypts it if anything).
Adopt = Callable[[asyncio.Transport, str, Seal | None], SocketConnection]
AnyHandshake = Handshake | SealedHandshake


class ServerBusy(ConnectFailed):
    """The server hung up before it said a word: it had no place free. Trying again is worth while."""


class _Greeter(asyncio.Protocol):
    """What both roles share: the exchange, the time limit, and the hand-over of the socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handshake: AnyHandshake, adopt: Adopt, timeout_s: float) -> None:
        self._loop = loop
        self._handshake = handshake
        self._adopt = adopt
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an assertion: uvloop's transports do not derive from asyncio's.
        self._transport = stream = cast("asyncio.Transport", transport)
        self._timer = self._loop.call_later(self._timeout_s, self._timed_out)
        pid, uid = peer_credentials(stream)
        self._peer = f"process {pid}" if pid else f"{transport.get_extra_info('peername')}"
        if uid is not None and uid != os.getuid():
            self._failed(ConnectFailed(f"The other side runs as user {uid}, this process as user {os.getuid()}: refused."))
            return
        self._write(self._handshake.start())

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        try:
            answer = self._handshake.receive(data)
        except HandshakeError as error:
            self._write(self._handshake.farewell)
            self._failed(error)
            return
        self._write(answer)
        if self._handshake.done:
            self._hand_over(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._left(exc)
        self._stop()

    def _hand_over(self, transport: asyncio.Transport) -> None:
        """Give the socket to a connection."""
        self._stop()
        seal = self._handshake.seal if isinstance(self._handshake, SealedHandshake) else None
        connection = self._adopt(transport, self._peer, seal)
        transport.set_protocol(connection)
        self._proved(connection)
        if self._handshake.rest and not connection.closed:
            connection.deliver(self._handshake.rest)

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _timed_out(self) -> None:
        self._failed(HandshakeTimeout(f"No handshake within {self._timeout_s:g} s: the other side is suspended, or not a shoal process."))

    def _stop(self) -> asyncio.Transport | None:
        """Take leave of the socket."""
        transport, self._transport = self._transport, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return transport

    def _proved(self, connection: SocketConnection) -> None:
        raise NotImplementedError

    def _failed(self, error: ConnectFailed) -> None:
        raise NotImplementedError

    def _left(self, exc: Exception | None) -> None:
        """The peer hung up before the end."""
        raise NotImplementedError


class ServerGreeter(_Greeter):
    """Greets one accepted socket. ``unproved`` are the listener's greeters that are still at it, oldest first, and since when."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, handshake: AnyHandshake, address: str, adopt: Adopt,
        on_connection: Callable[[SocketConnection], None], unproved: dict[ServerGreeter, float], limit: int,
    ) -> None:  # fmt: skip
        super().__init__(loop, handshake, adopt, HANDSHAKE_TIMEOUT_S)
        self._address = address
        self._on_connection = on_connection
        self._unproved = unproved
        self._limit = limit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self._unproved) >= self._limit and not self._make_room():
            log.debug("Refused a connection to %s: %d peers have not proved the token yet.", self._address, len(self._unproved))
            cast("asyncio.Transport", transport).abort()
            return
        self._unproved[self] = self._loop.time()
        super().connection_made(transport)

    def _make_room(self) -> bool:
        """Hang up on the oldest of those that prove nothing, so that they cannot keep honest peers out; False if it is young."""
        oldest, since = next(iter(self._unproved.items()))
        if self._loop.time() - since < PATIENCE_S:
            return False
        oldest.refuse(f"it proved nothing for {PATIENCE_S:g} s, and others wait for its place")
        return True

    def refuse(self, why: str) -> None:
        """Hang up on a peer that has not proved the token."""
        self._failed(ConnectFailed(why))

    def _proved(self, connection: SocketConnection) -> None:
        try:
            self._on_connection(connection)
        except Exception:  # server loop: a handler's fault costs this connection only
            log.exception("on_connection failed for %s at %s.", self._peer, self._address)
            connection.abort()

    def _failed(self, error: ConnectFailed) -> None:
        log.debug("Refused %s at %s: %s", self._peer, self._address, error)
        transport = self._stop()
        if transport is not None:
            if self._handshake.farewell:
                transport.close()
            else:
                transport.abort()

    def _left(self, exc: Exception | None) -> None:
        log.debug("%s left %s before it proved the token%s.", self._peer, self._address, f" ({exc})" if exc else "")

    def _stop(self) -> asyncio.Transport | None:
        self._unproved.pop(self, None)
        return super()._stop()


class ClientGreeter(_Greeter):
    """Greets the server that a socket was connected to; ``wait`` gives the connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, handshake: AnyHandshake, address: str, adopt: Adopt,
        on_message: OnMessage, on_close: OnClose | None, timeout_s: float,
    ) -> None:  # fmt: skip
        super().__init__(loop, handshake, adopt, timeout_s)
        self._address = address
        self._on_message = on_message
        self._on_close = on_close
        self._connected: asyncio.Future[SocketConnection] = loop.create_future()

    async def wait(self) -> SocketConnection:
        """Wait for the end of the handshake. Raises ConnectFailed; cancelled, it hangs up."""
        try:
            return await asyncio.shield(self._connected)
        except asyncio.CancelledError:
            if self._connected.done() and not self._connected.cancelled() and self._connected.exception() is None:
                self._connected.result().abort()
            transport = self._stop()
            if transport is not None:
                transport.abort()
            raise

    def _proved(self, connection: SocketConnection) -> None:
        connection.on_message = self._on_message
        if self._on_close is not None:
            connection.on_close = self._on_close
        if self._connected.done():  # nobody waits any more
            connection.abort()
        else:
            self._connected.set_result(connection)

    def _failed(self, error: ConnectFailed) -> None:
        transport = self._stop()
        if transport is not None:
            transport.abort()
        if not self._connected.done():
            self._connected.set_exception(type(error)(f"Cannot connect to {self._address}: {error}"))

    def _left(self, exc: Exception | None) -> None:
        if self._handshake.heard_nothing:
            self._failed(ServerBusy("The server hung up before it said a word: it has no room for another connection, or it just ended."))
        else:
            self._failed(HandshakeError("The server hung up during the handshake. It has ended, or refused this process; its log tells."))


def peer_credentials(transport: asyncio.Transport) -> tuple[int, int | None]:
    """Return (pid, uid) of the process at the other end of a Unix socket, (0, None) for other sockets."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return 0, None
    pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid
