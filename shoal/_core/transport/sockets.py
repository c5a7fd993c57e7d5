"""Connections over sockets: ``unix:PATH`` within a node, ``tcp:HOST:PORT`` between nodes.

    connect ── socket ─(TCP: preamble)─ peer's uid ── (TLS) handshake ──▶ SocketConnection
    listen  ── accept ─(TCP: preamble)─ peer's uid ── (TLS) handshake ──▶ SocketConnection ──▶ on_connection
    greet   ── a socket that was handed over ──────── (TLS) handshake ──▶ SocketConnection
    welcome ── a socket that was handed over ──────── (TLS) handshake ──▶ SocketConnection ──▶ on_connection

Until the handshake is done a socket belongs to a greeter (``greeting.py``), which knows nothing of messages. Then the socket changes
hands: same descriptor, new protocol object.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from functools import partial

from shoal._core.transport.acknowledging import Acknowledgements
from shoal._core.transport.addresses import TcpAddress, UnixAddress, is_loopback, parse_address
from shoal._core.transport.connection import Connection, OnClose, OnMessage
from shoal._core.transport.errors import ConnectFailed, TransportError
from shoal._core.transport.greeting import HANDSHAKE_TIMEOUT_S, AnyHandshake, ClientGreeter, ServerBusy, ServerGreeter
from shoal._core.transport.handshake import Handshake
from shoal._core.transport.port import Port, Route, dial, leaves_machine
from shoal._core.transport.preamble import RECEPTION, SELF, Answer
from shoal._core.transport.sealing import Seal, SealedHandshake
from shoal._core.transport.stream import SealedConnection, SocketConnection
from shoal._core.transport.trust import SHORTEST_TOKEN_BYTES, Role, Trust

#: Peers of one listener that have not proved the token yet; beyond it the oldest goes, or the newest is refused and tries again.
MAX_UNPROVED = 64
#: Connections that the kernel keeps for us while the loop is busy: a burst of workers that start together.
_BACKLOG = 1024
#: Seconds before the first new attempt after a refusal for want of room; doubles each time, up to the second value.
_RETRY_S = 0.005
_LONGEST_RETRY_S = 0.25

Welcome = Callable[[socket.socket], None]


class SocketTransport:
    """Connects and listens on sockets, for processes that hold the cluster token. ``Transport`` in ``connection.py`` is the interface."""

    def __init__(self, loop: asyncio.AbstractEventLoop, trust: Trust) -> None:
        token = trust.tokens.current
        if len(token) < SHORTEST_TOKEN_BYTES:
            raise ValueError(
                f"The cluster token must have at least {SHORTEST_TOKEN_BYTES} bytes, got {len(token)}: a short one could be guessed."
            )
        self._loop = loop
        self._trust = trust
        self._acknowledgements = Acknowledgements(loop)
        #: On their way from an accepted socket to its greeter; kept because a loop holds its tasks weakly.
        self._welcoming: set[asyncio.Task[object]] = set()

    async def connect(
        self,
        address: str,
        on_message: OnMessage,
        on_close: OnClose | None = None,
        *,
        target: bytes = SELF,
        timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> Connection:
        """Connect and prove the token, both ways, within ``timeout_s``. ``target``: who is meant at a TCP port.

        Raises ConnectFailed, or what is below it and tells the reason.
        """
        where = parse_address(address)
        deadline = self._loop.time() + timeout_s
        pause = _RETRY_S
        while True:
            try:
                return await self._connect_once(where, on_message, on_close, target, deadline)
            except ServerBusy as error:
                if self._loop.time() + pause >= deadline:
                    raise ConnectFailed(f"{error} Tried for {timeout_s:g} s.") from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY_S)

    async def _connect_once(
        self, where: UnixAddress | TcpAddress, on_message: OnMessage, on_close: OnClose | None, target: bytes, deadline: float
    ) -> Connection:
        if isinstance(where, TcpAddress):
            sock = await dial(self._loop, where, target, timeout_s=deadline - self._loop.time())
            return await self.greet(sock, str(where), on_message, on_close, target=target, timeout_s=deadline - self._loop.time())
        handshake = Handshake("client", self._trust.tokens)
        greeter = self._client_greeter(handshake, str(where), on_message, on_close, deadline - self._loop.time())
        try:
            async with asyncio.timeout_at(deadline):
                await self._loop.create_unix_connection(lambda: greeter, where.path)
        except BlockingIOError:
            raise ServerBusy(f"{where} has more connections waiting than the system allows.") from None
        except (OSError, TimeoutError) as error:
            raise ConnectFailed(
                f"Cannot connect to {where}: {str(error) or 'no answer'}. The process that listened there has ended, or never started; "
                "its log in the session directory tells."
            ) from error
        return await greeter.wait()

    async def greet(
        self,
        sock: socket.socket,
        name: str,
        on_message: OnMessage,
        on_close: OnClose | None = None,
        *,
        target: bytes,
        timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> Connection:
        """Be the client on a socket that ``dial`` connected to ``target``; the connection's from now on. Raises as ``connect`` does."""
        try:
            handshake = self._handshake_on(sock, "client", target)
            greeter = self._client_greeter(handshake, name, on_message, on_close, timeout_s)
            await self._loop.create_connection(lambda: greeter, sock=sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError) and not isinstance(error, TransportError):
                raise ConnectFailed(f"Cannot connect to {name}: it hung up ({error}).") from error
            raise
        return await greeter.wait()

    async def listen(
        self,
        address: str,
        on_connection: Callable[[Connection], None],
        *,
        itself: bytes = SELF,
        max_unproved: int = MAX_UNPROVED,
        route: Route | None = None,
        on_visit: Callable[[Connection], None] | None = None,
    ) -> SocketListener:
        """Accept connections; ``on_connection`` gets each one after it has proved the token, and sets its ``on_message`` there and then.

        ``tcp:HOST:0`` takes a free port; the listener's ``address`` tells which.

        Args:
            itself: the target that is this process, at a TCP port.
            route: gets the sockets of those who ask at the port for another process.
            on_visit: gets the connections of those who have proved the token and have no certificate.

        Raises:
            OSError: the address is in use. NoCertificate: other machines could connect, and this node has no certificate.
        """
        where = parse_address(address)
        unproved: dict[ServerGreeter, float] = {}
        if isinstance(where, UnixAddress):
            greeter = partial(self._server_greeter, None, SELF, str(where), on_connection, unproved, max_unproved)
            sock = _bind_unix(where.path)
            inode = os.stat(where.path).st_ino
            server = await self._loop.create_unix_server(greeter, sock=sock, backlog=_BACKLOG)
            return SocketListener(server, str(where), unproved, (where.path, inode))
        if not is_loopback(where.host):
            _ = self._trust.certificates  # now, and not at the first connection
        open_self = partial(self._welcome, itself, str(where), on_connection, unproved, max_unproved)
        receive = on_visit and partial(self._welcome, RECEPTION, str(where), on_visit, unproved, max_unproved)

        def direct(target: bytes, sock: socket.socket) -> bool:
            if receive is not None and target == RECEPTION:
                receive(sock)
                return True
            return route is not None and route(target, sock)

        port = Port(self._loop, where, open_self, direct, limit=max_unproved, itself=itself)
        return SocketListener(port, str(port.where), unproved, None)

    def welcomer(
        self, name: str, target: bytes, on_connection: Callable[[Connection], None], *, max_unproved: int = MAX_UNPROVED
    ) -> tuple[Welcome, Callable[[], None]]:
        """Return what is to be called with sockets for ``target`` that were handed over, to be the server on them as ``listen`` is.

        And what is to be called at the end, to hang up on those that have not proved the token yet.
        """
        unproved: dict[ServerGreeter, float] = {}

        def close() -> None:
            for greeter in list(unproved):
                greeter.refuse("the process ends")

        return partial(self._welcome, target, name, on_connection, unproved, max_unproved), close

    def _welcome(
        self,
        target: bytes,
        name: str,
        on_connection: Callable[[Connection], None],
        unproved: dict[ServerGreeter, float],
        limit: int,
        sock: socket.socket,
    ) -> None:
        with contextlib.suppress(OSError):  # it hung up: the greeter will find out
            sock.send(bytes((Answer.OPEN,)), socket.MSG_NOSIGNAL)
        greeter = partial(self._server_greeter, sock, target, name, on_connection, unproved, limit)
        welcoming = self._loop.create_task(self._loop.connect_accepted_socket(greeter, sock))
        self._welcoming.add(welcoming)
        welcoming.add_done_callback(self._welcoming.discard)

    def _handshake_on(self, sock: socket.socket, role: Role, target: bytes) -> AnyHandshake:
        """Return the handshake for a TCP socket: it is encrypted if it leaves the machine."""
        if leaves_machine(sock):
            return SealedHandshake(role, self._trust, target)
        return Handshake(role, self._trust.tokens, target)

    def _client_greeter(
        self, handshake: AnyHandshake, name: str, on_message: OnMessage, on_close: OnClose | None, timeout_s: float
    ) -> ClientGreeter:
        return ClientGreeter(self._loop, handshake, name, partial(self._adopt, name, False), on_message, on_close, timeout_s)

    def _server_greeter(
        self,
        sock: socket.socket | None,
        target: bytes,
        name: str,
        on_connection: Callable[[Connection], None],
        unproved: dict[ServerGreeter, float],
        limit: int,
    ) -> ServerGreeter:
        handshake = Handshake("server", self._trust.tokens) if sock is None else self._handshake_on(sock, "server", target)
        return ServerGreeter(self._loop, handshake, name, partial(self._adopt, "", True), on_connection, unproved, limit)

    def _adopt(self, name: str, accepted: bool, transport: asyncio.Transport, peer: str, seal: Seal | None) -> SocketConnection:
        if seal is None:
            return SocketConnection(self._loop, transport, name or peer, accepted)
        connection = SealedConnection(self._loop, transport, name or peer, accepted, seal)
        self._acknowledgements.watch(connection.look_for_peer)
        return connection


class SocketListener:
    """A listening socket. Closing it leaves the connections that it has handed out alone."""

    def __init__(
        self, server: asyncio.AbstractServer | Port, address: str, unproved: dict[ServerGreeter, float], path: tuple[str, int] | None
    ) -> None:
        self.address = address
        self._server = server
        self._unproved = unproved
        #: The socket file that is ours to remove, and its inode: another process may have taken the place since.
        self._path = path

    def close(self) -> None:
        """Stop listening, drop those that have not proved the token yet, remove the socket file. Idempotent."""
        self._server.close()
        for greeter in list(self._unproved):
            greeter.refuse("the server closes")
        path, self._path = self._path, None
        if path is not None:
            with contextlib.suppress(OSError):
                if os.stat(path[0]).st_ino == path[1]:
                    os.unlink(path[0])


def _bind_unix(path: str) -> socket.socket:
    """Bind a socket file with mode 0600; a file that a dead process left behind is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Linux gives the file the mode of the socket, so there is no moment with a wider one and no need for umask, which is per process.
        os.fchmod(sock.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        _remove_stale(path)
        sock.bind(path)
        os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass
