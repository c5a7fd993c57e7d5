"""Control stores as processes over a real etcd: the leader is killed, or stands still for longer than its lease; the standby takes over.

Writers, readers and new jobs go on all the while, each turning to whoever serves. What they did and were told is checked after each
takeover: no acknowledged change is lost or undone, nothing stale is read, no job id is handed out twice.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from contextlib import asynccontextmanager

import pytest
from etcd_server import SAFETY_S, Etcd, unique_prefix
from history import History

from shoal._base.settings import Settings
from shoal._base.storage_place import read_storage_place
from shoal._core.process.options import ControlOptions
from shoal._core.process.start import HeadProcess, HeadStartError, restart_control_store, start_control_store
from shoal._core.transport import Connection
from shoal._core.transport.sockets import SocketTransport
from shoal._core.transport.trust import Tokens, Trust
from shoal._core.wire.messages import Address, ControlStores, JobConfigRecord, KvGet, KvPut, NodeRecord, RegisterJob, RegisterNode
from shoal.testing import leak_check

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

#: Seconds. etcd grants no shorter ones.
LEASE_S = 2.0
WRITERS = 4


@pytest.fixture(
    params=[pytest.param(3, id="few"), pytest.param(int(os.environ.get("SHOAL_ROUNDS", "20")), id="rounds", marks=pytest.mark.soak)]
)
def rounds(request):
    return range(request.param)


class Stores:
    """Control stores of one cluster, and the clients that use whichever serves."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd
        self.token = secrets.token_bytes(32)
        self.place = read_storage_place(etcd.url + unique_prefix(), {})
        self.processes: list[HeadProcess] = []
        self.history = History()
        self._transport = SocketTransport(asyncio.get_running_loop(), Trust(Tokens(self.token)))

    @property
    def addresses(self) -> list[str]:
        return [process.ready.control_address for process in self.processes]

    async def start(self, *, standby: bool) -> HeadProcess:
        options = ControlOptions(storage=self.place, standby=standby, settings=Settings(leader_lease_s=LEASE_S))
        process = await asyncio.to_thread(start_control_store, options, self.token)
        self.processes.append(process)
        return process

    async def connect(self) -> tuple[Connection, HeadProcess]:
        """Return a connection to the one that serves: standbys refuse, and who stands still does not shake hands."""
        while True:
            tries = [asyncio.ensure_future(self._transport.connect(address, _ignore, timeout_s=1.0)) for address in self.addresses]
            for process, outcome in zip(list(self.processes), await asyncio.gather(*tries, return_exceptions=True), strict=False):
                if isinstance(outcome, Connection):
                    return outcome, process
                assert isinstance(outcome, (OSError, TimeoutError)), outcome
            await asyncio.sleep(0.02)

    async def leader(self) -> HeadProcess:
        connection, process = await self.connect()
        connection.close()
        return process

    # --- load

    async def write(self, key: bytes) -> None:
        """Write 1, 2, 3, ... and read in between, for ever."""
        register, history = self.history.register(key), self.history
        while True:
            connection, _ = await self.connect()
            try:
                driver = Address(secrets.token_bytes(28), b"n" * 28, "tcp:nowhere:1")
                job = await _answer(connection.request(RegisterJob(0, driver, 1, "ns", "load", JobConfigRecord({}, "/", []))))
                history.job(job.job_id)
                while True:
                    value = register.begin()
                    await _answer(connection.request(KvPut(0, "ns", key, b"%d" % value)))
                    register.acknowledge(value)
                    floor = history.floor(key)
                    found = await _answer(connection.request(KvGet(0, "ns", key)))
                    history.read(key, floor, found.value)
            except (OSError, TimeoutError):
                register.unknown += 1
            finally:
                connection.abort()

    async def progress(self) -> None:
        """Return when each writer has been answered something it asks from now on."""
        before = {key: register.begun for key, register in self.history.registers.items()}
        while not all(self.history.floor(key) > begun for key, begun in before.items()):
            await asyncio.sleep(0.005)

    async def check(self) -> None:
        """Everything that was acknowledged is there, read over connections of our own."""
        unread = dict.fromkeys(self.history.registers)
        while unread:
            connection, _ = await self.connect()
            try:
                for key in list(unread):
                    floor = self.history.floor(key)
                    found = await _answer(connection.request(KvGet(0, "ns", key)))
                    self.history.read(key, floor, found.value)
                    del unread[key]
            except (OSError, TimeoutError):
                continue  # it leads no more
            finally:
                connection.abort()
        self.history.check()


