"""The loop of a simulated process stands still and ends without its peers' loops noticing."""

from __future__ import annotations

import asyncio

import pytest

from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.wire import messages as wire
from shoal.testing.simulation.process_loop import ProcessLoop
from shoal.testing.virtual_loop import VirtualLoop


@pytest.fixture
def virtual():
    with VirtualLoop() as loop:
        yield loop


def test_a_paused_process_does_everything_later_and_in_order(virtual):
    one, other = ProcessLoop(virtual), ProcessLoop(virtual)
    done = []
    for delay in (0.1, 0.2, 0.4):
        one.call_later(delay, done.append, ("one", delay))
        other.call_later(delay, done.append, ("other", delay))
    one.pause()
    virtual.advance(0.3)
    assert done == [("other", 0.1), ("other", 0.2)]
    one.resume()
    virtual.advance(0.05)
    assert done[2:] == [("one", 0.1), ("one", 0.2)]
    virtual.advance(1.0)
    assert sorted(done[4:]) == [("one", 0.4), ("other", 0.4)]


def test_a_dead_process_does_nothing_more_and_complains_about_nothing(virtual):
    complaints = []
    virtual.set_exception_handler(lambda _loop, context: complaints.append(context["message"]))
    loop = ProcessLoop(virtual)
    done = []

    async def work() -> None:
        await asyncio.sleep(1.0)
        done.append("worked")

    loop.create_task(work())
    virtual.advance(0.5)
    loop.kill()
    virtual.advance(5.0)
    assert done == []
    assert complaints == []


def test_tasks_and_futures_belong_to_the_process_that_runs(virtual):
    loop = ProcessLoop(virtual)

    async def work() -> object:
        async with asyncio.timeout(5.0):
            await asyncio.shield(asyncio.sleep(1.0))
        return asyncio.get_running_loop()

    assert loop.complete(work()) is loop


def test_messages_wait_for_a_paused_process(virtual):
    network = MemoryNetwork(virtual)
    server, client = ProcessLoop(virtual), ProcessLoop(virtual)
    network.place("server", "machine 1", server)
    network.place("client", "machine 2", client)
    got = []

    def accept(connection):
        connection.on_message = lambda c, message: (got.append(message), c.send(wire.Ack(message.rid)))

    server.complete(MemoryTransport(network, "server").listen("memory:server", accept))
    connection = client.complete(MemoryTransport(network, "client").connect("memory:server", lambda c, m: None))
    server.pause()
    reply = connection.request(wire.Ping(0))
    virtual.advance(10.0)
    assert got == []
    assert not reply.done()
    server.resume()
    virtual.advance(0.1)
    assert reply.result() == wire.Ack(1)
