"""Memory connections keep order, share nothing, and break as told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shoal._core.transport import ConnectFailed, Connection, ConnectionLost, MemoryNetwork, MemoryTransport
from shoal._core.wire import messages as wire
from shoal.testing import TransportContract, VirtualLoop, run_virtual


class World:
    """A server "s" that answers pings, and clients."""

    def __init__(self, *, delay_s: tuple[float, float] = (0.0, 0.0), copy: bool = True) -> None:
        self.loop = asyncio.get_running_loop()
        assert isinstance(self.loop, VirtualLoop)
        self.network = MemoryNetwork(self.loop, self.loop.random, delay_s=delay_s, copy=copy)
        self.received: list[wire.Message] = []
        self.accepted: list[Connection] = []
        self.closed: list[str] = []

    async def start(self) -> None:
        self.listener = await MemoryTransport(self.network, "s").listen("memory:s", self._accept)

    async def connect(self, name: str = "c", on_message: Callable[[Connection, wire.Message], None] | None = None) -> Connection:
        transport = MemoryTransport(self.network, name)
        return await transport.connect("memory:s", on_message or (lambda c, m: None), lambda c: self.closed.append(name))

    def _accept(self, connection: Connection) -> None:
        self.accepted.append(connection)
        connection.on_message = self._on_message
        connection.on_close = lambda c: self.closed.append(f"s-{c.peer}")

    def _on_message(self, connection: Connection, message: wire.Message) -> None:
        self.received.append(message)
        if isinstance(message, wire.Ping):
            connection.send(wire.Ack(message.rid))
        elif isinstance(message, wire.KvGet):
            connection.fail(message.rid, "KeyError", "no such key")


def in_world(
    test: Callable[[World], Awaitable[object]], seed: int = 0, *, delay_s: tuple[float, float] = (0.0, 0.0), copy: bool = True
) -> World:
    async def main() -> World:
        world = World(delay_s=delay_s, copy=copy)
        await world.start()
        await test(world)
        return world

    return run_virtual(main(), seed)


class TestContract(TransportContract):
    def new_loop(self) -> VirtualLoop:
        return VirtualLoop()

    def open(self, loop: asyncio.AbstractEventLoop, tmp_path: Path) -> tuple[MemoryTransport, MemoryTransport, str]:
        network = MemoryNetwork(loop)
        return MemoryTransport(network, "s"), MemoryTransport(network, "c"), "memory:s"


@pytest.mark.parametrize("seed", range(20))
def test_order_is_kept_under_random_delays(seed: int) -> None:
    async def test(world: World) -> None:
        connection = await world.connect()
        rng = random.Random(seed)
        for index in range(100):
            connection.send(wire.ReturnLease(index))
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.02)
        await connection.request(wire.Ping(0))
        assert [m.lease_id for m in world.received if isinstance(m, wire.ReturnLease)] == list(range(100))

    in_world(test, seed, delay_s=(0.0, 0.05))


def test_copies_unless_told_otherwise() -> None:
    message = wire.FreeObjects([b"a"])

    async def test(world: World) -> None:
        connection = await world.connect()
        connection.send(message)
        await connection.request(wire.Ping(0))

    assert in_world(test).received[0] is not message
    assert in_world(test, copy=False).received[0] is message


def test_partition_holds_and_heals() -> None:
    async def test(world: World) -> None:
        connection = await world.connect()
        world.network.partition("c", "s")
        reply = connection.request(wire.Ping(0))
        with pytest.raises(ConnectFailed, match="no answer within 5 s"):
            await world.connect()
        assert not reply.done()
        assert world.received == []
        world.network.heal("c", "s")
        assert await reply == wire.Ack(1)

    in_world(test)


def test_a_partition_of_one_way_holds_that_way_only() -> None:
    async def test(world: World) -> None:
        connection = await world.connect()
        await connection.request(wire.Ping(0))
        world.network.partition("s", "c", one_way=True)
        reply = connection.request(wire.Ping(0))
        await asyncio.sleep(1.0)
        assert len(world.received) == 2
        assert not reply.done()
        with pytest.raises(ConnectFailed):
            await world.connect()  # whose answer would be held back
        world.network.heal("c", "s")
        assert await reply == wire.Ack(2)

    in_world(test)


def test_a_partition_of_hosts_cuts_all_processes_there_but_not_among_themselves() -> None:
    async def test(world: World) -> None:
        for name in ("c", "d"):
            world.network.place(name, "machine 2", world.loop)
        world.network.place("s", "machine 1", world.loop)
        c, d = await world.connect("c"), await world.connect("d")
        await MemoryTransport(world.network, "d").listen("memory:d", world._accept)
        beside = await MemoryTransport(world.network, "c").connect("memory:d", lambda c, m: None)
        world.network.partition("machine 1", "machine 2")
        replies = [c.request(wire.Ping(0)), d.request(wire.Ping(0))]
        assert await beside.request(wire.Ping(0)) == wire.Ack(1)
        assert not any(reply.done() for reply in replies)
        world.network.heal("machine 1", "machine 2")
        assert await asyncio.gather(*replies) == [wire.Ack(1), wire.Ack(1)]

    in_world(test)


def test_kill_breaks_connections_and_refuses_new_ones() -> None:
    async def test(world: World) -> None:
        connection = await world.connect()
        await connection.request(wire.Ping(0))
        world.accepted[0].send(wire.ReturnLease(1))
        await asyncio.sleep(0)
        reply = connection.request(wire.Ping(0))
        world.network.kill("s")
        with pytest.raises(ConnectionLost, match="memory:s is closed"):
            await reply
        assert world.closed == ["c"]  # the dead hear nothing
        assert len(world.received) == 1
        with pytest.raises(ConnectFailed):
            await world.connect()

    in_world(test)


def test_disconnect_breaks_both_ends_which_may_meet_again() -> None:
    async def test(world: World) -> None:
        connection = await world.connect()
        reply = connection.request(wire.Ping(0))
        world.network.disconnect("c", "s")
        with pytest.raises(ConnectionLost, match="broke"):
            await reply
        await asyncio.sleep(0)
        assert sorted(world.closed) == ["c", "s-c"]
        again = await world.connect()
        assert await again.request(wire.Ping(0)) == wire.Ack(1)

    in_world(test)


def test_close_delivers_what_was_sent_then_ends_both() -> None:
    async def test(world: World) -> None:
        connection = await world.connect()
        connection.send(wire.ReturnLease(1))
        connection.close()
        connection.send(wire.ReturnLease(2))
        await asyncio.sleep(1)
        assert world.received == [wire.ReturnLease(1)]
        assert sorted(world.closed) == ["c", "s-c"]
        with pytest.raises(ConnectionLost):
            await connection.request(wire.Ping(0))
        assert world.network._connections == []

    in_world(test, delay_s=(0.01, 0.1))


def test_backpressure_and_drain() -> None:
    async def test(world: World) -> None:
        world.network.delay("c", "s", 1.0, 1.0)
        connection = await world.connect()
        assert not connection.saturated()
        for _ in range(10):
            connection.send(wire.KvValue(1, b"x" * (1 << 20)))
        assert connection.saturated()
        before = world.loop.time()
        await connection.drain()
        assert world.loop.time() == before + 1
        assert not connection.saturated()

    in_world(test)


def test_listening_twice_is_refused_and_closing_frees_the_address() -> None:
    async def test(world: World) -> None:
        transport = MemoryTransport(world.network, "other")
        with pytest.raises(OSError, match="in use by s"):
            await transport.listen("memory:s", lambda c: None)
        world.listener.close()
        await transport.listen("memory:s", lambda c: None)
        assert (await transport.listen("", lambda c: None)).address.startswith("memory:other")

    in_world(test)