async def _answer(request):
    async with asyncio.timeout(LEASE_S):
        return await request


def _ignore(connection, message):
    pass


@asynccontextmanager
async def loaded_stores(etcd, count=2):
    """One leader, standbys, and writers at work."""
    stores = Stores(etcd)
    try:
        for index in range(count):
            await stores.start(standby=index > 0)
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(stores.write(b"key%d" % n)) for n in range(WRITERS)]
            await stores.progress()
            yield stores
            await stores.check()
            for writer in writers:
                writer.cancel()
        print(stores.history)
    finally:
        for process in stores.processes:
            process.stop()


def run(scenario, *arguments):
    async def main():
        async with asyncio.timeout(220):
            await scenario(*arguments)

    with leak_check():
        asyncio.run(main())


def test_a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost(etcd, rounds):
    async def scenario():
        took = []
        async with loaded_stores(etcd) as stores:
            for _ in rounds:
                leader = await stores.leader()
                began = time.monotonic()
                os.kill(leader.pid, signal.SIGKILL)
                stores.processes.remove(leader)
                await stores.leader()
                took.append(time.monotonic() - began)
                await stores.progress()
                await stores.check()
                await asyncio.to_thread(leader.stop)
                await stores.start(standby=True)
        print(f"from the kill to serving: {', '.join(f'{one:.2f}' for one in took)} s, with a lease of {LEASE_S:g} s")

    run(scenario)


def test_a_leader_that_stood_still_beyond_its_lease_undoes_and_tells_nothing(etcd, rounds):
    async def scenario():
        async with loaded_stores(etcd) as stores:
            for _ in rounds:
                old_connection, leader = await stores.connect()
                os.kill(leader.pid, signal.SIGSTOP)
                try:
                    while (await stores.leader()) is leader:
                        pass
                    await stores.progress()
                    # Asked of the old one after the new one has acknowledged more: no answer may come, and no write may be done.
                    keys = list(stores.history.registers)
                    floors = {key: stores.history.floor(key) for key in keys}
                    stale = {key: old_connection.request(KvGet(0, "ns", key)) for key in keys}
                    undoing = [old_connection.request(KvPut(0, "ns", key, b"0")) for key in keys]
                finally:
                    os.kill(leader.pid, signal.SIGCONT)
                for key, request in stale.items():
                    try:
                        found = await _answer(request)
                    except (OSError, TimeoutError):
                        continue
                    stores.history.read(key, floors[key], found.value)
                for request in undoing:
                    with pytest.raises((OSError, TimeoutError)):
                        await _answer(request)
                old_connection.abort()
                await stores.progress()
                await stores.check()
                assert leader.is_alive(), "it stands by again, in the same process"

    run(scenario)


def test_an_etcd_that_is_killed_and_started_again_is_waited_for(own_etcd, rounds):
    async def scenario():
        async with loaded_stores(own_etcd) as stores:
            for _ in rounds:
                own_etcd.kill()
                acknowledged = sum(register.acknowledged for register in stores.history.registers.values())
                await asyncio.to_thread(own_etcd.start)
                await stores.progress()
                await stores.check()
                assert sum(register.acknowledged for register in stores.history.registers.values()) > acknowledged

    run(scenario)


def test_two_that_start_at_once_have_one_leader(etcd):
    async def scenario():
        stores = Stores(etcd)
        try:
            await asyncio.gather(*(stores.start(standby=True) for _ in range(3)))
            await stores.leader()
            tries = [stores._transport.connect(address, _ignore, timeout_s=1.0) for address in stores.addresses]
            served = [one for one in await asyncio.gather(*tries, return_exceptions=True) if isinstance(one, Connection)]
            assert len(served) == 1
            served[0].close()
        finally:
            for process in stores.processes:
                process.stop()

    run(scenario)


