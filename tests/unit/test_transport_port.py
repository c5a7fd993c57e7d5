"""TCP ports: preambles, strangers, and sockets that go from one process to another."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from shoal._core.transport import (
    ConnectFailed,
    Connection,
    EncryptionMismatch,
    HandshakeTimeout,
    NotShoal,
    SocketListener,
    SocketTransport,
    VersionMismatch,
    port,
)
from shoal._core.transport.addresses import TcpAddress, parse_address
from shoal._core.transport.authority import Authority
from shoal._core.transport.handover import TICKET_BYTES, Handover, fetch
from shoal._core.transport.port import Port, dial
from shoal._core.transport.preamble import SELF, TARGET_BYTES, Answer, encode_preamble
from shoal._core.transport.stream import SocketConnection
from shoal._core.transport.trust import Tokens, Trust
from shoal._core.wire import messages as wire
from tests.unit.certificates import member

TOKENS = Tokens(b"t" * 32)
WORKER = b"w" * TARGET_BYTES

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    loop = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
    before = open_descriptors()

    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20):
                await main()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait([task], timeout=1)

        loop.run_until_complete(limited())

    yield run
    loop.close()
    assert open_descriptors() - before == set()


def open_descriptors() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")}


def address_of(listener: SocketListener) -> TcpAddress:
    where = parse_address(listener.address)
    assert isinstance(where, TcpAddress)
    return where


def answering(connection: Connection) -> None:
    connection.on_message = lambda asker, message: asker.send(wire.Ack(message.rid))


async def ping(connection: Connection) -> None:
    assert type(await connection.request(wire.Ping(0))) is wire.Ack


async def closed(*connections: Connection) -> None:
    for connection in connections:
        connection.close()
    await asyncio.sleep(0.05)


def test_a_socket_for_another_process_is_handed_over_and_greeted_there(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport = SocketTransport(loop, Trust(TOKENS))
        handover = Handover(loop, f"{tmp_path}/h")
        accepted: list[Connection] = []
        tickets: asyncio.Queue[bytes] = asyncio.Queue()

        def route(target: bytes, sock: socket.socket) -> bool:
            assert target == WORKER
            tickets.put_nowait(handover.offer(sock))
            return True

        def welcome(connection: Connection) -> None:
            answering(connection)
            accepted.append(connection)

        listener = await transport.listen("tcp:127.0.0.1:0", answering, route=route)
        where = address_of(listener)

        async def worker() -> None:
            transport.welcomer("worker", WORKER, welcome)[0](await fetch(loop, handover.path, await tickets.get()))

        serving = loop.create_task(worker())
        sock = await dial(loop, where, WORKER, timeout_s=5)
        # The one who dialled hands its end over, too: from an agent to one of its workers.
        connection = await transport.greet(
            await fetch(loop, handover.path, handover.offer(sock)), "worker", lambda c, m: None, target=WORKER
        )
        await serving
        await ping(connection)
        assert len(accepted) == 1
        own = await transport.connect(listener.address, lambda c, m: None)
        await ping(own)
        assert len(accepted) == 1
        await closed(connection, own, *accepted)
        listener.close()
        handover.close()
        assert not os.path.exists(handover.path)

    run(main)


def test_who_asks_for_a_process_that_is_not_there_hears_so(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport = SocketTransport(loop, Trust(TOKENS))
        for route in (None, lambda target, sock: False):
            listener = await transport.listen("tcp:[::1]:0", answering, route=route)
            with pytest.raises(ConnectFailed, match="not there, or has ended"):
                await dial(loop, address_of(listener), WORKER, timeout_s=5)
            listener.close()

    run(main)


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x80\x04\x95", b"\0" * 100, b"shoal/hs" + b"\0" * 40, os.urandom(5000)],
    ids=lambda w: repr(w[:8]),
)
def test_strangers_are_hung_up_on(run: Run, words: bytes) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        opened: list[socket.socket] = []
        listening = Port(loop, TcpAddress("127.0.0.1", 0), opened.append, None, limit=8)
        with socket.create_connection(listening.where) as stranger:
            stranger.setblocking(False)
            await loop.sock_sendall(stranger, words)
            try:
                assert await loop.sock_recv(stranger, 10) == b""
            except ConnectionResetError:
                assert len(words) > 8
        assert not opened
        listening.close()

    run(main)


@pytest.mark.parametrize("limit", ["PREAMBLE_S", "PATIENCE_S"])
def test_who_says_nothing_keeps_its_place_for_a_while_only(run: Run, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(port, limit, 0.2)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport = SocketTransport(loop, Trust(TOKENS))
        listener = await transport.listen("tcp:127.0.0.1:0", answering, max_unproved=2)
        silent = [socket.create_connection(address_of(listener)) for _ in range(2)]
        for sock in silent:
            sock.setblocking(False)
        connection = await transport.connect(listener.address, lambda c, m: None, timeout_s=5)
        await ping(connection)
        assert await loop.sock_recv(silent[0], 10) == b""
        for sock in silent:
            sock.close()
        await closed(connection)
        listener.close()

    run(main)


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (bytes((Answer.OTHER_VERSION,)), VersionMismatch, "Use the same release"),
        (bytes((Answer.UNKNOWN,)), ConnectFailed, "not there, or has ended"),
        (b"\x63", NotShoal, "no shoal process: it answered b'c'. Check the address"),
        (b"HTTP/1.1 400 Bad Request\r\n", NotShoal, "no shoal process: it answered like a web server, b'HTTP/1.1 400"),
        (b"\x15\x03\x01\x00\x02\x02F", NotShoal, "no shoal process: it answered like a TLS server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotShoal, "no shoal process: it answered like an SSH server"),
        (bytes((Answer.ENCRYPTED_ONLY,)), EncryptionMismatch, "encrypted connections only"),
        (bytes((Answer.PLAIN_ONLY,)), EncryptionMismatch, "takes no encrypted connection"),
        (b"", NotShoal, "hung up at our first words"),
        (None, HandshakeTimeout, "did not answer within 0.3 s"),
    ],
)
def test_what_a_client_reads_of_other_servers(run: Run, reply: bytes | None, error: type[Exception], text: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            attempt = loop.create_task(dial(loop, TcpAddress(*server.getsockname()), timeout_s=0.3))
            accepted, _ = await loop.sock_accept(server)
            with accepted:
                assert await loop.sock_recv(accepted, 100) == encode_preamble(SELF)
                if reply is None:
                    await asyncio.wait([attempt])
                elif reply:
                    await loop.sock_sendall(accepted, reply)
            with pytest.raises(error, match=text):
                await attempt

    run(main)


def test_another_release_is_told_so(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listening = Port(loop, TcpAddress("127.0.0.1", 0), socket.socket.close, None, limit=8)
        with socket.create_connection(listening.where) as client:
            client.setblocking(False)
            await loop.sock_sendall(client, encode_preamble(SELF, version=9))
            assert await loop.sock_recv(client, 10) == bytes((Answer.OTHER_VERSION,))
        listening.close()

    run(main)


def test_a_ticket_is_good_once_and_only_for_a_while(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        handover = Handover(loop, f"{tmp_path}/h")
        assert os.stat(handover.path).st_mode & 0o777 == 0o600
        ours, theirs = socket.socketpair()
        ticket = handover.offer(theirs)
        with await fetch(loop, handover.path, ticket) as got:
            ours.send(b"hello")
            assert await loop.sock_recv(got, 10) == b"hello"
            assert not got.get_inheritable()
        for wrong in (ticket, b"x" * TICKET_BYTES, b"", b"y" * 1000):
            with pytest.raises(ConnectFailed):
                await fetch(loop, handover.path, wrong)
        monkeypatch.setattr("shoal._core.transport.handover.OFFER_S", 0.05)
        late, forgotten = socket.socketpair()
        ticket = handover.offer(forgotten)
        late.setblocking(False)
        assert await loop.sock_recv(late, 1) == b""  # closed when its time was over
        with pytest.raises(ConnectFailed):
            await fetch(loop, handover.path, ticket)
        kept, offered = socket.socketpair()
        handover.offer(offered)
        handover.close()
        handover.close()
        assert kept.recv(1) == b""
        for sock in (ours, late, kept):
            sock.close()

    run(main)


def test_who_listens_at_all_addresses_is_reached_by_both_kinds(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport = SocketTransport(loop, member(tmp_path / "node", Authority.create(), TOKENS))
        listener = await transport.listen("tcp:[::]:0", answering)
        number = address_of(listener).port
        for host in ("127.0.0.1", "[::1]", "localhost"):
            connection = await transport.connect(f"tcp:{host}:{number}", lambda c, m: None)
            await ping(connection)
            assert type(connection) is SocketConnection, "it does not leave the machine"
            await closed(connection)
        listener.close()

    run(main)
