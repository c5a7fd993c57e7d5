"""A TCP port: sockets are accepted, say for whom they are, and go to the one who is meant.

accept ── preamble ──┬─ itself ──▶ on_open(socket)         greeted by the one who listens
                     ├─ another ─▶ route(target, socket)   handed over to a process of this node
                     └─ nobody, garbage, too slow, too many ─▶ closed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable

from shoal._core.transport.addresses import TcpAddress, is_loopback
from shoal._core.transport.errors import HandshakeTimeout, HostUnreachable, NobodyListens, NotShoal, TransportError
from shoal._core.transport.preamble import (
    PREAMBLE_BYTES,
    SELF,
    Answer,
    check_answer,
    decode_preamble,
    encode_preamble,
    is_preamble,
    judge,
)

log = logging.getLogger("shoal.transport")

#: Seconds that a stranger has for 40 bytes.
PREAMBLE_S = 5.0
#: Seconds that it keeps its place when others wait for one.
PATIENCE_S = 1.0
#: Seconds to wait when the system has no descriptor left for a new socket.
_SHORT_OF_DESCRIPTORS_S = 0.1
_BACKLOG = 1024
#: Of an answer one byte is looked at, or a little more of what is none: nothing else comes before the client speaks again.
_ANSWER_BYTES = 64
_ANSWERS = frozenset(map(int, Answer))
#: Seconds of silence after which the kernel asks the peer's, between its questions, and number of questions: on an idle connection a peer
#: whose machine vanished is noticed after 15 s. Not TCP_USER_TIMEOUT: it also ends connections whose peer is only slow to read.
_KEEPALIVE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES = 6, 3, 3

#: Takes the socket for another process, the target, which answers OPEN once it has it: it may be gone by then. False: there is none.
Route = Callable[[bytes, socket.socket], bool]


class Port:
    """A listening TCP socket. Closing it leaves the sockets that it has given away alone.

    Args:
        on_open: gets sockets for ``itself``; it answers OPEN.
        route: gets sockets for others; None: nobody else is here.
        limit: strangers at a time that have not said for whom they come; more wait in the system's queue.
        itself: the target that is the one who listens.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        where: TcpAddress,
        on_open: Callable[[socket.socket], None],
        route: Route | None,
        *,
        limit: int,
        itself: bytes = SELF,
    ) -> None:
        self._loop = loop
        self._itself = itself
        self._on_open = on_open
        self._route = route
        self._limit = limit
        self._sock = _listen(where)
        self.where = TcpAddress(where.host, self._sock.getsockname()[1])
        #: Oldest first, and since when.
        self._strangers: dict[asyncio.Task[None], float] = {}
        #: Newcomers wait in the system's queue.
        self._full = False
        self._closed = False
        loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening and drop the strangers. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for stranger in self._strangers:
            stranger.cancel()

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionError) as error:
            log.debug("A peer hung up while it waited at %s: %s", self.where, error)
            return
        except OSError as error:
            log.warning("%s accepts no connection for the moment: %s", self.where, error)
            self._pause(_SHORT_OF_DESCRIPTORS_S)
            return
        stranger = self._loop.create_task(self._receive(sock))
        self._strangers[stranger] = self._loop.time()
        stranger.add_done_callback(self._stranger_gone)
        if len(self._strangers) >= self._limit:
            self._full = True
            self._loop.remove_reader(self._sock.fileno())
            self._make_room()

    def _make_room(self) -> None:
        """Hang up on the oldest stranger when it has had its time and others may wait."""
        if self._full and not self._closed:
            oldest, since = next(iter(self._strangers.items()))
            left = since + PATIENCE_S - self._loop.time()
            if left <= 0:
                oldest.cancel()
            else:
                self._loop.call_later(left, self._make_room)

    def _stranger_gone(self, stranger: asyncio.Task[None]) -> None:
        del self._strangers[stranger]
        if self._full and not self._closed:
            self._full = False
            self._pause(0)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if not self._closed and not self._full:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    async def _receive(self, sock: socket.socket) -> None:
        given = False
        try:
            sock.setblocking(False)
            tune(sock)
            async with asyncio.timeout(PREAMBLE_S):
                data = b""
                while len(data) < PREAMBLE_BYTES:
                    piece = await self._loop.sock_recv(sock, PREAMBLE_BYTES - len(data))
                    data += piece
                    if not piece or not is_preamble(data):
                        log.debug("%s sent %r to %s, which is no preamble.", _name(sock), data[:16], self.where)
                        return
                preamble = decode_preamble(data)
                answer = judge(preamble, leaves_machine(sock))
                if answer == Answer.OPEN and preamble.target == self._itself:
                    given = True
                    self._on_open(sock)
                elif answer == Answer.OPEN:
                    given = self._route is not None and self._route(preamble.target, sock)
                    answer = Answer.UNKNOWN
                if not given:
                    await self._loop.sock_sendall(sock, bytes((answer,)))
        except (OSError, TimeoutError) as error:
            log.debug("A connection to %s ended before it said for whom it is: %s", self.where, error)
        finally:
            if not given:
                sock.close()


