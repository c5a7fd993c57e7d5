"""Real sockets in one loop: what connections promise, and what strangers get."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from shoal._core.transport import (
    ConnectFailed,
    Connection,
    ConnectionLost,
    HandshakeTimeout,
    NotShoal,
    SocketTransport,
    VersionMismatch,
    WrongToken,
    greeting,
    handshake,
    sockets,
)
from shoal._core.transport.addresses import TcpAddress, UnixAddress, parse_address
from shoal._core.transport.trust import Tokens, Trust
from shoal._core.wire import messages as wire
from shoal._core.wire.codec import encode
from shoal.testing import TransportContract

TOKENS = Tokens(b"t" * 32)


class World:
    """A server that answers pings and keeps what else it hears."""

    def __init__(self, address: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport = SocketTransport(self.loop, Trust(TOKENS))
        self.address = address
        self.received: list[wire.Message] = []
        self.accepted: list[Connection] = []
        self.closed: list[Connection] = []
        self.lost = asyncio.Event()
        self.connections: list[Connection] = []

    async def start(self, max_unproved: int = 64) -> None:
        self.listener = await self.transport.listen(self.address, self._accept, max_unproved=max_unproved)
        self.address = self.listener.address

    async def connect(self, on_message: Callable[[Connection, wire.Message], None] | None = None) -> Connection:
        made = await self.transport.connect(self.address, on_message or (lambda c, m: None), self._gone)
        self.connections.append(made)
        return made

    def _accept(self, accepted: Connection) -> None:
        self.accepted.append(accepted)
        accepted.on_message = self._on_message
        accepted.on_close = self._gone

    def _gone(self, gone: Connection) -> None:
        self.closed.append(gone)
        self.lost.set()

    def _on_message(self, sender: Connection, message: wire.Message) -> None:
        self.received.append(message)
        if isinstance(message, wire.Ping):
            sender.send(wire.Ack(message.rid))
        elif isinstance(message, wire.KvGet):
            sender.fail(message.rid, "KeyError", "no such key", b"detail")

    async def stop(self) -> None:
        self.listener.close()
        for each in self.connections + self.accepted:
            each.abort()
        await until(lambda: set(self.connections + self.accepted) <= set(self.closed))
        await asyncio.sleep(0)

    def raw(self) -> socket.socket:
        """A stranger's connection."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect(self.address.removeprefix("unix:"))
        return sock


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class TestUnixSockets(TransportContract):
    def open(self, loop: asyncio.AbstractEventLoop, tmp_path: Path) -> tuple[SocketTransport, SocketTransport, str]:
        transport = SocketTransport(loop, Trust(TOKENS))
        return transport, transport, f"unix:{tmp_path}/s"


class TestUnixSocketsOnUvloop(TestUnixSockets):
    def new_loop(self) -> asyncio.AbstractEventLoop:
        return uvloop.new_event_loop()


class TestTcp(TransportContract):
    def open(self, loop: asyncio.AbstractEventLoop, tmp_path: Path) -> tuple[SocketTransport, SocketTransport, str]:
        transport = SocketTransport(loop, Trust(TOKENS))
        return transport, transport, "tcp:127.0.0.1:0"


class TestTcpOnUvloop(TestTcp):
    def new_loop(self) -> asyncio.AbstractEventLoop:
        return uvloop.new_event_loop()


