"""Objects between the stores of several nodes: real memory, real sockets, real files, in one process."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shoal._base.settings import Settings
from shoal._core.object_store import DiskUsage
from shoal._core.object_store.pulls import CHUNK_BYTES
from shoal._core.transport.errors import ConnectionLost, RequestFailed
from tests.inproc.moving import MIB, Cluster, Wire, object_id, pattern

KIB = 1 << 10


def run(scenario):
    before = set(threading.enumerate())
    asyncio.run(scenario())
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(10)
    assert not [thread for thread in left if thread.is_alive()]


async def until(condition, timeout_s=20.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("nbytes", [1, 128 * KIB, CHUNK_BYTES, 3 * CHUNK_BYTES + 4097])
def test_an_object_comes_as_it_is(tmp_path, nbytes):
    async def scenario():
        async with Cluster(tmp_path, 2) as (a, b):
            await a.put(1, nbytes)
            assert await b.read(a, [1], nbytes) == [pattern(1, nbytes)]
            assert b.store.contains(object_id(1)), "the copy stays for the next reader"
            assert await b.read(a, [1], nbytes) == [pattern(1, nbytes)]
            await until(lambda: a.serving.sent_bytes == nbytes)

    run(scenario)


def test_many_small_objects_share_a_connection(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 2)
        async with cluster as (a, b):
            for number in range(100):
                await a.put(number, 100 * KIB)
            found = await b.read(a, range(100), 100 * KIB)
            assert found == [pattern(number, 100 * KIB) for number in range(100)]
            assert cluster.wires["B", "A"].connections == 1

    run(scenario)


def test_two_processes_that_read_an_object_cost_one_transfer(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 2) as (a, b):
            await a.put(1, 9 * MIB)
            found = await asyncio.gather(*(b.read(a, [1], 9 * MIB) for _ in range(5)))
            assert found == [[pattern(1, 9 * MIB)]] * 5
            assert b.pulling.statistics().pulled_objects_total == 1
            await until(lambda: a.serving.sent_bytes == 9 * MIB)

    run(scenario)


def test_an_object_that_is_not_there_is_lost_and_the_others_come(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 2) as (a, b):
            await a.put(1, 100)
            assert await b.read(a, [1, 2], 100) == [pattern(1, 100), None]
            assert not b.store.contains(object_id(2))

    run(scenario)


def test_a_node_that_is_gone_has_lost_what_was_there(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 2) as (a, b):
            await a.put(1, 100)
            a.die()
            assert await b.read(a, [1], 100) == [None]

    run(scenario)


def test_a_fault_in_a_thread_that_fetches_keeps_nobody_waiting(tmp_path, caplog):
    async def scenario():
        async with Cluster(tmp_path, 2) as (a, b):
            await a.put(1, 100)
            b.pulling._trust = None
            assert await b.read(a, [1], 100) == [None]
            assert "A thread that fetches objects has failed." in caplog.text

    run(scenario)


def test_a_connection_that_is_cut_costs_the_rest_only(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 2)
        async with cluster as (a, b):
            await a.put(1, 20 * MIB)
            wire = cluster.wire(b, a)
            wire.limits = [9 * MIB, 7 * MIB]
            assert await b.read(a, [1], 20 * MIB) == [pattern(1, 20 * MIB)]
            assert wire.connections == 3
            assert wire.passed < 20 * MIB + 2 * CHUNK_BYTES + 64 * KIB, "only the pieces that were cut came twice"

    run(scenario)


def test_a_source_that_dies_in_the_middle_leaves_nothing_behind(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 2)
        async with cluster as (a, b):
            await a.put(1, 20 * MIB)
            cluster.wire(b, a).limits = [9 * MIB]
            reading = asyncio.ensure_future(b.read(a, [1], 20 * MIB))
            await until(lambda: (b.pulling._pulls.done_bytes(object_id(1)) or 0) >= CHUNK_BYTES)
            a.die()
            assert await reading == [None]
            assert b.store.statistics().used_bytes == 0

    run(scenario)


def test_a_broadcast_is_relayed(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 6)
        async with cluster as nodes:
            a, *others = nodes
            await a.put(1, 16 * MIB)
            for node in others:
                cluster.wire(node, a).gate.clear()
            reading = [asyncio.ensure_future(node.read(a, [1], 16 * MIB)) for node in others]
            # All have asked the source before anything has come.
            await until(lambda: a.serving._uploads.copies(object_id(1)) == len(others))
            for node in others:
                cluster.wire(node, a).gate.set()
            assert await asyncio.gather(*reading) == [[pattern(1, 16 * MIB)]] * len(others)
            # Two were served, the others by those two.
            await until(lambda: sum(node.serving.sent_bytes for node in nodes) == 5 * 16 * MIB)
            assert a.serving.sent_bytes == 2 * 16 * MIB

    run(scenario)


def test_a_relay_that_fails_half_way_costs_the_rest_only(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 4)
        async with cluster as nodes:
            a, b, c, d = nodes
            await a.put(1, 20 * MIB)
            for node in (b, c, d):
                cluster.wire(node, a).gate.clear()
            for relay in (b, c):
                cluster.wire(d, relay).limits = [9 * MIB]
            reading = []
            for node in (b, c, d):  # in this order, so that d is sent to one of the others
                reading.append(asyncio.ensure_future(node.read(a, [1], 20 * MIB)))
                await until(lambda: a.serving._uploads.copies(object_id(1)) == len(reading))
            for node in (b, c, d):
                cluster.wire(node, a).gate.set()
            assert await asyncio.gather(*reading) == [[pattern(1, 20 * MIB)]] * 3
            relayed = sum(node.serving.sent_bytes for node in (b, c))
            assert relayed > 0
            assert a.serving.sent_bytes + relayed < 3 * 20 * MIB + 3 * CHUNK_BYTES

    run(scenario)


def test_a_relay_goes_on_when_the_primary_dies(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 4)
        async with cluster as nodes:
            a, b, c, d = nodes
            await a.put(1, 16 * MIB)
            assert await b.read(a, [1], 16 * MIB) == [pattern(1, 16 * MIB)]
            for node in (c, d):
                cluster.wire(node, a).gate.clear()
            cluster.wire(d, b).gate.clear()
            a.serving._uploads.ask(object_id(1), 16 * MIB, b"x")  # two others are being served
            a.serving._uploads.ask(object_id(1), 16 * MIB, b"y")
            reading = asyncio.ensure_future(d.read(a, [1], 16 * MIB))
            await until(lambda: ("D", "B") in cluster.wires and cluster.wires["D", "B"].connections)
            a.die()
            cluster.wire(d, b).gate.set()
            assert await reading == [[pattern(1, 16 * MIB)]][0]

    run(scenario)


def test_what_nobody_waits_for_any_more_is_not_fetched(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 2)
        async with cluster as (a, b):
            await a.put(1, 20 * MIB)
            await a.put(2, 100)
            cluster.wire(b, a).limits = [None]
            cluster.wire(b, a).gate.clear()
            client = await b.inner.client()
            pin = b.pin(client, a, [1], 20 * MIB)
            await until(lambda: b.pulling.statistics().under_way == 1)
            pin.cancel()
            cluster.wire(b, a).gate.set()
            await until(lambda: b.pulling.statistics().under_way == 0)
            assert b.pulling.statistics().pulled_objects_total == 0
            assert b.store.statistics().used_bytes == 0
            again = await b.pin(client, a, [1], 20 * MIB)
            assert bytes(client.client.read(object_id(1), again[0])[0]) == pattern(1, 20 * MIB)

    run(scenario)


def test_what_a_dead_process_waited_for_is_not_fetched_and_what_others_wait_for_is(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 2)
        async with cluster as (a, b):
            await a.put(1, 5 * MIB)  # two pieces
            await a.put(2, 3 * MIB)
            cluster.wire(b, a).gate.clear()
            dead, alive = await b.inner.client(), await b.inner.client()
            pins = [b.pin(dead, a, [1], 5 * MIB), b.pin(dead, a, [2], 3 * MIB)]
            one = b.pin(alive, a, [2], 3 * MIB)
            await until(lambda: b.pulling.statistics().under_way == 2)
            dead.kill()
            await until(lambda: b.pulling._pulls._pulls[object_id(1)].ending)
            cluster.wire(b, a).gate.set()
            [place] = await one
            assert bytes(alive.client.read(object_id(2), place)[0]) == pattern(2, 3 * MIB)
            await until(lambda: b.pulling.statistics().under_way == 0)
            assert not b.store.contains(object_id(1))
            assert all(isinstance(error, ConnectionLost) for error in await asyncio.gather(*pins, return_exceptions=True))

    run(scenario)


def test_a_full_store_refuses_with_its_own_error_and_the_object_is_not_lost(tmp_path):
    async def scenario():
        full = [False]
        cluster = Cluster(
            tmp_path, 2, nbytes=8 * MIB, usage=lambda _path: DiskUsage(100, 100, 0) if full[0] else DiskUsage(1 << 50, 0, 1 << 50)
        )
        async with cluster as (a, b):
            await a.put(1, 4 * MIB)
            await b.put(2, 7 * MIB)
            reader = await b.inner.client()
            held = await reader.get(object_id(2))
            full[0] = True
            with pytest.raises(RequestFailed) as refused:
                await b.read(a, [1], 4 * MIB)
            assert refused.value.kind in ("ObjectStoreFullError", "OutOfDiskError")
            assert "8.0 MiB" in refused.value.message or "disk" in refused.value.message
            del held
            await reader.settle()
            full[0] = False
            assert await b.read(a, [1], 4 * MIB) == [pattern(1, 4 * MIB)]

    run(scenario)


def test_a_pull_waits_for_room_that_readers_hold(tmp_path):
    async def scenario():
        settings = Settings(debug=True, spill_file_bytes=2 * MIB, store_full_timeout_s=60.0)
        async with Cluster(tmp_path, 2, nbytes=8 * MIB, settings=settings) as (a, b):
            await a.put(1, 4 * MIB)
            await b.put(2, 7 * MIB)
            reader = await b.inner.client()
            held = await reader.get(object_id(2))
            reading = asyncio.ensure_future(b.read(a, [1], 4 * MIB))
            await until(lambda: b.store.statistics().waiting == 1)
            del held
            reader.client.flush_releases()
            assert await reading == [pattern(1, 4 * MIB)]

    run(scenario)


def test_a_pull_makes_room_by_spilling(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 2, nbytes=8 * MIB) as (a, b):
            await a.put(1, 6 * MIB)
            for number in range(10, 17):
                await b.put(number, MIB)
            assert await b.read(a, [1], 6 * MIB) == [pattern(1, 6 * MIB)]
            assert b.store.statistics().spilled_objects_total >= 5
            for number in range(10, 17):
                assert await b.read(b, [number], MIB) == [pattern(number, MIB)]

    run(scenario)


def test_an_object_that_is_spilled_at_the_source_is_restored(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 2, nbytes=8 * MIB) as (a, b):
            for number in range(10):
                await a.put(number, 2 * MIB)
            assert a.store.statistics().on_disk >= 5
            for number in range(10):
                assert await b.read(a, [number], 2 * MIB) == [pattern(number, 2 * MIB)]

    run(scenario)


def test_an_object_in_a_file_goes_into_a_file(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 2, nbytes=8 * MIB) as (a, b):
            nbytes = 2 * CHUNK_BYTES + 4097
            await a.put(1, nbytes)
            assert await b.read(a, [1], nbytes) == [pattern(1, nbytes)]
            assert b.store.statistics().own_files == 1

    run(scenario)


def test_copies_leave_before_anything_is_spilled(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 2, nbytes=16 * MIB) as (a, b):
            await b.put(50, 4 * MIB)
            for number in range(10):
                await a.put(number, MIB)
                assert await b.read(a, [number], MIB) == [pattern(number, MIB)]
            for number in range(60, 70):
                await b.put(number, MIB)
            statistics = b.store.statistics()
            assert (statistics.spilled_objects_total, statistics.on_disk) == (0, 0)
            assert sum(b.store.contains(object_id(number)) for number in range(10)) < 10

    run(scenario)


def test_copies_go_when_the_object_is_freed_and_readers_keep_theirs(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 3) as (a, b, c):
            await a.put(1, 3 * MIB)
            await b.read(a, [1], 3 * MIB)
            client = await c.inner.client()
            [place] = await c.pin(client, a, [1], 3 * MIB)
            view, _ = client.client.read(object_id(1), place)
            client.client.unpin(object_id(1))
            await client.settle()
            a.store.free([object_id(1)])
            assert not b.store.contains(object_id(1))
            assert b.store.statistics().used_bytes == 0
            await c.put(2, 20 * MIB)
            assert bytes(view) == pattern(1, 3 * MIB), "what is read stays as it is"
            del view
            await client.settle()
            client.client.flush_releases()
            await client.settle()
            assert c.store.statistics().objects == 1

    run(scenario)


def test_a_primary_copy_is_not_freed_with_the_copies(tmp_path):
    async def scenario():
        async with Cluster(tmp_path, 2) as (a, b):
            await a.put(1, 1000)
            a.store.free([object_id(1)], primaries=False)
            assert await b.read(a, [1], 1000) == [pattern(1, 1000)]

    run(scenario)


def test_an_object_freed_on_its_way_leaves_nothing(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 2)
        async with cluster as (a, b):
            await a.put(1, 9 * MIB)
            cluster.wire(b, a).gate.clear()
            reading = asyncio.ensure_future(b.read(a, [1], 9 * MIB))
            await until(lambda: b.pulling.statistics().under_way == 1 and a.serving._uploads.copies(object_id(1)))
            a.store.free([object_id(1)])
            assert await reading == [None]
            cluster.wire(b, a).gate.set()
            await until(lambda: b.pulling.statistics().under_way == 0)
            await until(lambda: a.store.statistics().used_bytes == b.store.statistics().used_bytes == 0)

    run(scenario)


def test_a_blocked_get_does_not_wait_for_what_is_fetched_ahead_of_need(tmp_path):
    async def scenario():
        cluster = Cluster(tmp_path, 2, nbytes=32 * MIB)
        async with cluster as (a, b):
            for number in range(6):
                await a.put(number, 4 * MIB)
            cluster.wire(b, a).gate.clear()
            client = await b.inner.client()
            ahead = [b.pin(client, a, [number], 4 * MIB, urgency=2) for number in range(5)]
            await until(lambda: b.pulling.statistics().under_way == 2)
            first = b.pin(client, a, [5], 4 * MIB)
            done = []
            for number, pin in enumerate([*ahead, first]):
                pin.add_done_callback(lambda _, number=number: done.append(number))
            await until(lambda: b.pulling.statistics().under_way == 3)
            cluster.wire(b, a).gate.set()
            await asyncio.gather(*ahead, first)
            assert done.index(5) <= 2, done

    run(scenario)


def test_the_wire_of_this_test_cuts_where_it_is_told():
    wire = Wire(limit=10)
    puller, source = wire.between()
    source.sendall(b"0123456789abc")
    received = b""
    while data := puller.recv(100):
        received += data
    assert received == b"0123456789"
    puller.close()
    source.close()
