"""The store and its clients in one process: real memory, real files."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import threading

import pytest

from shoal._base.settings import Settings
from shoal._core.object_store import Disk, DiskUsage
from shoal._core.transport.errors import RequestFailed
from shoal.testing.in_process_store import Bytes, InProcessStore

MIB = 1 << 20
SETTINGS = Settings(debug=True, spill_file_bytes=2 * MIB, store_full_timeout_s=0.05)


def object_id(number: int) -> bytes:
    return number.to_bytes(28, "big")


def pattern(number: int, nbytes: int) -> bytes:
    return random.Random(number).randbytes(nbytes)


def run(scenario):
    """Run an async test, and look for threads that outlive it."""
    threads = threading.active_count()
    asyncio.run(scenario())
    assert threading.active_count() <= threads


@pytest.fixture
def spill_dir(tmp_path):
    yield str(tmp_path / "spill")
    assert not (tmp_path / "spill").exists()


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def test_all_of_the_memory_can_be_had_when_everything_else_can_be_spilled(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            client = await node.client()
            await client.put(object_id(1), pattern(1, 2 * MIB + 1))  # less than the pages that it takes
            place = await client.client.create(object_id(2), 8 * MIB, client.address)
            assert (place.path, node.store.statistics().on_disk) == ("", 1)
            client.client.abort(object_id(2))
            await client.settle()

    run(scenario)


# --- the ordinary life of an object ---------------------------------------------------------------------------------------------


def test_what_one_process_writes_another_reads(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            writer, reader = await node.client(), await node.client()
            data = pattern(1, 300_000)
            await writer.put(object_id(1), data)
            view = await reader.get(object_id(1))
            assert view == data
            assert view.readonly
            assert node.store.contains(object_id(1))
            assert node.store.objects_of(writer.address.worker_id) == [(object_id(1), len(data), [])]
            assert await node.store.read_bytes(object_id(1)) == data
            assert await node.store.read_bytes(object_id(2)) is None
            writer.client.free([object_id(1)])
            await writer.settle()
            assert not node.store.contains(object_id(1))
            assert node.store.statistics().used_bytes > 0  # the reader still has it
            del view
            await until(lambda: node.store.statistics().used_bytes == 0)

    run(scenario)


def test_an_unknown_object_is_lost_and_the_others_are_not(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            client = await node.client()
            await client.put(object_id(1), b"one")
            places = await client.client.pin([object_id(1), object_id(2), object_id(1)])
            assert places[1] is None
            assert places[0] == places[2] != None  # noqa: E711
            client.client.unpin(object_id(1))
            assert client.client.held() == 1
            client.client.unpin(object_id(1))
            assert client.client.held() == 0

    run(scenario)


def test_a_reader_waits_for_the_seal(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            writer, reader = await node.client(), await node.client()
            place = await writer.client.create(object_id(1), 5, writer.address)
            waiting = asyncio.ensure_future(reader.get(object_id(1)))
            await reader.settle()
            assert not waiting.done()
            writer.client.write(place, Bytes(b"later"))
            writer.client.seal(object_id(1))
            assert await waiting == b"later"

    run(scenario)


@pytest.mark.parametrize("end", ["abort", "crash"])
def test_a_creator_that_gives_up_frees_the_range_and_whoever_waits_is_told(spill_dir, end):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            writer, reader = await node.client(), await node.client()
            await writer.client.create(object_id(1), 3 * MIB, writer.address)
            waiting = asyncio.ensure_future(reader.get(object_id(1)))
            await reader.settle()
            assert node.store.statistics().used_bytes == 3 * MIB
            if end == "abort":
                writer.client.abort(object_id(1))
            else:
                writer.kill()
            assert await waiting is None
            assert node.store.statistics().used_bytes == 0

    run(scenario)


def test_a_second_attempt_replaces_an_unsealed_one_and_yields_to_a_sealed_one(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            first, second = await node.client(), await node.client()
            slow = await first.client.create(object_id(1), MIB, first.address)
            place = await second.put(object_id(1), pattern(2, MIB))
            # The slow writer may still be writing: its range is nobody else's.
            assert slow.offset != place.offset
            assert node.store.statistics().used_bytes == 2 * MIB
            with pytest.raises(RequestFailed) as refused:
                await second.client.create(object_id(1), MIB, second.address)
            assert refused.value.kind == "ObjectExists"
            first.client.seal(object_id(1))
            await first.settle()
            assert node.store.statistics().used_bytes == MIB
            assert await first.get(object_id(1)) == pattern(2, MIB)

    run(scenario)


def test_a_dead_reader_holds_nothing(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            writer, reader = await node.client(), await node.client()
            await writer.put(object_id(1), pattern(1, MIB))
            view = await reader.get(object_id(1))
            assert node.store.statistics().pinned_bytes == MIB
            reader.kill()
            await until(lambda: node.store.statistics().pinned_bytes == 0)
            del view

    run(scenario)


def test_an_object_freed_while_it_is_written_leaves_with_its_seal(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            writer, owner = await node.client(), await node.client()
            await writer.client.create(object_id(1), MIB, owner.address)
            owner.client.free([object_id(1)])
            await owner.settle()
            assert node.store.statistics().used_bytes == MIB
            writer.client.seal(object_id(1))
            await writer.settle()
            assert node.store.statistics().used_bytes == 0
            assert not node.store.contains(object_id(1))

    run(scenario)


def test_a_million_times_put_and_free_leaves_nothing(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, Settings()) as node:
            client = await node.client()
            for number in range(2000):
                await client.put(object_id(number), b"x" * 3000)
                client.client.free([object_id(number)])
            await client.settle()
            figures = node.store.statistics()
            assert (figures.used_bytes, figures.objects) == (0, 0)
            assert figures.high_water_bytes <= 4 * 4096

    run(scenario)


# --- more than fits -------------------------------------------------------------------------------------------------------------


def test_three_times_the_store_comes_back_in_any_order(spill_dir):
    async def scenario():
        async with InProcessStore(16 * MIB, spill_dir, SETTINGS) as node:
            writer, reader = await node.client(), await node.client()
            rng = random.Random(7)
            sizes = {object_id(i): rng.choice([200_000, 1_500_000, 3_000_001]) for i in range(40)}
            assert sum(sizes.values()) > 3 * 16 * MIB
            digests = {}
            for number, (key, nbytes) in enumerate(sizes.items()):
                data = pattern(number, nbytes)
                digests[key] = hashlib.blake2b(data).digest()
                await writer.put(key, data)
            order = list(sizes) * 2
            rng.shuffle(order)
            for key in order:
                assert await reader.digest(key) == digests[key]
            figures = node.store.statistics()
            assert figures.on_disk > 0
            assert figures.restored_objects_total > 0
            assert len(os.listdir(spill_dir)) == figures.spill_files
            # Restored copies are dropped, not written again.
            assert figures.spilled_objects_total <= len(sizes)
            writer.client.free(list(sizes))
            await until(lambda: os.listdir(spill_dir) == [])
            assert node.store.statistics().used_bytes == 0

    run(scenario)


def test_readers_and_writers_in_a_crowd(spill_dir):
    """Eight clients put, read several at once, and free, in a store that holds a quarter of it."""

    async def scenario():
        async with InProcessStore(16 * MIB, spill_dir, SETTINGS) as node:
            digests: dict[bytes, bytes] = {}
            rng = random.Random(3)

            async def work(worker: int):
                client = await node.client()
                mine = []
                for step in range(12):
                    key = object_id(worker * 1000 + step)
                    data = pattern(worker * 1000 + step, rng.randrange(200_000, 2_000_000))
                    digests[key] = hashlib.blake2b(data).digest()
                    await client.put(key, data)
                    mine.append(key)
                    some = rng.sample(mine, min(len(mine), 3))
                    for key, view in zip(some, await asyncio.gather(*(client.get(key) for key in some)), strict=True):
                        assert hashlib.blake2b(view).digest() == digests[key]
                        del view
                    if step % 4 == 3:
                        gone = mine.pop(rng.randrange(len(mine)))
                        client.client.free([gone])
                client.client.free(mine)

            async with asyncio.timeout(60):
                await asyncio.gather(*(work(worker) for worker in range(8)))
            await until(lambda: node.store.statistics().used_bytes == 0)
            await until(lambda: os.listdir(spill_dir) == [])

    run(scenario)


def test_many_small_objects_share_a_file(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            client = await node.client()
            for number in range(200):
                await client.put(object_id(number), pattern(number, 100_000))
            figures = node.store.statistics()
            assert figures.spilled_objects_total > 100
            assert figures.spill_files <= figures.spilled_objects_total / 8
            for number in range(200):
                assert await client.get(object_id(number)) == pattern(number, 100_000)

    run(scenario)


def test_an_object_larger_than_the_store_lives_in_a_file(spill_dir):
    async def scenario():
        async with InProcessStore(4 * MIB, spill_dir, SETTINGS) as node:
            client = await node.client()
            data = pattern(1, 9 * MIB)
            place = await client.put(object_id(1), data)
            assert place.path.startswith(spill_dir)
            view, private = await client.open(object_id(1))
            assert view == data
            assert await node.store.read_bytes(object_id(1)) == data
            mine = private()
            mine[0] ^= 255
            assert view == data
            client.client.free([object_id(1)])
            await client.settle()
            assert os.listdir(spill_dir) == [os.path.basename(place.path)]
            del view, private, mine
            await until(lambda: os.listdir(spill_dir) == [])

    run(scenario)


def test_a_restore_that_readers_stand_in_the_way_of_is_read_from_its_file(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            client = await node.client()
            for number in range(12):
                await client.put(object_id(number), pattern(number, MIB))
            # More than the store can hold at once, all held together, several per request.
            views = {}
            for start in range(0, 12, 4):
                ids = [object_id(number) for number in range(start, start + 4)]
                for key, place in zip(ids, await client.client.pin(ids), strict=True):
                    views[key] = client.client.read(key, place)[0]
                    client.client.unpin(key)
            for number in range(12):
                assert views[object_id(number)] == pattern(number, MIB)
            client.client.free([object_id(number) for number in range(12)])
            await client.settle()
            assert views[object_id(0)] == pattern(0, MIB)
            views.clear()
            await until(lambda: node.store.statistics().used_bytes == 0)
            await until(lambda: os.listdir(spill_dir) == [])

    run(scenario)


def test_creations_wait_for_readers_in_order(spill_dir):
    async def scenario():
        settings = Settings(debug=True, store_full_timeout_s=30.0)
        async with InProcessStore(8 * MIB, spill_dir, settings) as node:
            client = await node.client()
            await client.put(object_id(1), pattern(1, 6 * MIB))
            view = await client.get(object_id(1))
            client.client.free([object_id(1)])
            order = []

            async def create(number):
                await client.client.create(object_id(number), 4 * MIB, client.address)
                order.append(number)
                client.client.seal(object_id(number))
                client.client.free([object_id(number)])

            waiting = [asyncio.ensure_future(create(number)) for number in (2, 3, 4)]
            await client.settle()
            assert not order
            assert node.store.statistics().waiting == 3
            del view
            await asyncio.gather(*waiting)
            assert order == [2, 3, 4]

    run(scenario)


def test_a_store_full_of_readers_overflows_to_disk(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            client = await node.client()
            await client.put(object_id(1), pattern(1, 6 * MIB))
            view = await client.get(object_id(1))
            place = await client.put(object_id(2), pattern(2, 4 * MIB))
            assert place.path
            # The next one need not find out again.
            async with asyncio.timeout(SETTINGS.store_full_timeout_s * 0.9):
                place = await client.put(object_id(3), pattern(3, 4 * MIB))
            assert place.path
            assert await client.get(object_id(2)) == pattern(2, 4 * MIB)
            del view

    run(scenario)


def test_the_refusal_says_what_was_asked_what_is_there_and_who_has_it(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS, overflow_to_disk=False) as node:
            client, reader = await node.client(), await node.client("reader-7")
            await client.put(object_id(1), pattern(1, 6 * MIB))
            view = await reader.get(object_id(1))
            with pytest.raises(RequestFailed) as refused:
                await client.put(object_id(2), pattern(2, 4 * MIB))
            assert refused.value.kind == "ObjectStoreFullError"
            for part in ("4.0 MiB", "8.0 MiB", "6.0 MiB are being read", "reader-7 reads 1 objects", "object_store_memory"):
                assert part in refused.value.message
            del view

    run(scenario)


# --- a disk that refuses ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_with_its_numbers(spill_dir):
    async def scenario():
        used = [99]
        usage = lambda _path: DiskUsage(100 << 30, used[0] << 30, (100 - used[0]) << 30)  # noqa: E731
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS, usage=usage) as node:
            client = await node.client()
            await client.put(object_id(1), pattern(1, 6 * MIB))
            for nbytes in (4 * MIB, 12 * MIB):
                with pytest.raises(RequestFailed) as refused:
                    await client.put(object_id(2), pattern(2, nbytes))
                assert refused.value.kind == "OutOfDiskError"
                assert "99.0 GiB of 100.0 GiB" in refused.value.message
                assert "95%" in refused.value.message
            assert await client.get(object_id(1)) == pattern(1, 6 * MIB)
            used[0] = 10
            await client.put(object_id(2), pattern(2, 4 * MIB))
            assert await client.get(object_id(1)) == pattern(1, 6 * MIB)

    run(scenario)


class BrokenDisk(Disk):
    """Fails with an error of the test's choice."""

    broken: OSError | None = None
    unreadable: OSError | None = None

    def write(self, arena, name, pieces):
        if self.broken:
            super().write(arena, name, pieces[:1])
            self.remove(name)
            raise self.broken
        super().write(arena, name, pieces)

    def read(self, arena, name, piece):
        if self.unreadable:
            raise self.unreadable
        super().read(arena, name, piece)

    def reserve(self, name, nbytes):
        if self.broken:
            raise self.broken
        super().reserve(name, nbytes)


