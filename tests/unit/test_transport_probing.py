"""What a probe says of everything that may listen at an address. Each answer names what happened and what to do, within the time given."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from shoal._core.transport import (
    ConnectFailed,
    Connection,
    EncryptionMismatch,
    HandshakeTimeout,
    HostUnreachable,
    NobodyListens,
    NotShoal,
    SocketTransport,
    Tokens,
    Trust,
    VersionMismatch,
    WrongToken,
    port,
    preamble,
)
from shoal._core.transport.authority import Authority
from shoal._core.transport.probing import probe
from shoal._core.wire import messages as wire
from tests.unit.certificates import encrypt_loopback, member

TOKENS = Tokens(b"t" * 32)

Run = Callable[[Callable[[], Awaitable[None]]], None]


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(limited())


@contextlib.contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that listens on loopback, and talks with whoever comes first."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                accepted, _ = listening.accept()
                with accepted:
                    talk(accepted)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp:127.0.0.1:{listening.getsockname()[1]}"
        with contextlib.suppress(OSError):
            socket.create_connection(listening.getsockname(), timeout=1).close()  # if nobody came
        thread.join()


def answering(connection: Connection) -> None:
    def answer(asker: Connection, message: wire.Message) -> None:
        assert isinstance(message, wire.Ping)
        asker.send(wire.Ack(message.rid))

    connection.on_message = answer


def unexpected(connection: Connection) -> None:
    raise AssertionError(f"{connection} is no visitor's")


@pytest.fixture(params=["plain", "encrypted"])
def trust(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trust:
    if request.param == "plain":
        return Trust(TOKENS)
    encrypt_loopback(monkeypatch)
    return member(tmp_path / "node", Authority.create(), TOKENS)


def test_a_control_store_that_is_well(trust: Trust) -> None:
    async def main() -> None:
        transport = SocketTransport(asyncio.get_running_loop(), trust)
        listener = await transport.listen("tcp:127.0.0.1:0", unexpected, on_visit=answering)
        await probe(listener.address, TOKENS)
        await probe(listener.address, Tokens(b"n" * 32, TOKENS.current))
        listener.close()

    run(main)


def test_a_wrong_token(trust: Trust) -> None:
    async def main() -> None:
        transport = SocketTransport(asyncio.get_running_loop(), trust)
        listener = await transport.listen("tcp:127.0.0.1:0", unexpected, on_visit=unexpected)
        with pytest.raises(WrongToken, match=r"does not hold this cluster's token.*connect to the address that belongs to the token"):
            await probe(listener.address, Tokens(b"x" * 32))
        listener.close()

    run(main)


def test_a_node_instead_of_the_control_store(trust: Trust) -> None:
    async def main() -> None:
        transport = SocketTransport(asyncio.get_running_loop(), trust)
        listener = await transport.listen("tcp:127.0.0.1:0", unexpected)
        with pytest.raises(ConnectFailed, match=r"no control store.*port of a node"):
            await probe(listener.address, TOKENS)
        listener.close()

    run(main)


def test_a_control_store_that_hangs(trust: Trust) -> None:
    async def main() -> None:
        transport = SocketTransport(asyncio.get_running_loop(), trust)
        visits: list[Connection] = []
        listener = await transport.listen("tcp:127.0.0.1:0", unexpected, on_visit=visits.append)
        with pytest.raises(HandshakeTimeout, match=r"did not answer within 1 s: it hangs, or is suspended"):
            await probe(listener.address, TOKENS, timeout_s=1.0)
        assert len(visits) == 1
        listener.close()

    run(main)


def test_another_release(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        transport = SocketTransport(asyncio.get_running_loop(), trust)
        listener = await transport.listen("tcp:127.0.0.1:0", unexpected, on_visit=unexpected)
        monkeypatch.setattr(preamble, "PROTOCOL_VERSION", 9)
        monkeypatch.setattr(
            port, "encode_preamble", lambda target, encrypted: preamble.encode_preamble(target, encrypted=encrypted, version=8)
        )
        with pytest.raises(VersionMismatch, match=r"another release of shoal.*Use the same release"):
            await probe(listener.address, TOKENS)
        listener.close()

    run(main)


def test_one_side_encrypts(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        transport = SocketTransport(asyncio.get_running_loop(), trust)
        listener = await transport.listen("tcp:127.0.0.1:0", unexpected, on_visit=unexpected)
        plain = port.encode_preamble
        monkeypatch.setattr(port, "encode_preamble", lambda target, encrypted: plain(target, encrypted=not encrypted))
        with pytest.raises(EncryptionMismatch, match="Something forwards the port"):
            await probe(listener.address, TOKENS)
        listener.close()

    run(main)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        free = gone.getsockname()[1]

    async def main() -> None:
        with pytest.raises(NobodyListens, match=rf"Cannot connect to tcp:127\.0\.0\.1:{free}: nobody listens there.*Check the port"):
            await probe(f"tcp:127.0.0.1:{free}", TOKENS)

    run(main)


def test_no_such_name() -> None:
    async def main() -> None:
        with pytest.raises(HostUnreachable, match="no machine of that name is known here"):
            await probe("tcp:no-such-machine.invalid:6379", TOKENS)

    run(main)


def test_a_machine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is full, so that the first packet is answered by nothing."""

    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = [socket.socket() for _ in range(4)]
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(full.getsockname())
            with pytest.raises(HostUnreachable, match=r"did not answer within 0\.3 s.*no firewall drops what goes to port"):
                await probe(f"tcp:127.0.0.1:{full.getsockname()[1]}", TOKENS, timeout_s=0.3)
            for sock in waiting:
                sock.close()

    run(main)


def http(sock: socket.socket) -> None:
    sock.recv(1000)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def foreign_tls(sock: socket.socket) -> None:
    sock.recv(1000)
    sock.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # its alert: no version of TLS that I know


def opens_and_talks_nonsense(sock: socket.socket) -> None:
    sock.recv(1000)
    sock.sendall(bytes((preamble.Answer.OPEN,)))
    sock.recv(1000)
    sock.sendall(b"nonsense " * 10)
    sock.recv(1000)


def silence(sock: socket.socket) -> None:
    while sock.recv(1000):
        pass


def hangs_up(sock: socket.socket) -> None:
    sock.recv(1000)


@pytest.mark.parametrize(
    ("talk", "error", "text"),
    [
        (http, NotShoal, "no shoal process: it answered like a web server.*Check the address and the port"),
        (foreign_tls, NotShoal, "no shoal process: it answered like a TLS server.*Check the address and the port"),
        (hangs_up, NotShoal, "hung up at our first words.*Check that the address"),
        (opens_and_talks_nonsense, NotShoal, r"nonsense"),
        (silence, HandshakeTimeout, r"did not answer within 0\.5 s.*Check the address and the port"),
    ],
    ids=["http", "tls", "hangs up", "nonsense", "silence"],
)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_what_is_not_shoal(
    monkeypatch: pytest.MonkeyPatch, talk: Callable[[socket.socket], None], error: type[Exception], text: str,
    encrypted: bool,
) -> None:  # fmt: skip
    if encrypted:
        encrypt_loopback(monkeypatch)

    async def main() -> None:
        with server(talk) as address, pytest.raises(error, match=text):
            await probe(address, TOKENS, timeout_s=0.5)

    run(main)
