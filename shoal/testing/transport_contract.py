"""What every transport must do. Inherit ``TransportContract``, and say how two processes get one.

class TestMyTransport(TransportContract):
    def open(self, loop, tmp_path):
        return MyTransport(loop), MyTransport(loop), "my:address"
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal._base.optional import try_import
from shoal._core.transport import ConnectFailed, Connection, ConnectionLost, RequestFailed, Transport
from shoal._core.wire import messages as wire

if TYPE_CHECKING:
    import pytest
else:
    pytest = try_import("pytest", "shoal[test]")

#: Seconds of the loop's clock that anything may take.
_PATIENCE_S = 20.0
_MIB = 1 << 20


class Endpoints:
    """A server that answers pings and keeps what it hears, and clients of it. ``server`` and ``client`` may be one transport."""

    def __init__(self, server: Transport, client: Transport, address: str) -> None:
        self.server = server
        self.client = client
        self.address = address
        self.received: list[wire.Message] = []
        self.accepted: list[Connection] = []
        self.connected: list[Connection] = []
        #: Ends whose ``on_close`` was called, once per call.
        self.closed: list[Connection] = []

    async def listen(self) -> None:
        self.listener = await self.server.listen(self.address, self._accept)
        self.address = self.listener.address

    async def connect(self, on_message: Callable[[Connection, wire.Message], None] | None = None) -> Connection:
        """Connect a client; return its end when both are there."""
        before = len(self.accepted)
        made = await self.client.connect(self.address, on_message or (lambda _c, _m: None), self.closed.append)
        self.connected.append(made)
        await self.until(lambda: len(self.accepted) > before)
        return made

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.001)

    async def end(self) -> None:
        """Stop, and see that every end hears of it, once."""
        self.listener.close()
        ends = self.connected + self.accepted
        for end in ends:
            end.abort()
        await self.until(lambda: set(ends) <= set(self.closed))
        await asyncio.sleep(0)
        assert len(self.closed) == len(set(self.closed)), "on_close was called twice"

    def _accept(self, connection: Connection) -> None:
        self.accepted.append(connection)
        connection.on_message = self.answer
        connection.on_close = self.closed.append

    def answer(self, connection: Connection, message: wire.Message) -> None:
        """Do what the server does with a message."""
        self.received.append(message)
        if isinstance(message, wire.Ping):
            connection.send(wire.Ack(message.rid))
        elif isinstance(message, wire.KvGet):
            connection.fail(message.rid, "KeyError", "no such key", b"detail")


Test = Callable[[Endpoints], Awaitable[object]]


class TransportContract:
    """Each test opens its own loop and endpoints."""

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that a test runs on. Override it for a virtual clock or another kind."""
        return asyncio.new_event_loop()

    def open(self, loop: asyncio.AbstractEventLoop, tmp_path: Path) -> tuple[Transport, Transport, str]:
        """Return the server's transport, the client's (the same, if it can be both), and an address at which nobody listens."""
        raise NotImplementedError

    @pytest.fixture
    def run(self, tmp_path: Path) -> Callable[[Test], None]:
        """Run a test with its endpoints, and end them."""

        def run(test: Test) -> None:
            async def main() -> None:
                endpoints = Endpoints(*self.open(asyncio.get_running_loop(), tmp_path))
                await endpoints.listen()
                try:
                    await test(endpoints)
                finally:
                    await endpoints.end()

            with asyncio.Runner(loop_factory=self.new_loop) as runner:
                runner.run(main())

        return run

    def test_requests_have_replies_and_refusals(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            assert await peer.request(wire.Ping(0)) == wire.Ack(1)
            with pytest.raises(RequestFailed, match="KeyError: no such key") as caught:
                await peer.request(wire.KvGet(0, "", b"k"))
            assert (caught.value.kind, caught.value.detail) == ("KeyError", b"detail")
            replies = await asyncio.gather(*(peer.request(wire.Ping(0)) for _ in range(3000)))
            assert [reply.rid for reply in replies] == list(range(3, 3003))
            assert peer.peer == ends.address

        run(test)

    def test_both_ends_may_ask(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect(lambda connection, message: connection.send(wire.Ack(message.rid)))  # type: ignore[attr-defined]
            there, here = await asyncio.gather(peer.request(wire.Ping(0)), ends.accepted[0].request(wire.Ping(0)))
            assert (there, here) == (wire.Ack(1), wire.Ack(1))

        run(test)

    def test_messages_keep_their_order(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            for number in range(2000):
                peer.send(wire.ReturnLease(number))
                if number % 7 == 0:
                    await asyncio.sleep(0)
            await peer.request(wire.Ping(0))
            assert ends.received[:-1] == [wire.ReturnLease(number) for number in range(2000)]

        run(test)

    def test_what_one_iteration_sends_arrives_as_one_batch(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            await peer.request(wire.Ping(0))
            batches: list[int] = []
            ends.accepted[0].on_batch_end = lambda: batches.append(len(ends.received))
            for number in range(100):
                peer.send(wire.ReturnLease(number))
            await ends.until(lambda: batches)
            assert batches == [101]

        run(test)

    def test_a_cancelled_request_tells_the_peer_and_ignores_a_late_reply(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            reply = peer.request(wire.WaitPlacementGroup(0, b"g"))
            await ends.until(lambda: ends.received)
            reply.cancel()
            await ends.until(lambda: len(ends.received) == 2)
            assert ends.received == [wire.WaitPlacementGroup(1, b"g"), wire.CancelRequest(1)]
            ends.accepted[0].send(wire.Ack(1))
            assert await peer.request(wire.Ping(0)) == wire.Ack(2)

        run(test)

    def test_a_lost_connection_fails_what_waits_and_names_the_peer(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            reply = peer.request(wire.WaitPlacementGroup(0, b"g"))
            await ends.until(lambda: ends.received)
            ends.accepted[0].abort()
            with pytest.raises(ConnectionLost, match=f"connection to {ends.address} is closed"):
                await reply
            with pytest.raises(ConnectionLost):
                await peer.request(wire.Ping(0))
            with pytest.raises(ConnectionLost):
                await peer.drain()
            peer.send(wire.Ping(0))  # dropped
            assert peer.closed
            await ends.until(lambda: len(ends.closed) == 2)

        run(test)

    def test_an_error_in_a_handler_closes_that_connection_only(self, run: Callable[[Test], None], caplog: pytest.LogCaptureFixture) -> None:
        def fail(_connection: Connection, _message: wire.Message) -> None:
            raise ZeroDivisionError("the handler's mistake")

        async def test(ends: Endpoints) -> None:
            bad, good = await ends.connect(), await ends.connect()
            ends.accepted[0].on_message = fail
            with pytest.raises(ConnectionLost):
                await bad.request(wire.Ping(0))
            assert await good.request(wire.Ping(0)) == wire.Ack(1)

        run(test)
        assert "Handling message Ping" in caplog.text
        assert "the handler's mistake" in caplog.text

    def test_close_delivers_what_was_sent(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            for number in range(3000):
                peer.send(wire.ReturnLease(number))
            peer.close()
            peer.close()
            peer.send(wire.ReturnLease(3000))
            await ends.until(lambda: len(ends.closed) == 2)
            assert ends.received == [wire.ReturnLease(number) for number in range(3000)]

        run(test)

    def test_finish_waits_for_replies_under_way_and_takes_no_more_requests(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            held: list[tuple[Connection, wire.Message]] = []
            peer = await ends.connect()
            ends.accepted[0].on_message = lambda connection, message: held.append((connection, message))
            reply = peer.request(wire.Ping(0))
            await ends.until(lambda: held)
            peer.finish()
            with pytest.raises(ConnectionLost):
                await peer.request(wire.Ping(0))
            peer.send(wire.ReturnLease(7))
            await ends.until(lambda: len(held) == 2)
            assert peer.finishing
            assert not peer.closed
            ends.answer(*held[0])
            assert await reply == wire.Ack(1)
            await ends.until(lambda: peer in ends.closed)
            idle = await ends.connect()
            idle.finish()
            await ends.until(lambda: idle in ends.closed)

        run(test)

    def test_buffers_travel_beside_their_message(self, run: Callable[[Test], None]) -> None:
        big = os.urandom(_MIB) * 30
        got: list[bytes] = []

        def keep(connection: Connection, message: wire.Message) -> None:
            got.extend(bytes(buffer) for buffer in connection.buffers)
            if isinstance(message, wire.Ping):
                connection.send(wire.Ack(message.rid))

        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            ends.accepted[0].on_message = keep
            peer.send(wire.ReturnLease(1))
            peer.send_attached(wire.ReturnLease(2), [big, b"", b"small"])
            assert await peer.request(wire.Ping(0)) == wire.Ack(1)
            with pytest.raises(TypeError, match="Ack is a reply"):
                peer.send_attached(wire.Ack(1), [big])

        run(test)
        assert got == [big, b"", b"small"]

    def test_what_cannot_be_sent_hurts_its_sender_only(self, run: Callable[[Test], None], caplog: pytest.LogCaptureFixture) -> None:
        strange: Any = object()

        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            bad, good = peer.request(wire.KvPut(0, "", b"k", strange)), peer.request(wire.Ping(0))
            with pytest.raises(TypeError):
                await bad
            assert await good == wire.Ack(2)
            peer.send(wire.FreeObjects([strange]))
            await ends.until(lambda: peer.closed)

        run(test)
        assert "Cannot send FreeObjects" in caplog.text

    def test_a_connection_is_saturated_until_it_is_drained(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            assert not peer.saturated()
            for _ in range(32):
                peer.send(wire.KvValue(0, b"x" * _MIB))
            await asyncio.sleep(0)  # the end of the iteration sends it
            assert peer.saturated()
            await peer.drain()
            assert not peer.saturated()

        run(test)

    def test_draining_fails_when_the_peer_goes(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            peer = await ends.connect()
            ends.accepted[0].on_message = lambda connection, _message: connection.abort()
            for _ in range(32):
                peer.send(wire.Published("c", 1, b"k", b"x" * _MIB))
            with pytest.raises(ConnectionLost):
                await peer.drain()
                await peer.request(wire.Ping(0))  # where everything arrives at once, there was nothing to drain

        run(test)

    def test_full_in_both_directions_does_not_stand_still(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            back: list[wire.Message] = []
            peer = await ends.connect(lambda _c, message: back.append(message))
            ends.accepted[0].on_message = lambda connection, message: connection.send(message)
            for _ in range(600):
                peer.send(wire.Published("c", 1, b"k", b"x" * 100_000))
                peer.saturated()  # now and then a frame, so that the echo begins before the end
            assert peer.saturated()
            await ends.until(lambda: len(back) == 600)

        run(test)

    def test_an_address_has_one_listener_until_it_closes(self, run: Callable[[Test], None]) -> None:
        async def test(ends: Endpoints) -> None:
            with pytest.raises(OSError):
                await ends.server.listen(ends.address, lambda _c: None)
            peer = await ends.connect()
            ends.listener.close()
            ends.listener.close()
            assert await peer.request(wire.Ping(0)) == wire.Ack(1)  # connections go on
            with pytest.raises(ConnectFailed, match="Cannot connect to"):
                await ends.client.connect(ends.address, lambda _c, _m: None)
            ends.listener = await ends.server.listen(ends.address, lambda _c: None)

        run(test)