def test_a_disk_that_fills_up_in_the_middle_loses_nothing(spill_dir):
    async def scenario():
        disk = BrokenDisk(spill_dir)
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS, disk=disk) as node:
            client = await node.client()
            for number in range(4):
                await client.put(object_id(number), pattern(number, 2 * MIB))
            disk.broken = OSError(errno.ENOSPC, "No space left on device")
            for nbytes in (MIB, 9 * MIB):
                with pytest.raises(RequestFailed) as refused:
                    await client.put(object_id(9), pattern(9, nbytes))
                assert refused.value.kind == "OutOfDiskError"
                assert "No space left on device" in refused.value.message
            for number in range(4):
                assert await client.get(object_id(number)) == pattern(number, 2 * MIB)
            assert os.listdir(spill_dir) == []
            disk.broken = None
            disk._error_until = 0.0
            await client.put(object_id(9), pattern(9, MIB))
            for number in (0, 1, 2, 3):
                assert await client.get(object_id(number)) == pattern(number, 2 * MIB)

    run(scenario)


def test_a_file_that_cannot_be_read_is_a_lost_object(spill_dir):
    async def scenario():
        disk = BrokenDisk(spill_dir)
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS, disk=disk) as node:
            client = await node.client()
            for number in range(12):
                await client.put(object_id(number), pattern(number, MIB))
            disk.unreadable = OSError(errno.EIO, "Input/output error")
            assert await client.get(object_id(0)) is None
            assert not node.store.contains(object_id(0))
            disk.unreadable = None
            assert await client.get(object_id(1)) == pattern(1, MIB)
            # Made again by its lineage.
            await client.put(object_id(0), pattern(0, MIB))
            assert await client.get(object_id(0)) == pattern(0, MIB)

    run(scenario)


