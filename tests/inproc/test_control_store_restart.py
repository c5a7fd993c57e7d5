"""What is on disk: a killed control store is read back, and tables stay small however much passes through them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal._base.settings import Settings
from shoal._core.control_store import rows
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import Change, MemoryStorage, SqliteStorage, Storage, TablesDamaged
from shoal._core.transport import RequestFailed
from shoal._core.transport.connection import Connection
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.wire.messages import (
    ActorSpec,
    ActorUpdate,
    Address,
    CreateActor,
    GetJob,
    GetNamedActor,
    JobConfigRecord,
    JobFinished,
    KillActor,
    KvGet,
    KvPut,
    PutFunction,
    RegisterJob,
    Shape,
    StartActor,
    SubscribeActor,
)
from shoal.testing.scripted_agent import ScriptedAgent

DRIVER = Address(b"driver".ljust(28, b"\0"), b"n" * 28, "memory:driver")
CONFIG = JobConfigRecord({"PATH": "/bin"}, "/", [])
TABLES = (rows.JOBS, rows.ACTORS, rows.ACTOR_SPECS, rows.FUNCTIONS, rows.FUNCTION_JOBS, rows.GROUPS, rows.NODES)

#: Writes through a whole control store and prints what was acknowledged.
WRITER = """
import asyncio, itertools, sys
from shoal._base.settings import Settings
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import SqliteStorage
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.wire import messages as m
from shoal.testing.scripted_agent import ScriptedAgent

async def main():
    loop = asyncio.get_running_loop()
    network = MemoryNetwork(loop)
    store = ControlStore(loop, SqliteStorage(sys.argv[1]), Settings())
    await MemoryTransport(network, "head").listen("control", store.accept)
    await ScriptedAgent("n1", {"CPU": 10000}).join(MemoryTransport(network, "n1"), "control")
    driver = await MemoryTransport(network, "driver").connect("control", lambda connection, message: None)
    address = m.Address(b"driver".ljust(28, b"\\0"), b"n" * 28, "memory:driver")
    job = (await driver.request(m.RegisterJob(0, address, 1, "ns", "x", m.JobConfigRecord({}, "/", [])))).job_id
    driver.send(m.PutFunction(b"f" * 28, job, b"code"))
    print("job", job.hex(), flush=True)
    for n in itertools.count():
        actor_id = n.to_bytes(12, "big") + job
        spec = m.ActorSpec(actor_id, job, address, b"f" * 28, "C", b"args", [], m.Shape(job), f"a{n}", "ns", detached=n % 2 == 0)
        await driver.request(m.CreateActor(0, spec))
        await driver.request(m.KvPut(0, "ns", b"last", b"%d" % n))
        print(n, flush=True)

asyncio.run(main())
"""


def replace_worker(name: bytes) -> Address:
    """Return the address of another driver."""
    return Address(name.ljust(28, b"\0"), DRIVER.node_id, DRIVER.address)


async def serve(storage: Storage, settings: Settings, *agents: ScriptedAgent) -> tuple[ControlStore, Connection, list[Any]]:
    """Start a control store that has read its tables back; return it with a client and what the client is told."""
    loop = asyncio.get_running_loop()
    network = MemoryNetwork(loop)
    store = ControlStore(loop, storage, settings)
    store.load()
    await MemoryTransport(network, "head").listen("control", store.accept)
    for agent in agents:
        await agent.join(MemoryTransport(network, agent.record.name), "control")
    told: list[Any] = []
    client = await MemoryTransport(network, "client").connect("control", lambda connection, message: told.append(message))
    return store, client, told


async def until(condition: Any) -> None:
    """Let the loop run until the condition holds; the test's time limit bounds it."""
    while not condition():
        await asyncio.sleep(0)


