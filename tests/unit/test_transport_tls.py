"""Encrypted sockets: what they promise, who gets in, and what somebody between the two ends sees and gets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from shoal._core.transport import (
    Connection,
    ConnectionLost,
    EncryptionMismatch,
    HandshakeError,
    NoCertificate,
    SocketTransport,
    Tokens,
    Trust,
    WrongCertificate,
    WrongToken,
    port,
)
from shoal._core.transport.addresses import TcpAddress, announced, is_any, is_loopback, parse_address
from shoal._core.transport.authority import Authority, BadRequest, new_request, open_authority
from shoal._core.transport.blocking import BlockingSocket
from shoal._core.transport.preamble import PREAMBLE_BYTES, RECEPTION, SELF, Answer, data_of, encode_preamble
from shoal._core.wire import messages as wire
from shoal.testing import TransportContract
from tests.unit.certificates import encrypt_loopback, member

DATA = data_of(b"n" * len(SELF))
TOKENS = Tokens(b"t" * 32)
MARK = b"the marker that nobody between us may read"

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture
def trust(tmp_path: Path, authority: Authority) -> Trust:
    return member(tmp_path / "node", authority, TOKENS)


@pytest.fixture
def encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    encrypt_loopback(monkeypatch)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, encrypted: None) -> Run:
    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20):
                await main()

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(limited())

    return run


@pytest.mark.usefixtures("encrypted")
class TestTls(TransportContract):
    def open(self, loop: asyncio.AbstractEventLoop, tmp_path: Path) -> tuple[SocketTransport, SocketTransport, str]:
        authority = Authority.create()
        server = SocketTransport(loop, member(tmp_path / "a", authority, TOKENS))
        return server, SocketTransport(loop, member(tmp_path / "b", authority, TOKENS)), "tcp:127.0.0.1:0"


class TestTlsOnUvloop(TestTls):
    def new_loop(self) -> asyncio.AbstractEventLoop:
        return uvloop.new_event_loop()


def answering(connection: Connection) -> None:
    def answer(asker: Connection, message: wire.Message) -> None:
        if isinstance(message, wire.Ping | wire.KvPut):
            asker.send(wire.Ack(message.rid))

    connection.on_message = answer


def ignore(connection: Connection, message: wire.Message) -> None:
    """Nothing comes unasked."""


class Wire:
    """Somebody between client and server, who passes on what it sees. ``seen``: both ways, in order."""

    def __init__(self, to: str) -> None:
        where = parse_address(to)
        assert isinstance(where, TcpAddress)
        self._to = where
        self.seen = bytearray()
        self._server: asyncio.Server

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"tcp:127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._to)
        await asyncio.gather(self._pass_on(reader, there_writer), self._pass_on(there_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.seen += data
                writer.write(data)
                await writer.drain()
        writer.close()


def test_nothing_behind_the_preamble_can_be_read(run: Run, trust: Trust) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport = SocketTransport(loop, trust)
        listener = await transport.listen("tcp:127.0.0.1:0", answering)
        async with Wire(listener.address) as between:
            connection = await transport.connect(between.address, ignore)
            connection.send(wire.Published("channel", 1, b"key", MARK * 100_000))
            connection.send_attached(wire.Published("channel", 1, MARK, b""), [MARK * 10])
            await connection.request(wire.KvPut(0, "namespace", MARK, MARK))
            await closed(connection)
        assert len(between.seen) > len(MARK) * 100_000
        said = bytes(between.seen[PREAMBLE_BYTES:])
        for readable in (MARK, MARK[4:12], b"shoal", b"channel", b"namespace", TOKENS.current):
            assert readable not in said
        listener.close()

    run(main)


async def closed(*connections: Connection) -> None:
    for connection in connections:
        connection.close()
    await asyncio.sleep(0.05)


def test_plain_bytes_are_refused_where_encrypted_ones_are_expected(run: Run, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener = await SocketTransport(loop, trust).listen("tcp:127.0.0.1:0", answering)
        where = parse_address(listener.address)
        assert isinstance(where, TcpAddress)
        for encrypted, must, answer in [(False, True, Answer.ENCRYPTED_ONLY), (True, False, Answer.PLAIN_ONLY)]:
            monkeypatch.setattr(port, "leaves_machine", lambda sock, must=must: must)
            with socket.create_connection(where) as client:
                client.setblocking(False)
                await loop.sock_sendall(client, encode_preamble(SELF, encrypted=encrypted))
                assert await loop.sock_recv(client, 100) == bytes((answer,))
                assert await loop.sock_recv(client, 100) == b""
        listener.close()

    run(main)


@pytest.mark.parametrize(("server_thinks", "text"), [(True, "takes encrypted connections only"), (False, "takes no encrypted connection")])
def test_a_client_that_sees_another_address_is_told(
    run: Run, trust: Trust, monkeypatch: pytest.MonkeyPatch, server_thinks: bool, text: str
) -> None:
    """Something forwards the port: one side sees loopback, the other does not."""

    async def main() -> None:
        transport = SocketTransport(asyncio.get_running_loop(), trust)
        listener = await transport.listen("tcp:127.0.0.1:0", answering)
        async with Wire(listener.address) as forwarder:
            there = parse_address(listener.address)
            assert isinstance(there, TcpAddress)
            monkeypatch.setattr(port, "leaves_machine", lambda sock: server_thinks == (sock.getsockname()[1] == there.port))
            with pytest.raises(EncryptionMismatch, match=text):
                await transport.connect(forwarder.address, ignore)
        listener.close()

    run(main)


@pytest.mark.parametrize("stranger", ["client", "server"])
def test_certificates_of_another_cluster_are_refused(run: Run, trust: Trust, tmp_path: Path, stranger: str) -> None:
    """Even with the right token."""
    other = member(tmp_path / "other", Authority.create(), TOKENS)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = SocketTransport(loop, trust), SocketTransport(loop, other)
        server, client = (ours, theirs) if stranger == "client" else (theirs, ours)
        accepted: list[Connection] = []
        listener = await server.listen("tcp:127.0.0.1:0", accepted.append)
        with pytest.raises(WrongCertificate, match="another cluster"):
            await client.connect(listener.address, ignore)
        assert not accepted
        listener.close()

    run(main)


def test_who_does_not_look_at_the_server_is_refused_by_it(run: Run, trust: Trust, tmp_path: Path) -> None:
    """A client of another cluster that believes any certificate: the server does not believe its own."""
    other = member(tmp_path / "other", Authority.create(), TOKENS)
    other.certificates.client.verify_mode = ssl.CERT_NONE

    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Connection] = []
        listener = await SocketTransport(loop, trust).listen("tcp:127.0.0.1:0", accepted.append)
        with pytest.raises(WrongCertificate, match="does not take this node's certificate"):
            await SocketTransport(loop, other).connect(listener.address, ignore)
        assert not accepted
        listener.close()

    run(main)


def test_a_client_without_a_certificate_is_refused_but_at_the_reception(run: Run, trust: Trust) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Connection] = []
        visits: list[Connection] = []

        def receive(connection: Connection) -> None:
            visits.append(connection)
            answering(connection)

        listener = await SocketTransport(loop, trust).listen("tcp:127.0.0.1:0", accepted.append, on_visit=receive)
        visitor = SocketTransport(loop, Trust(TOKENS))
        with pytest.raises(NoCertificate):
            await visitor.connect(listener.address, ignore)
        connection = await visitor.connect(listener.address, ignore, target=RECEPTION)
        assert type(await connection.request(wire.Ping(0))) is wire.Ack
        with pytest.raises(WrongToken):
            await SocketTransport(loop, Trust(Tokens(b"x" * 32))).connect(listener.address, ignore, target=RECEPTION)
        # TLS alone, without a certificate, where one is expected.
        where = parse_address(listener.address)
        assert isinstance(where, TcpAddress)
        heard = await asyncio.to_thread(words_in_tls, where, SELF, b"shoal/hs")
        assert heard in (b"", None)
        await closed(connection, *visits)
        assert (len(accepted), len(visits)) == (0, 1)
        listener.close()

    run(main)


def words_in_tls(where: TcpAddress, target: bytes, words: bytes) -> bytes | None:
    """Say something inside TLS, as a stranger; return what came back, None for an error of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(where, timeout=10) as sock:
        sock.sendall(encode_preamble(target, encrypted=True))
        assert sock.recv(1) == bytes((Answer.OPEN,))
        try:
            with context.wrap_socket(sock) as tls:
                tls.sendall(words)
                return tls.recv(1000)
        except (ssl.SSLError, ConnectionError):
            return None