# --- injected loss, orderly end ----------------------------------------------------------------------------------------------------


def test_injected_losses(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS) as node:
            client = await node.client()
            for number in range(12):
                await client.put(object_id(number), pattern(number, MIB))
            assert await client.get(object_id(0)) == pattern(0, MIB)
            await client.settle()
            assert node.store.drop_copy(object_id(0))  # a copy is on disk
            assert await client.get(object_id(0)) == pattern(0, MIB)
            assert node.store.lose(object_id(0))
            assert not node.store.lose(object_id(0))
            assert await client.get(object_id(0)) is None
            view = await client.get(object_id(11))
            assert node.store.drop_copy(object_id(11))  # in use: the reader keeps it, the others have lost it
            other = await node.client()
            assert await other.get(object_id(11)) is None
            assert view == pattern(11, MIB)

    run(scenario)


def test_close_in_the_middle_of_everything_leaves_no_file_and_no_thread(spill_dir):
    async def scenario():
        async with InProcessStore(8 * MIB, spill_dir, SETTINGS, warm_ahead_bytes=4 * MIB) as node:
            client = await node.client()
            for number in range(20):
                await client.put(object_id(number), pattern(number, MIB))
            pending = [asyncio.ensure_future(client.get(object_id(number))) for number in range(5)]
            pending.append(asyncio.ensure_future(client.put(object_id(99), pattern(99, 7 * MIB))))
            await asyncio.sleep(0)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    run(scenario)


def test_pages_are_readied_ahead_of_use_and_not_before(spill_dir):
    async def scenario():
        async with InProcessStore(32 * MIB, spill_dir, SETTINGS, warm_ahead_bytes=8 * MIB) as node:
            client = await node.client()
            assert threading.active_count() == 1 or "shoal-warmer" not in {thread.name for thread in threading.enumerate()}
            assert os.fstat(node.arena.fd).st_blocks == 0
            data = pattern(1, 5 * MIB)
            await client.put(object_id(1), data)
            # What is used, and as much again; nothing more.
            await until(lambda: node.store.statistics().warmed_bytes >= 12 * MIB)
            await asyncio.sleep(0.02)
            assert os.fstat(node.arena.fd).st_blocks * 512 <= 14 * MIB
            assert await client.get(object_id(1)) == data

    run(scenario)
