"""Messages sent from another thread than the loop's: whole, in order, and refused when something is before them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from shoal._core.transport import Connection, SocketTransport
from shoal._core.transport.trust import Tokens, Trust
from shoal._core.wire import messages as wire

TOKENS = Tokens(b"t" * 32)


def run(tmp_path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop], test: Callable[..., Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport = SocketTransport(loop, Trust(TOKENS))
        accepted: asyncio.Future[Connection] = loop.create_future()
        received: list[int] = []
        listener = await transport.listen(f"unix:{tmp_path}/peer.sock", accepted.set_result)
        client = await transport.connect(listener.address, lambda _c, message: received.append(int(message.task_id)))
        try:
            server = await accepted
            assert not server.send_now(ping(0)), "not before it is allowed"
            server.allow_send_now()
            await test(server, client, received)
        finally:
            client.close()
            listener.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(main(), 60))


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return request.param


def ping(number: int, nbytes: int = 0) -> wire.Message:
    return wire.GeneratorItem(b"%d" % number, 0, wire.Value(0, b"x" * nbytes))


async def arrived(received: list[int], count: int) -> None:
    while len(received) < count:
        await asyncio.sleep(0.001)


def test_what_does_not_fit_goes_first_when_the_loop_writes(tmp_path, loop_factory):
    async def test(server: Connection, client: Connection, received: list[int]) -> None:
        client._transport.pause_reading()
        sent = 0
        while await asyncio.to_thread(server.send_now, ping(sent, 30_000)):
            sent += 1
        assert sent > 2
        # The socket is full: what follows queues behind the part that is not written.
        for number in range(sent, sent + 5):
            server.send(ping(number))
        client._transport.resume_reading()
        await arrived(received, sent + 5)
        assert received == list(range(sent + 5))

    run(tmp_path, loop_factory, test)


def test_a_write_that_fails_loses_nothing_that_the_peer_sent_before_it_ended(tmp_path, loop_factory):
    async def test(server: Connection, client: Connection, received: list[int]) -> None:
        ended = asyncio.Event()
        client.on_close = lambda _c: ended.set()
        client._transport.pause_reading()
        for number in range(100):
            server.send(ping(number, 1000))
        gone = asyncio.Event()
        server.on_close = lambda _c: gone.set()
        server.close()
        await gone.wait()
        assert received == []
        client._transport.resume_reading()
        client.send(ping(0))
        client._flush()
        await ended.wait()
        assert received == list(range(100))

    run(tmp_path, loop_factory, test)


def test_it_refuses_while_something_is_queued_and_after_the_end(tmp_path, loop_factory):
    async def test(server: Connection, client: Connection, received: list[int]) -> None:
        server.send(ping(0))
        assert not server.send_now(ping(1))
        await arrived(received, 1)
        assert await asyncio.to_thread(server.send_now, ping(1))
        await arrived(received, 2)
        gone = asyncio.Event()
        server.on_close = lambda _c: gone.set()
        client.close()
        await gone.wait()
        assert not await asyncio.to_thread(server.send_now, ping(2))
        assert received == [0, 1]

    run(tmp_path, loop_factory, test)


def test_two_threads_and_the_loop_at_once_keep_every_message_whole(tmp_path, loop_factory):
    async def test(server: Connection, client: Connection, received: list[int]) -> None:
        each = 3_000
        loop = asyncio.get_running_loop()

        def send(start: int) -> None:
            for number in range(start, start + each):
                if not server.send_now(ping(number, number % 700)):
                    loop.call_soon_threadsafe(server.send, ping(number, number % 700))

        threads = [threading.Thread(target=send, args=(each * k,)) for k in range(2)]
        for thread in threads:
            thread.start()
        for number in range(2 * each, 3 * each):
            server.send(ping(number, number % 700))
            if number % 10 == 0:
                await asyncio.sleep(0)
        await arrived(received, 3 * each)
        for thread in threads:
            thread.join()
        assert sorted(received) == list(range(3 * each))

    run(tmp_path, loop_factory, test)