@pytest.mark.parametrize("target", [SELF, RECEPTION], ids=["self", "reception"])
@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 300, b"\x16\x03\x01\x02\x00" + b"\1" * 600, os.urandom(100_000)], ids=len
)
def test_strangers_inside_and_outside_of_tls_get_nothing(
    run: Run, trust: Trust, words: bytes, target: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, accepted = SocketTransport(loop, trust), list[Connection]()
        listener = await transport.listen("tcp:127.0.0.1:0", accepted.append, on_visit=accepted.append)
        where = parse_address(listener.address)
        assert isinstance(where, TcpAddress)
        with socket.create_connection(where) as sock:
            sock.setblocking(False)
            await loop.sock_sendall(sock, encode_preamble(target, encrypted=True))
            assert await loop.sock_recv(sock, 1) == bytes((Answer.OPEN,))
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(sock, words)
                sock.shutdown(socket.SHUT_WR)
                assert len(await loop.sock_recv(sock, 1000)) < 20, "no more than an alert of TLS"
        assert await asyncio.to_thread(words_in_tls, where, target, words) in (b"", None)
        assert not accepted
        assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
        listener.close()

    run(main)


class ManInTheMiddle:
    """Shows each side a certificate of its own making, reads everything, and passes it on."""

    def __init__(self, to: str, trust: Trust) -> None:
        where = parse_address(to)
        assert isinstance(where, TcpAddress)
        self._to, self._trust = where, trust
        self.read: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        victim, _ = self._listener.accept()
        server = socket.create_connection(self._to)
        preamble = victim.recv(PREAMBLE_BYTES)
        server.sendall(preamble)
        victim.sendall(server.recv(1))
        certificates = self._trust.certificates
        client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client_side.check_hostname, client_side.verify_mode = False, ssl.CERT_NONE
        with certificates.reception.wrap_socket(victim, server_side=True) as here, client_side.wrap_socket(server) as there:
            for source, sink in [(here, there), (there, here), (here, there)] * 2:
                try:
                    data = source.recv(65536)
                    self.read.append(data)
                    sink.sendall(data)
                except OSError:
                    return
                if not data:
                    return


def test_a_man_in_the_middle_at_joining_has_no_proof_to_pass_on(run: Run, trust: Trust, tmp_path: Path) -> None:
    attacker = member(tmp_path / "attacker", Authority.create(), Tokens(b"a" * 32))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        visits: list[Connection] = []
        listener = await SocketTransport(loop, trust).listen("tcp:127.0.0.1:0", answering, on_visit=visits.append)
        between = ManInTheMiddle(listener.address, attacker)
        with pytest.raises(WrongToken, match="somebody between the two reads along"):
            await SocketTransport(loop, Trust(TOKENS)).connect(between.address, ignore, target=RECEPTION)
        await asyncio.to_thread(between.join)
        assert not visits
        # It stood where it wanted to, and saw the two hellos and the server's proof; that proof is for another certificate.
        assert [data[:8] for data in between.read[:2]] == [b"shoal/hs"] * 2
        assert len(between.read[1]) > len(between.read[0])
        listener.close()

    run(main)


def test_a_changed_target_is_noticed(run: Run, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who meant one process and is led to another, both of the cluster."""
    worker = b"w" * len(SELF)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport = SocketTransport(loop, trust)
        elsewhere, _ = transport.welcomer("another process", b"v" * len(SELF), answering)
        listener = await transport.listen("tcp:127.0.0.1:0", answering, route=lambda target, sock: elsewhere(sock) or True)
        with pytest.raises(WrongToken):
            await transport.connect(listener.address, ignore, target=worker)
        listener.close()

    run(main)


def test_a_recorded_connection_replayed_does_nothing(run: Run, trust: Trust) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, received = SocketTransport(loop, trust), list[wire.Message]()

        def accept(connection: Connection) -> None:
            connection.on_message = lambda asker, message: (received.append(message), asker.send(wire.Ack(message.rid)))  # type: ignore[func-returns-value, attr-defined]

        listener = await transport.listen("tcp:127.0.0.1:0", accept)
        async with Wire(listener.address) as between:
            connection = await transport.connect(between.address, ignore)
            await connection.request(wire.Ping(0))
            await closed(connection)
        where = parse_address(listener.address)
        assert isinstance(where, TcpAddress)
        with socket.create_connection(where) as replay:
            replay.setblocking(False)
            await loop.sock_sendall(replay, bytes(between.seen))
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(replay, 65536):
                    pass
        assert len(received) == 1
        listener.close()

    run(main)


def test_a_byte_that_was_changed_on_the_way_ends_the_connection(run: Run, trust: Trust) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport = SocketTransport(loop, trust)
        accepted: list[Connection] = []

        def accept(connection: Connection) -> None:
            accepted.append(connection)
            answering(connection)

        listener = await transport.listen("tcp:127.0.0.1:0", accept)
        connection = await transport.connect(listener.address, ignore)
        await connection.request(wire.Ping(0))
        connection._transport.write(b"\x17\x03\x03\x00\x20" + os.urandom(32))  # type: ignore[attr-defined]
        with pytest.raises(ConnectionLost):
            await connection.request(wire.Ping(0))
        assert accepted[0].closed
        listener.close()

    run(main)


# --- sockets of threads ---


@pytest.fixture
def threads_pair(trust: Trust, encrypted: None) -> Iterator[tuple[BlockingSocket, BlockingSocket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = BlockingSocket(socket.create_connection(server.getsockname()))
        accepted = BlockingSocket(server.accept()[0])
    proving = threading.Thread(target=accepted.prove, args=("server", trust, DATA))
    proving.start()
    client.prove("client", trust, DATA)
    proving.join()
    yield client, accepted
    client.close()
    accepted.close()


def test_files_and_bytes_over_a_socket_of_threads(threads_pair: tuple[BlockingSocket, BlockingSocket], tmp_path: Path) -> None:
    client, server = threads_pair
    content = os.urandom(5_000_001)
    (tmp_path / "file").write_bytes(b"before" + content + b"after")

    def serve() -> None:
        with open(tmp_path / "file", "rb") as file:
            while asked := server.receive(4):
                server.send(asked[::-1])
                server.send_range(file.fileno(), 6, len(content))

    serving = threading.Thread(target=serve)
    serving.start()
    for _ in range(2):
        client.send(b"want")
        assert client.receive(4) == b"tnaw"
        got = bytearray(len(content))
        client.receive_into(memoryview(got))
        assert got == content
    client.hang_up()
    serving.join(10)
    assert not serving.is_alive()


def test_a_thread_that_waits_is_woken_by_another(threads_pair: tuple[BlockingSocket, BlockingSocket]) -> None:
    client, _server = threads_pair
    ended = threading.Event()

    def wait() -> None:
        with contextlib.suppress(OSError, EOFError):
            client.receive_into(memoryview(bytearray(10)))
        ended.set()

    threading.Thread(target=wait).start()
    client.hang_up()
    assert ended.wait(10)


def test_a_thread_does_not_wait_for_ever(threads_pair: tuple[BlockingSocket, BlockingSocket]) -> None:
    client, _server = threads_pair
    client.limit_wait(0.05)
    with pytest.raises(OSError):
        client.receive(1)


def test_threads_refuse_other_clusters_and_tokens(trust: Trust, encrypted: None, tmp_path: Path, authority: Authority) -> None:
    others = [member(tmp_path / "a", Authority.create(), TOKENS), member(tmp_path / "b", authority, Tokens(b"x" * 32))]
    for other, error in zip(others, [WrongCertificate, WrongToken], strict=True):
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = BlockingSocket(socket.create_connection(server.getsockname()))
            accepted = BlockingSocket(server.accept()[0])
        failures: list[Exception] = []

        def serve(accepted: BlockingSocket = accepted, failures: list[Exception] = failures) -> None:
            try:
                accepted.prove("server", trust, DATA)
            except (HandshakeError, OSError) as failure:
                failures.append(failure)
            accepted.close()

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(error):
            client.prove("client", other, DATA)
        client.close()
        serving.join()
        assert failures


# --- certificates ---


def test_an_authority_is_made_once_and_its_files_are_private(tmp_path: Path) -> None:
    first = open_authority(tmp_path)
    again = open_authority(tmp_path)
    assert again.certificate == first.certificate
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert {path.name for path in tmp_path.iterdir()} == {"authority.key", "authority.crt", "node.key", "node.crt"}
    assert Trust(TOKENS, tmp_path).certificates.own


@pytest.mark.parametrize(
    "request_", [b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", b"x" * 10_000]
)
def test_bad_requests_are_refused(authority: Authority, request_: bytes) -> None:
    with pytest.raises(BadRequest):
        authority.issue(request_)


def test_a_request_must_be_signed_with_its_key(authority: Authority) -> None:
    body = new_request().request
    lines = body.split(b"\n")
    lines[-3] = lines[-3][:8] + bytes(reversed(lines[-3][8:20])) + lines[-3][20:]
    with pytest.raises(BadRequest):
        authority.issue(b"\n".join(lines))


def test_without_a_certificate_nobody_listens_to_other_machines() -> None:
    async def main() -> None:
        transport = SocketTransport(asyncio.get_running_loop(), Trust(TOKENS, "/nowhere"))
        for address in ("tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:192.0.2.1:0"):
            with pytest.raises(NoCertificate, match="no certificate of the cluster"):
                await transport.listen(address, answering)

    asyncio.run(main())


# --- addresses ---


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "::", "fe80::1%eth0", "::ffff:10.0.0.1", "machine", "128.0.0.1"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_where_others_reach_who_listens_at_all_addresses() -> None:
    assert is_any("0.0.0.0")
    assert announced("tcp:0.0.0.0:5", "10.0.0.1") == "tcp:10.0.0.1:5"
    assert announced("tcp:[::]:5", "fd77::1") == "tcp:[fd77::1]:5"
    assert announced("tcp:10.0.0.2:5", "10.0.0.1") == "tcp:10.0.0.2:5"


@pytest.mark.parametrize("tokens", [Tokens(b"a" * 32), Tokens(b"a" * 32, b"b" * 20)])
def test_token_files(tokens: Tokens) -> None:
    assert Tokens.from_text(tokens.to_text()) == tokens


def test_changes_of_the_token() -> None:
    tokens = Tokens(b"a").rotated(b"b")
    assert tokens == Tokens(b"b", b"a")
    assert tokens.rotated(b"b") == tokens
    assert tokens.rotated(b"c") == Tokens(b"c", b"b")
    for text in ("", "61 62 63", "xyz"):
        with pytest.raises(ValueError):
            Tokens.from_text(text)
