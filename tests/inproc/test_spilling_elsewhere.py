"""A store that spills behind a URL: to a file system that fsspec reaches, and that fails when it is told to."""

from __future__ import annotations

import asyncio
import logging
import os
import random

import pytest

from shoal._base.settings import Settings
from shoal._core.object_store import remote as remote_module
from shoal._core.object_store.disk import DiskUsage
from shoal._core.object_store.remote import RemoteFiles
from shoal._core.transport.errors import RequestFailed
from shoal.testing.in_process_store import InProcessStore

fsspec = pytest.importorskip("fsspec", reason="spilling elsewhere needs fsspec")
from fsspec.implementations.local import LocalFileSystem  # noqa: E402

MIB = 1 << 20
SETTINGS = Settings(debug=True, spill_file_bytes=2 * MIB, store_full_timeout_s=0.05)


class Lake(LocalFileSystem):
    """Files of this machine, out of reach while ``down``."""

    protocol = "lake"
    cachable = False
    down = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("lake://"))

    def _check(self):
        if type(self).down:
            raise TimeoutError("the lake is out of reach")

    def open(self, path, mode="rb", **options):
        self._check()
        return super().open(path, mode, **options)

    def cat_file(self, path, start=None, end=None, **options):
        self._check()
        return super().cat_file(path, start, end, **options)


@pytest.fixture(params=["file", "memory", "lake"])
def url(request, tmp_path, monkeypatch):
    fsspec.register_implementation("lake", Lake, clobber=True)
    monkeypatch.setattr(Lake, "down", False)
    place = "memory://pool" if request.param == "memory" else f"{request.param}://{tmp_path}/lake"
    yield f"{place}"
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs.clear()
        fsspec.filesystem("memory").pseudo_dirs.append("")


@pytest.fixture
def lake(tmp_path, monkeypatch):
    fsspec.register_implementation("lake", Lake, clobber=True)
    monkeypatch.setattr(Lake, "down", False)
    return f"lake://{tmp_path}/lake"


def object_id(number: int) -> bytes:
    return number.to_bytes(28, "big")


def pattern(number: int, nbytes: int) -> bytes:
    return random.Random(number).randbytes(nbytes)


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def files_of(remote):
    return list(remote._files.find(remote._path(remote.directory)))


async def checked(url, directory="node-1"):
    remote = RemoteFiles(url, directory)
    await remote.check(asyncio.get_running_loop())
    return remote


def test_what_finds_no_memory_goes_there_and_comes_back(url, tmp_path):
    async def scenario():
        remote = await checked(url)
        assert files_of(remote) == []
        async with InProcessStore(8 * MIB, str(tmp_path / "disk"), SETTINGS, remote=remote) as node:
            client = await node.client()
            told = []
            node.store.on_spilled = told.extend
            # Small ones share files; odd sizes, so that slots have gaps.
            for number in range(200):
                await client.put(object_id(number), pattern(number, 150_001))
            statistics = node.store.statistics()
            assert statistics.spilled_objects_total > 100
            assert statistics.spill_files < statistics.spilled_objects_total
            await until(lambda: len(files_of(remote)) == node.store.statistics().spill_files)
            assert {owner for owner, _, _ in told} == {client.address}
            assert len(told) == node.store.statistics().spilled_objects_total
            for number in range(200):
                assert await client.get(object_id(number)) == pattern(number, 150_001)
                assert await node.store.read_bytes(object_id(number)) == pattern(number, 150_001)
            client.client.free([object_id(number) for number in range(200)])
            await until(lambda: files_of(remote) == [])
            assert not (tmp_path / "disk").exists()

    asyncio.run(scenario())


def test_when_readers_hold_all_memory_it_is_read_from_a_copy_on_the_disk(url, tmp_path):
    async def scenario():
        async with InProcessStore(8 * MIB, str(tmp_path / "disk"), SETTINGS, remote=await checked(url)) as node:
            client = await node.client()
            for number in range(12):
                await client.put(object_id(number), pattern(number, MIB))
            views = {number: await client.get(object_id(number)) for number in range(12)}
            assert views == {number: pattern(number, MIB) for number in range(12)}
            assert node.store.statistics().own_files >= 4
            again = await asyncio.gather(*(client.get(object_id(number)) for number in range(12)))
            assert again == [pattern(number, MIB) for number in range(12)]
            views.clear()
            del again
            client.client.flush_releases()
            await until(lambda: node.store.statistics().own_files == 0)
            assert await client.get(object_id(0)) == pattern(0, MIB)

    asyncio.run(scenario())