def test_a_killed_control_store_loses_nothing_that_it_acknowledged(tmp_path: Path):
    path = tmp_path / "control.sqlite"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    job_id = bytes.fromhex(process.stdout.readline().split()[1])
    lines = [process.stdout.readline() for _ in range(150)]
    process.kill()
    rest, _ = process.communicate()
    acknowledged = int((lines + rest.split())[-1])

    async def main() -> None:
        storage = SqliteStorage(path)
        agent = ScriptedAgent("n1", {"CPU": 10_000})
        store, client, _ = await serve(storage, replace(Settings(), debug=True), agent)
        await until(lambda: store.statistics().nodes.connected)
        assert int((await client.request(KvGet(0, "ns", b"last"))).value) >= acknowledged
        for n in range(0, acknowledged + 1, 7):
            found = (await client.request(GetNamedActor(0, f"a{n}", "ns"))).spec
            assert found.actor_id == n.to_bytes(12, "big") + job_id
        assert (await client.request(GetJob(0, job_id))).config.cwd == "/"
        assert (await client.request(RegisterJob(0, DRIVER, 1, "ns", "x", CONFIG))).job_id == job_id, "the same driver"
        other = replace_worker(b"another")
        again = (await client.request(RegisterJob(0, other, 1, "ns", "x", CONFIG))).job_id
        assert int.from_bytes(again, "big") == int.from_bytes(job_id, "big") + 1
        assert store.statistics().functions.functions == 1
        await until(lambda: store.statistics().actors.pending == 0)
        assert store.statistics().actors.alive >= acknowledged + 1
        store.check()
        store.close()
        storage.close()

    asyncio.run(main())


def test_a_start_in_flight_is_asked_for_again_when_its_node_is_back():
    storage = MemoryStorage()

    async def before() -> bytes:
        agent = ScriptedAgent("n1", {"CPU": 10_000})
        agent.hold = True
        _, client, _ = await serve(storage, Settings(), agent)
        job_id = (await client.request(RegisterJob(0, DRIVER, 1, "ns", "x", CONFIG))).job_id
        spec = ActorSpec(b"a" * 12 + job_id, job_id, DRIVER, b"f", "C", b"args", [], Shape(job_id), detached=True)
        await client.request(CreateActor(0, spec))
        await until(lambda: agent.pending)
        return spec.actor_id

    async def after(actor_id: bytes) -> None:
        agent = ScriptedAgent("n1", {"CPU": 10_000})
        _, client, told = await serve(storage, replace(Settings(), debug=True), agent)
        client.send(SubscribeActor(actor_id))
        await until(lambda: told and told[-1].state == "ALIVE")
        assert [(start.incarnation, start.spec.args) for start in agent.requests(StartActor)] == [(0, b"args")]
        assert all(isinstance(update, ActorUpdate) for update in told)

    after_id = asyncio.run(before())
    asyncio.run(after(after_id))


def test_tables_that_do_not_fit_together_are_refused():
    async def main() -> None:
        for table, key, value in ((rows.JOBS, b"\0\0\0\1", b"torn"), (rows.ACTOR_SPECS, b"a", b"")):
            storage = MemoryStorage()
            storage.put(table, key, value)
            store = ControlStore(asyncio.get_running_loop(), storage, Settings())
            with pytest.raises(TablesDamaged):
                store.load()

    asyncio.run(main())


def test_a_torn_file_is_refused(tmp_path: Path):
    path = tmp_path / "control.sqlite"
    storage = SqliteStorage(path)
    storage.apply([Change("t", b"%d" % n, b"x" * 1000) for n in range(300)])
    storage.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000] + b"\xff" * 40_000 + whole[60_000:])
    with pytest.raises(TablesDamaged):
        SqliteStorage(path)
    path.write_bytes(b"something else entirely, and long enough to be read as a header of a file" * 100)
    with pytest.raises(TablesDamaged):
        SqliteStorage(path)


def test_a_log_that_ends_anywhere_gives_what_was_committed_before(tmp_path: Path):
    """As a power cut leaves it: each batch is there as a whole or not at all, and so are those before it."""
    path = tmp_path / "control.sqlite"
    log = tmp_path / "control.sqlite-wal"
    storage = SqliteStorage(path)
    storage.apply([Change("t", b"total", b"0")])
    for batch in range(1, 8):
        storage.apply(
            [Change("t", b"total", b"%d" % batch), Change("t", b"%d" % batch, b"x" * 2000), Change("t", b"%d" % (batch - 3), None)]
        )
    tables, whole = path.read_bytes(), log.read_bytes()
    storage.close()
    frame = 4096 + 24
    ends = sorted({*range(0, len(whole), 97), *(at + off for at in range(32, len(whole), frame) for off in range(-3, 4)), len(whole)})
    seen = []
    for end in (one for one in ends if 0 <= one <= len(whole)):
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        path.write_bytes(tables)
        log.write_bytes(whole[:end])
        opened = SqliteStorage(path)
        found = dict(opened.scan("t"))
        opened.close()
        total = int(found.get(b"total", b"-1"))
        kept = {b"%d" % batch: b"x" * 2000 for batch in range(max(1, total - 2), total + 1)}
        assert found == ({b"total": b"%d" % total, **kept} if total >= 0 else {})
        seen.append(total)
    assert seen == sorted(seen)
    assert set(seen) == set(range(-1, 8))