Run = Callable[..., None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def run(test: Callable[[World], Awaitable[object]], address: str = f"unix:{tmp_path}/s", max_unproved: int = 64) -> None:
        async def main() -> None:
            world = World(address)
            await world.start(max_unproved)
            try:
                await test(world)
            finally:
                await world.stop()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return run


def test_slow_reader_stops_its_sender_and_lets_go(run: Run) -> None:
    """The server's replies fill the socket; it stops reading requests until the client reads."""

    async def test(world: World) -> None:
        peer = await world.connect()
        await peer.request(wire.Ping(0))
        server = world.accepted[0]
        peer._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(80):
            server.send(wire.ReturnLease(0))
            server.send(wire.Published("c", 1, b"k", b"x" * 100_000))
        await until(server.saturated)
        heard = len(world.received)
        peer.send(wire.ReturnLease(7))
        await asyncio.sleep(0.05)  # that nothing arrives can only be seen by waiting
        assert len(world.received) == heard
        drained = asyncio.ensure_future(server.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        peer._transport.resume_reading()  # type: ignore[attr-defined]
        await drained
        assert not server.saturated()
        await until(lambda: len(world.received) == heard + 1)

    run(test)


def test_drain_fails_when_the_peer_goes(run: Run) -> None:
    async def test(world: World) -> None:
        peer = await world.connect()
        world.accepted[0]._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(200):
            peer.send(wire.Published("c", 1, b"k", b"x" * 100_000))
        drained = asyncio.ensure_future(peer.drain())
        await asyncio.sleep(0)
        world.accepted[0].abort()
        with pytest.raises(ConnectionLost):
            await drained

    run(test)


def test_close_does_not_wait_for_ever_for_a_peer_that_does_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal._core.transport.stream.CLOSE_TIMEOUT_S", 0.05)

    async def test(world: World) -> None:
        peer = await world.connect()
        world.accepted[0]._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(200):
            peer.send(wire.Published("c", 1, b"k", b"x" * 100_000))
        peer.close()
        await until(lambda: peer in world.closed)

    run(test)


# --- sockets and files ---


def test_socket_file_is_private_and_goes(run: Run, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        mode = os.stat(tmp_path / "s").st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        with pytest.raises(OSError):
            await world.transport.listen(world.address, lambda c: None)
        peer = await world.connect()
        world.listener.close()
        world.listener.close()
        assert os.listdir(tmp_path) == []
        assert await peer.request(wire.Ping(0)) == wire.Ack(1)
        with pytest.raises(ConnectFailed, match="Cannot connect to unix:"):
            await world.connect()

    run(test)


def test_stale_socket_file_is_replaced(run: Run, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/s")

    async def test(world: World) -> None:
        assert await (await world.connect()).request(wire.Ping(0)) == wire.Ack(1)

    run(test)


def test_other_users_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(greeting.os, "getuid", lambda: 12345)
        with pytest.raises(ConnectFailed, match=f"runs as user {os.geteuid()}, this process as user 12345"):
            await world.connect()
        await asyncio.sleep(0.01)
        assert world.accepted == []

    run(test)


# --- strangers ---


def test_wrong_token(run: Run) -> None:
    async def test(world: World) -> None:
        with pytest.raises(WrongToken, match=r"Cannot connect to unix:.*does not hold this cluster's token"):
            await SocketTransport(world.loop, Trust(Tokens(b"x" * 32))).connect(world.address, lambda c, m: None)
        assert world.accepted == []
        assert await (await world.connect()).request(wire.Ping(0)) == wire.Ack(1)

    run(test)


def test_other_version(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(handshake.Handshake):
        def __init__(self, role: handshake.Role, tokens: Tokens) -> None:
            super().__init__(role, tokens, version=99 if role == "client" else 1)

    monkeypatch.setattr(sockets, "Handshake", Newer)

    async def test(world: World) -> None:
        with pytest.raises(VersionMismatch, match="version 99, the other side version 1"):
            await world.connect()

    run(test)


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "pickle": b"\x80\x04\x95\x1d\x00cposix\nsystem\n(S'true'\ntR.",
    "noise": bytes(range(256)) * 40,
    "zeros": handshake._MAGIC + b"\0" * 10_000,
    "frames": b"".join(encode([wire.Ping(1)])) * 100,
    "impatient": handshake.Handshake("client", TOKENS, nonce=b"n" * 32).start() + b"".join(encode([wire.Ping(1)])) * 1000,
    "version": handshake.Handshake("client", TOKENS, nonce=b"n" * 32, version=7).start(),
}


@pytest.mark.parametrize("data", STRANGERS.values(), ids=STRANGERS.keys())
def test_strangers_are_refused_and_logged_once(run: Run, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "shoal.transport")

    async def test(world: World) -> None:
        with world.raw() as sock:
            sock.send(data)
            async with asyncio.timeout(5):
                try:
                    while await world.loop.sock_recv(sock, 4096):
                        pass
                except ConnectionResetError:
                    pass
        assert world.accepted == []
        assert await (await world.connect()).request(wire.Ping(0)) == wire.Ack(1)

    run(test)
    records = [record for record in caplog.records if record.name == "shoal.transport"]
    assert [record.levelno for record in records] == [logging.DEBUG]
    assert "Refused process" in records[0].getMessage()


def test_replayed_handshake_is_refused(run: Run) -> None:
    async def test(world: World) -> None:
        client = handshake.Handshake("client", TOKENS)
        hello, proof = client.start(), b""
        for attempt in range(2):
            with world.raw() as sock:
                await world.loop.sock_sendall(sock, hello)
                answer = await world.loop.sock_recv(sock, 4096)
                proof = proof or client.receive(answer)
                await world.loop.sock_sendall(sock, proof + b"".join(encode([wire.ReturnLease(attempt)])))
                await asyncio.sleep(0.02)
        await until(lambda: len(world.closed) == 1)
        assert world.received == [wire.ReturnLease(0)]

    run(test)


def test_half_open_peers_are_dropped_in_time_and_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "HANDSHAKE_TIMEOUT_S", 0.2)

    async def test(world: World) -> None:
        socks = [world.raw() for _ in range(4)]
        socks[0].send(handshake._MAGIC)
        await until(lambda: len(world.listener._unproved) == 4)
        newest = world.raw()
        assert await world.loop.sock_recv(newest, 10) == b""
        # An honest client tries until there is room.
        assert await (await world.connect()).request(wire.Ping(0)) == wire.Ack(1)
        for sock in socks:
            try:
                assert await world.loop.sock_recv(sock, 10) == b""
            except ConnectionResetError:
                pass
        for sock in [*socks, newest]:
            sock.close()
        assert not world.listener._unproved

    run(test, max_unproved=4)


def test_idle_peers_make_room_for_honest_ones(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All places are taken by peers that say nothing; none of them has reached the time limit."""
    monkeypatch.setattr(greeting, "PATIENCE_S", 0.0)

    async def test(world: World) -> None:
        socks = [world.raw() for _ in range(4)]
        await until(lambda: len(world.listener._unproved) == 4)
        peers = [await world.connect() for _ in range(2)]
        for peer in peers:
            assert await peer.request(wire.Ping(0))
        # The oldest had to go, the others keep their places.
        assert await world.loop.sock_recv(socks[0], 10) == b""
        assert len(world.listener._unproved) == 3
        for sock in socks:
            sock.close()

    run(test, max_unproved=4)


def test_silent_server_times_out(run: Run, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(f"{tmp_path}/silent")
            silent.listen()
            with pytest.raises(HandshakeTimeout, match="No handshake within"):
                await world.transport.connect(f"unix:{tmp_path}/silent", lambda c, m: None, timeout_s=0.05)

    run(test)


def test_server_that_is_not_shoal(run: Run, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(answer, f"{tmp_path}/http")
        with pytest.raises(NotShoal, match=r"HTTP/1\.1 400"):
            await world.transport.connect(f"unix:{tmp_path}/http", lambda c, m: None)
        server.close()
        await asyncio.sleep(0.01)

    run(test)


def test_corrupt_stream_after_the_handshake_ends_the_connection(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        peer = await world.connect()
        peer._transport.write(struct.pack("<3sBIH", b"shl", 1, 3, 0) + b"\xc1\xc1\xc1")  # type: ignore[attr-defined]
        await world.lost.wait()
        assert await (await world.connect()).request(wire.Ping(0)) == wire.Ack(1)

    run(test)
    assert "Closing the connection to process" in caplog.text


def test_cancelled_connect_leaves_nothing(run: Run) -> None:
    async def test(world: World) -> None:
        for ticks in range(8):
            task = asyncio.ensure_future(world.transport.connect(world.address, lambda c, m: None))
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            try:
                (await task).abort()
            except asyncio.CancelledError:
                pass
        await until(lambda: not world.listener._unproved)
        await until(lambda: all(accepted.closed for accepted in world.accepted))

    run(test)


# --- addresses ---


def test_addresses() -> None:
    assert parse_address("unix:/a:b/c") == UnixAddress("/a:b/c")
    assert parse_address("tcp:localhost:80") == TcpAddress("localhost", 80)
    assert parse_address("tcp:[::1]:80") == TcpAddress("::1", 80)
    assert str(parse_address("tcp:[::1]:80")) == "tcp:[::1]:80"
    for bad in ("", "unix:", "tcp:host", "tcp::80", "tcp:h:99999", "http://x", "unix:" + "x" * 200):
        with pytest.raises(ValueError):
            parse_address(bad)


def test_short_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        SocketTransport(None, Trust(Tokens(b"short")))  # type: ignore[arg-type]
