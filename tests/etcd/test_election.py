"""Elections in a real etcd, among candidates of one process."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from etcd_server import SAFETY_S, unique_prefix

from shoal._core.control_store.election import Election
from shoal._core.control_store.storage import Deposed
from shoal._core.control_store.storage.etcd import EtcdStorage
from shoal._core.control_store.storage.etcd_client import delete
from shoal._core.control_store.storage.etcd_rows import Keys

pytestmark = pytest.mark.cluster


@asynccontextmanager
async def candidates(etcd, prefix, names):
    """Elections that have entered, and for each the reasons why it was lost, and the candidates it has heard of."""
    loop = asyncio.get_running_loop()
    made = []
    try:
        for name in names:
            lost, heard = [], []
            election = Election(
                loop, etcd.client(timeout_s=1.0), prefix, name, 3.0, on_lost=lost.append, on_candidates=heard.append
            )  # fmt: skip
            made.append((election, lost, heard))
        await asyncio.gather(*(election.enter() for election, _, _ in made))
        yield made
    finally:
        for election, _, _ in made:
            election.close()


def run(scenario):
    async def main():
        async with asyncio.timeout(SAFETY_S):
            await scenario()

    asyncio.run(main())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_of_five_candidates_one_leads_and_the_others_follow_in_turn(etcd):
    async def scenario():
        prefix = unique_prefix()
        async with candidates(etcd, prefix, [f"tcp:h{n}:1" for n in range(5)]) as made:
            waiting = {asyncio.ensure_future(election.win()): election for election, _, _ in made}
            revisions = []
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                (winner,) = done
                fence, election = winner.result(), waiting.pop(winner)
                assert fence.holds()
                assert len(done) == 1
                revisions.append(fence.revision)
                election.close()
            assert revisions == sorted(set(revisions))

    run(scenario)


def test_the_leader_knows_all_candidates_and_a_standby_knows_the_leader(etcd):
    async def scenario():
        async with candidates(etcd, unique_prefix(), ["tcp:a:1", "tcp:b:1"]) as made:
            wins = [asyncio.ensure_future(election.win()) for election, _, _ in made]
            await asyncio.wait(wins, return_when=asyncio.FIRST_COMPLETED)
            leader = next(index for index, win in enumerate(wins) if win.done())
            await until(lambda: ["tcp:a:1", "tcp:b:1"] in made[leader][2])
            await until(lambda: made[1 - leader][0].leader == f"tcp:{'ab'[leader]}:1")
            made[1 - leader][0].close()
            await until(lambda: made[leader][2][-1] == [f"tcp:{'ab'[leader]}:1"])

    run(scenario)


def test_a_leader_whose_lease_ends_is_told_and_writes_nothing_more(etcd):
    async def scenario():
        prefix = unique_prefix()
        async with candidates(etcd, prefix, ["tcp:a:1"]) as ((election, lost, _),):
            fence = await election.win()
            loop = asyncio.get_running_loop()
            storage = await loop.run_in_executor(None, EtcdStorage, etcd.client(), prefix, fence)
            storage.put("t", b"k", b"v")
            client = etcd.client()
            client.revoke(election.lease)
            client.close()
            with pytest.raises(Deposed):
                storage.put("t", b"k", b"late")
            await until(lambda: lost)
            assert lost == ["its lease has ended"]
            assert not fence.holds()
            storage.close()

    run(scenario)


def test_a_leader_whose_writes_are_refused_steps_down_at_once(etcd):
    async def scenario():
        async with candidates(etcd, unique_prefix(), ["tcp:a:1"]) as ((election, lost, _),):
            fence = await election.win()
            election.depose("a write was refused")
            assert lost == ["a write was refused"]
            assert not fence.holds()

    run(scenario)


def test_a_campaign_whose_answer_is_lost_is_won(etcd):
    async def scenario():
        prefix = unique_prefix()
        client = etcd.client()
        client.txn([], [delete(Keys(prefix).leader)])
        async with candidates(etcd, prefix, ["tcp:a:1"]) as ((election, _, _),):
            real, lost = election._campaign, []

            def campaign(lease):
                revision = real(lease)
                if not lost:
                    lost.append(revision)
                    raise OSError("the answer is lost")
                return revision

            election._campaign = campaign
            fence = await election.win()
            assert lost == [fence.revision]
        client.close()

    run(scenario)