def test_another_store_goes_on_with_what_a_dead_one_has_spilled(url, tmp_path):
    async def scenario():
        told = []
        async with InProcessStore(8 * MIB, str(tmp_path / "a"), SETTINGS, remote=await checked(url, "node-1")) as dead:
            client = await dead.client()
            dead.store.on_spilled = told.extend
            for number in range(16):
                await client.put(object_id(number), pattern(number, MIB - 5))
            await until(lambda: len(told) >= 8)
            owner = client.address
        remote = await checked(url, "node-2")
        async with InProcessStore(8 * MIB, str(tmp_path / "b"), SETTINGS, remote=remote) as node:
            places = {found: place for _, found, place in told}
            assert not node.store.adopt_spilled(object_id(0), 5, owner, [], "elsewhere://x/1.spill")
            for found, place in places.items():
                assert node.store.adopt_spilled(found, MIB - 5, owner, [], place)
                assert not node.store.adopt_spilled(found, MIB - 5, owner, [], place)
            client = await node.client()
            for found in places:
                assert await client.get(found) == pattern(int.from_bytes(found, "big"), MIB - 5)
            held = set(node.store.held_files("node-1"))
            assert held == set(remote.sweep("node-1", held))
            [kept, *freed] = places
            client.client.free(freed)
            await client.settle()
            [file] = node.store.held_files("node-1")
            assert remote.sweep("node-1", {file}) == [file]
            assert await client.get(kept) == pattern(int.from_bytes(kept, "big"), MIB - 5)
            client.client.free([kept])
            await client.settle()
            assert node.store.held_files("node-1") == []
            assert remote.sweep("node-1", set()) == []
            assert not remote._files.exists(remote._path("node-1"))

    asyncio.run(scenario())


def test_while_it_cannot_be_written_creations_wait_and_then_go_to_the_disk(lake, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, "shoal.object_store")

    async def scenario():
        settings = Settings(debug=True, spill_file_bytes=2 * MIB, store_full_timeout_s=60)
        async with InProcessStore(8 * MIB, str(tmp_path / "disk"), settings, remote=await checked(lake)) as node:
            client = await node.client()
            for number in range(8):
                await client.put(object_id(number), pattern(number, MIB))
            Lake.down = True
            waiting = asyncio.ensure_future(client.put(object_id(8), pattern(8, MIB)))
            await until(lambda: node.store._residence.spilled.refusal(0, node.loop.time()))
            assert not waiting.done()
            Lake.down = False
            await asyncio.wait_for(waiting, 10)
            for number in range(9):
                assert await client.get(object_id(number)) == pattern(number, MIB)

        async with InProcessStore(8 * MIB, str(tmp_path / "disk"), SETTINGS, remote=await checked(lake, "node-2")) as node:
            client = await node.client()
            for number in range(8):
                await client.put(object_id(number), pattern(number, MIB))
            Lake.down = True
            await client.put(object_id(8), pattern(8, MIB))
            assert node.store.statistics().own_files == 1
            assert await client.get(object_id(8)) == pattern(8, MIB)
            Lake.down = False

    asyncio.run(scenario())


def test_when_the_disk_is_full_too_the_error_names_the_url_and_the_cause(lake, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, "shoal.object_store")

    async def scenario():
        def full(_path):
            return DiskUsage(100, 99, 1)

        async with InProcessStore(8 * MIB, str(tmp_path / "disk"), SETTINGS, remote=await checked(lake), usage=full) as node:
            client = await node.client()
            for number in range(8):
                await client.put(object_id(number), pattern(number, MIB))
            Lake.down = True
            with pytest.raises(
                RequestFailed, match=r"lake://.* cannot be written .*TimeoutError: the lake is out of reach.*Check"
            ) as error:
                await client.put(object_id(8), pattern(8, MIB))
            assert error.value.kind == "ObjectStoreFullError"
            for number in range(8):
                assert await client.get(object_id(number)) == pattern(number, MIB)
            Lake.down = False

    asyncio.run(scenario())


def test_what_cannot_be_read_for_a_while_is_not_lost(lake, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.CRITICAL, "shoal.object_store")
    monkeypatch.setattr(remote_module, "_RETRY_S", 0.01)

    async def scenario():
        async with InProcessStore(8 * MIB, str(tmp_path / "disk"), SETTINGS, remote=await checked(lake)) as node:
            client = await node.client()
            for number in range(16):
                await client.put(object_id(number), pattern(number, MIB))
            Lake.down = True
            waiting = asyncio.ensure_future(client.get(object_id(0)))
            asyncio.get_running_loop().call_later(0.05, setattr, Lake, "down", False)
            assert await waiting == pattern(0, MIB)
            monkeypatch.setattr(remote_module, "READ_PATIENCE_S", 0.02)
            Lake.down = True
            with pytest.raises(RequestFailed, match=r"lake://.*not lost") as error:
                await client.get(object_id(1))
            assert error.value.kind == "ObjectFetchTimedOutError"
            Lake.down = False
            assert await client.get(object_id(1)) == pattern(1, MIB)

    asyncio.run(scenario())


def test_what_is_gone_there_is_lost(lake, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, "shoal.object_store")

    async def scenario():
        remote = await checked(lake)
        async with InProcessStore(8 * MIB, str(tmp_path / "disk"), SETTINGS, remote=remote) as node:
            client = await node.client()
            for number in range(16):
                await client.put(object_id(number), pattern(number, MIB))
            for path in files_of(remote):
                os.unlink(path)
            assert await client.get(object_id(0)) is None

    asyncio.run(scenario())


def test_a_place_that_cannot_be_used_says_so(tmp_path, lake):
    async def scenario():
        with pytest.raises(ConnectionError, match=r"file://.*no/such.*FileNotFoundError.*Check the address"):
            await checked(f"file://{tmp_path}/no/such/directory")
        Lake.down = True
        with pytest.raises(ConnectionError, match=r"lake://.*writing a file there failed: TimeoutError: the lake is out of reach"):
            await checked(lake)

    asyncio.run(scenario())
