"""Zero copy: how long a view holds its object, in every library that may hold one."""

from __future__ import annotations

import asyncio
import gc
import random
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from shoal._base.settings import Settings
from shoal._core.object_store import Arena
from shoal.testing.in_process_store import InProcessStore

MIB = 1 << 20
KEY = b"k" * 28


async def overwrite(node, client):
    """Fill the store many times over with ones, so that no byte that may be used again stays as it was."""
    for number in range(24):
        await client.put(number.to_bytes(28, "big"), b"\xff" * MIB)


def slice_of_array(view):
    return np.frombuffer(view, dtype=np.uint8)[5:50:3]


def view_of_view(view):
    return memoryview(view)[10:].cast("H")


def arrow_buffer(view):
    return pa.py_buffer(view).slice(4096, 100)


def arrow_column(view):
    array = pa.Array.from_buffers(pa.int64(), 1000, [None, pa.py_buffer(view)])
    return pa.table({"a": array}).column("a").chunk(0).slice(10, 5)


def frame_row(view):
    frame = pd.DataFrame(np.frombuffer(view, dtype=np.int64).reshape(-1, 64), copy=False)
    return frame.iloc[3:9]


def reshaped(view):
    return np.frombuffer(view, dtype=np.float32).reshape(-1, 16).T[3]


def structured(view):
    return np.frombuffer(view, dtype=np.dtype([("a", "<i4"), ("b", "<f4")]))["b"].view(np.uint32)


def content(part) -> bytes:
    if isinstance(part, pa.Buffer):
        return part.to_pybytes()
    if isinstance(part, pa.Array):
        return bytes(part.buffers()[1])
    if isinstance(part, pd.DataFrame):
        return part.to_numpy().tobytes()
    return part.tobytes()


@pytest.mark.parametrize("part_of", [slice_of_array, view_of_view, arrow_buffer, arrow_column, frame_row, reshaped, structured])
def test_a_part_holds_the_whole_object_in_place(tmp_path, part_of):
    async def scenario():
        async with InProcessStore(8 * MIB, str(tmp_path / "spill"), Settings(debug=True, spill_file_bytes=MIB)) as node:
            client = await node.client()
            data = random.Random(1).randbytes(MIB)
            await client.put(KEY, data)
            expected = content(part_of(memoryview(data)))
            part = part_of(await client.get(KEY))
            client.client.free([KEY])
            gc.collect()
            await overwrite(node, client)
            assert client.client.held() == 1
            assert content(part) == expected
            assert node.store.statistics().pinned_bytes == MIB
            del part
            gc.collect()
            await client.settle()
            assert client.client.held() == 0
            assert node.store.statistics().pinned_bytes == 0

    asyncio.run(scenario())


def test_two_reads_share_the_address_and_each_holds_on_its_own(tmp_path):
    async def scenario():
        async with InProcessStore(8 * MIB, str(tmp_path / "spill")) as node:
            client = await node.client()
            await client.put(KEY, bytes(range(256)) * 4096)
            first = np.frombuffer(await client.get(KEY), dtype=np.uint8)
            second = np.frombuffer(await client.get(KEY), dtype=np.uint8)
            assert first.ctypes.data == second.ctypes.data
            assert not first.flags.writeable
            del first
            await client.settle()
            assert node.store.statistics().pinned_bytes == MIB
            assert second[77] == 77
            del second
            await client.settle()
            assert node.store.statistics().pinned_bytes == 0

    asyncio.run(scenario())


def test_a_private_view_can_be_written_and_nobody_sees_it(tmp_path):
    async def scenario():
        async with InProcessStore(8 * MIB, str(tmp_path / "spill"), Settings(debug=True, spill_file_bytes=MIB)) as node:
            client, other = await node.client(), await node.client()
            data = random.Random(1).randbytes(MIB)
            await client.put(KEY, data)
            view, private = await client.open(KEY)
            mine = np.frombuffer(private(), dtype=np.uint8)
            assert mine.flags.writeable
            mine[:] = 0
            assert bytes(view) == data
            assert bytes(private()) == data
            assert await other.get(KEY) == data
            del view, private
            client.client.free([KEY])
            await client.settle()
            assert node.store.statistics().pinned_bytes == MIB
            part = mine[100:200]
            del mine
            await overwrite(node, client)
            assert not part.any()
            del part
            await client.settle()
            assert node.store.statistics().pinned_bytes == 0
            # The range is used again: nothing of the private pages shines through.
            await client.put(KEY, data)
            _view, private = await client.open(KEY)
            assert bytes(private()) == data

    asyncio.run(scenario())


def test_release_is_called_once_when_the_last_view_dies():
    arena = Arena.create(MIB)
    calls = []
    view = arena.view(4096, 100, lambda: calls.append(1))
    parts = [view[10:20], np.frombuffer(view, dtype=np.uint8), pa.py_buffer(view)]
    del view
    while parts:
        assert calls == []
        parts.pop()
    assert calls == [1]
    arena.close()


def test_views_outlive_the_arena_and_the_client():
    async def scenario():
        node = InProcessStore(MIB, "/nonexistent")
        async with node:
            client = await node.client()
            await client.put(KEY, b"stays" * 1000)
            view = await client.get(KEY)
            client.kill()
        return view

    assert asyncio.run(scenario()) == b"stays" * 1000


def test_views_that_die_in_many_threads_are_all_counted(tmp_path):
    async def scenario():
        async with InProcessStore(8 * MIB, str(tmp_path / "spill")) as node:
            client = await node.client()
            keys = [number.to_bytes(28, "big") for number in range(20)]
            for key in keys:
                await client.put(key, b"x" * 10_000)
            places = await client.client.pin(keys)

            def read_and_drop():
                rng = random.Random(threading.get_ident())
                for _ in range(300):
                    number = rng.randrange(len(keys))
                    array = np.frombuffer(client.client.read(keys[number], places[number])[0], dtype=np.uint8)
                    cycle = [array]
                    cycle.append(cycle)  # only the cycle collector finds it

            threads = [threading.Thread(target=read_and_drop) for _ in range(4)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                await asyncio.sleep(0.001)
            gc.collect()
            for key in keys:
                client.client.unpin(key)
            await client.settle()
            assert client.client.held() == 0
            assert node.store.statistics().pinned_bytes == 0

    asyncio.run(scenario())


def test_a_cancelled_pin_holds_nothing(tmp_path):
    async def scenario():
        async with InProcessStore(8 * MIB, str(tmp_path / "spill")) as node:
            client = await node.client()
            await client.put(KEY, b"x" * 10_000)
            pinning = client.client.pin([KEY])
            pinning.cancel()
            await client.settle()
            assert client.client.held() == 0
            assert node.store.statistics().pinned_bytes == 0
            creating = client.client.create(b"c" * 28, MIB, client.address)
            creating.cancel()
            await client.settle()
            assert node.store.statistics().objects == 1
            assert node.store.statistics().used_bytes == 12288

    asyncio.run(scenario())