def test_a_failing_disk_delays_answers_and_loses_nothing():
    class FullDisk(MemoryStorage):
        full = False

        def apply(self, changes: Any) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().apply(changes)

    async def main() -> None:
        storage = FullDisk()
        store, client, _ = await serve(storage, Settings())
        storage.full = True
        asked = client.request(RegisterJob(0, DRIVER, 1, "ns", "x", CONFIG))
        await until(lambda: store.statistics().jobs.running)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not asked.done()
        for refused in (KvPut(0, "ns", b"k", b"v"), RegisterJob(0, replace_worker(b"late"), 1, "ns", "x", CONFIG)):
            with pytest.raises(RequestFailed, match="Nothing of this request was done") as caught:
                await client.request(refused)
            assert caught.value.kind == "OutOfDiskError"
        storage.full = False
        assert (await asked).job_id == b"\0\0\0\1"
        assert len(storage.tables[rows.JOBS]) == 1
        assert (await client.request(KvGet(0, "ns", b"k"))).value is None, "nothing is half done"
        assert (await client.request(KvPut(0, "ns", b"k", b"v"))).value == b"1"
        assert (await client.request(KvGet(0, "ns", b"k"))).value == b"v"

    asyncio.run(main())


def test_twenty_thousand_of_everything_leave_small_tables(tmp_path: Path):
    """One connection passes jobs, each with a function and an actor that is created, started, killed, forgotten."""
    path, total, batch, limit = tmp_path / "control.sqlite", 20_000, 500, 100

    async def main() -> None:
        storage = SqliteStorage(path)
        agent = ScriptedAgent("n1", {"CPU": 10_000})
        store, client, told = await serve(storage, replace(Settings(), history_limit=limit), agent)

        async def one(number: int) -> None:
            driver = replace_worker(b"%d" % number)
            job_id = (await client.request(RegisterJob(0, driver, 1, "ns", "x", CONFIG))).job_id
            client.send(PutFunction(number.to_bytes(28, "big"), job_id, b"x" * 200))
            actor_id = number.to_bytes(12, "big") + job_id
            detached = number % 3 == 0
            spec = ActorSpec(actor_id, job_id, driver, b"f", "C", b"x" * 200, [], Shape(job_id), f"a{number}", "ns", detached)
            await client.request(CreateActor(0, spec))
            client.send(SubscribeActor(actor_id))
            if number % 2:
                await client.request(KillActor(0, actor_id, no_restart=True))
            client.send(JobFinished(job_id))
            if detached:
                await client.request(KillActor(0, actor_id, no_restart=True))

        begun = time.perf_counter()
        for first in range(0, total, batch):
            await asyncio.gather(*[one(number) for number in range(first, first + batch)])
            agent.seen.clear()
            told.clear()
        await until(lambda: not agent.living and not agent.pending)
        seconds = time.perf_counter() - begun
        statistics = store.statistics()
        assert (statistics.jobs.running, statistics.jobs.kept_for_actors, statistics.jobs.history) == (0, 0, limit)
        assert (statistics.actors.alive, statistics.actors.dead) == (0, limit)
        assert (statistics.functions.functions, statistics.publication.kept) == (0, 2001)
        assert (statistics.placement.waiting, statistics.placement.starting) == (0, 0)
        store.check()
        store.close()
        for table in TABLES:
            assert sum(1 for _ in storage.scan(table)) <= limit, table
        storage.close()
        assert path.stat().st_size < 8 << 20
        assert seconds < 60

    asyncio.run(main())