def test_a_leader_that_ends_in_good_order_keeps_nobody_waiting(etcd):
    """Its lease is given back: the standby need not wait for the lease to end, which is made long here."""

    async def scenario():
        stores = Stores(etcd)
        try:
            for standby in (False, True):
                options = ControlOptions(storage=stores.place, standby=standby, settings=Settings(leader_lease_s=600.0))
                stores.processes.append(await asyncio.to_thread(start_control_store, options, stores.token))
            leader, other = stores.processes
            assert await stores.leader() is leader
            await asyncio.to_thread(leader.stop)
            assert await asyncio.wait_for(stores.leader(), SAFETY_S) is other
        finally:
            for process in stores.processes:
                process.stop()

    run(scenario)


def test_a_leader_that_is_started_again_keeps_nobody_waiting(etcd):
    """As its node does it: the lease of the dead one is given back by the one that takes its place. The lease is long here, too."""

    async def scenario():
        stores = Stores(etcd)
        try:
            options = ControlOptions(storage=stores.place, settings=Settings(leader_lease_s=600.0))
            process = await asyncio.to_thread(start_control_store, options, stores.token)
            stores.processes.append(process)
            connection, _ = await stores.connect()
            await connection.request(KvPut(0, "ns", b"k", b"v"))
            os.kill(process.pid, signal.SIGKILL)
            await asyncio.to_thread(restart_control_store, process.ready.session_dir)
            connection, _ = await asyncio.wait_for(stores.connect(), SAFETY_S)
            assert (await connection.request(KvGet(0, "ns", b"k"))).value == b"v"
            connection.close()
        finally:
            for process in stores.processes:
                process.stop()

    run(scenario)


def test_nodes_are_told_where_else_they_can_turn_to(etcd):
    async def scenario():
        stores = Stores(etcd)
        news: asyncio.Queue[list[str]] = asyncio.Queue()

        def heard(connection, message):
            if isinstance(message, ControlStores):
                news.put_nowait(sorted(message.addresses))

        async def register(name):
            connection = await stores._transport.connect(stores.addresses[0], heard)
            record = NodeRecord(name.ljust(28, b"\0"), f"unix:/{name}", "host", "127.0.0.1", {}, {}, {})
            await connection.request(RegisterNode(0, record))
            return connection

        try:
            await stores.start(standby=False)
            first = await register(b"first")
            standby = await stores.start(standby=True)
            while sorted(stores.addresses) != await asyncio.wait_for(news.get(), SAFETY_S):
                pass
            second = await register(b"second")
            assert await asyncio.wait_for(news.get(), SAFETY_S) == sorted(stores.addresses), "who joins is told at once"
            await asyncio.to_thread(standby.stop)
            while stores.addresses[:1] != await asyncio.wait_for(news.get(), SAFETY_S):
                pass
            first.close()
            second.close()
        finally:
            for process in stores.processes:
                process.stop()

    run(scenario)


def test_a_second_head_is_told_that_it_is_one(etcd):
    async def scenario():
        stores = Stores(etcd)
        try:
            await stores.start(standby=False)
            with pytest.raises(HeadStartError, match=r"Another control store leads the cluster with the tables in etcd://.*--standby"):
                await stores.start(standby=False)
        finally:
            for process in stores.processes:
                process.stop()

    run(scenario)


def test_an_etcd_that_is_not_there_is_named():
    place = read_storage_place("etcd://127.0.0.1:1/x", {})
    with pytest.raises(HeadStartError, match=r"etcd could not be used within 10 s at 127\.0\.0\.1:1"):
        start_control_store(ControlOptions(storage=place), secrets.token_bytes(32))


def test_the_history_catches_what_it_is_for():
    history = History()
    register = history.register(b"k")
    register.acknowledge(register.begin())
    register.begin()
    history.read(b"k", 1, b"2")  # begun, and done
    history.read(b"k", 0, None)  # the read began before the write was acknowledged
    history.check()
    history.read(b"k", 1, None)  # lost
    history.read(b"k", 1, b"3")  # nobody wrote it
    history.job(b"j")
    history.job(b"j")
    assert len(history.violations) == 3
    with pytest.raises(AssertionError, match="handed out twice"):
        history.check()