async def dial(
    loop: asyncio.AbstractEventLoop, where: TcpAddress, target: bytes = SELF, *, timeout_s: float, connect_s: float = math.inf
) -> socket.socket:
    """Connect to a port and say for whom. Returns the socket, on which TLS, if it leaves the machine, and the handshake are next.

    ``connect_s``: seconds of the time that the machine has to answer. Raises within ``timeout_s`` NobodyListens, HostUnreachable,
    NoSuchProcess, or what is below HandshakeError.
    """
    deadline = loop.time() + timeout_s
    connect_s = min(connect_s, timeout_s)
    try:
        async with asyncio.timeout(connect_s):
            sock = await _connect(loop, where)
    except ConnectionRefusedError as error:
        raise NobodyListens(
            f"Cannot connect to {where}: nobody listens there (the machine answers, and refuses the connection). Check the port, and that "
            "the cluster runs."
        ) from error
    except TimeoutError as error:
        raise HostUnreachable(
            f"Cannot connect to {where}: the machine did not answer within {connect_s:.2g} s. Check the address, that the "
            f"machine is up, and that no firewall drops what goes to port {where.port}."
        ) from error
    except socket.gaierror as error:
        raise HostUnreachable(f"Cannot connect to {where}: no machine of that name is known here ({error}). Check the address.") from error
    except OSError as error:
        raise HostUnreachable(
            f"Cannot connect to {where}: there is no way to it ({error}). Check the address and the network of this machine."
        ) from error
    tune(sock)
    preamble = encode_preamble(target, encrypted=leaves_machine(sock))
    return await hear_answer(loop, sock, str(where), target, deadline - loop.time(), preamble)


async def hear_answer(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, where: str, target: bytes, timeout_s: float, preamble: bytes = b""
) -> socket.socket:
    """Wait for OPEN from the target at the other end, and return the socket. ``preamble``: asks for it, if nobody has.

    The socket is closed when anything is raised, as of ``dial``.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_sendall(sock, preamble)
            # Exactly what is one's own: behind the answer of a port that joins two sockets comes that of the other end.
            answer = await loop.sock_recv(sock, 1)
            if answer and answer[0] not in _ANSWERS:
                with contextlib.suppress(BlockingIOError):  # for the error
                    answer += sock.recv(_ANSWER_BYTES)
            check_answer(answer, where, target)
    except TimeoutError:
        sock.close()
        raise HandshakeTimeout(
            f"{where} did not answer within {timeout_s:.2g} s: it is suspended, or no shoal process. Check the address and the port."
        ) from None
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and not isinstance(error, TransportError):
            raise NotShoal(
                f"Whoever listens at {where} hung up at our first words ({error}). Check that the address is that of a shoal cluster."
            ) from error
        raise
    return sock


def leaves_machine(sock: socket.socket) -> bool:
    """Whether a connected socket leads to another machine, as far as its addresses tell: those are encrypted, always.

    Either end's address: which of the two dialled says nothing about who is the client of what follows.
    """
    if sock.family == socket.AF_UNIX:
        return False
    if not is_loopback(sock.getsockname()[0]):
        return True
    try:
        return not is_loopback(sock.getpeername()[0])
    except OSError:  # it has hung up, and nothing will be said
        return False


async def _connect(loop: asyncio.AbstractEventLoop, where: TcpAddress) -> socket.socket:
    """Try the addresses of the host one after the other."""
    problem: OSError = OSError(f"{where.host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem


def tune(sock: socket.socket) -> None:
    """Send small messages at once, and notice a peer that vanished without a word, if nothing is under way."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def _listen(where: TcpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # "::" stands for the addresses of both kinds
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((where.host, where.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from None
    return sock


def _name(sock: socket.socket) -> str:
    try:
        return f"{sock.getpeername()}"
    except OSError:
        return "A peer that has gone"
