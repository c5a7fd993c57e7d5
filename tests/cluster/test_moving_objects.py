"""Objects between real nodes: broadcasts, sources that die, copies that become the only ones, and what is left behind."""

from __future__ import annotations

import asyncio
import hashlib
import threading

import numpy as np
import pytest

import shoal
from shoal._base import runtime as holder
from shoal._core.object_store.pulls import CHUNK_BYTES
from shoal._core.transport.addresses import parse_address
from shoal._core.transport.port import dial
from shoal._core.transport.preamble import data_of
from shoal.testing import wait_for
from tests.cluster.nodes import STORE_BYTES, many_nodes
from tests.inproc.moving import Cluster, Wire

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

MIB = 1 << 20


@shoal.remote
def make(nbytes, seed):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


@shoal.remote
def digest(array):
    return hashlib.blake2b(array).hexdigest()


@shoal.remote
def has(object_ids):
    """Which of these are in the store of this node."""
    runtime = holder.current()
    places = runtime.bridge.call(lambda: runtime.core.store.pin(object_ids))
    for object_id, place in zip(object_ids, places, strict=True):
        if place is not None:
            runtime._post(runtime.core.store.unpin, object_id)
    return [place is not None for place in places]


def expected(nbytes, seed):
    return hashlib.blake2b(np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)).hexdigest()


def test_a_broadcast_reaches_every_node_whole_and_leaves_no_copies():
    with many_nodes(5) as nodes:
        for seed in range(3):
            ref = make.options(**nodes.on(0)).remote(30 * MIB, seed)
            digests = shoal.get([digest.options(**nodes.on(index)).remote(ref) for index in range(1, 5)], timeout=60)
            assert digests == [expected(30 * MIB, seed)] * 4
            object_id = ref.binary()
            assert all(shoal.get([has.options(**nodes.on(index)).remote([object_id]) for index in range(5)], timeout=30))
            del ref
            wait_for(
                lambda gone=object_id: (
                    not any(
                        found for [found] in shoal.get([has.options(**nodes.on(index)).remote([gone]) for index in range(5)], timeout=30)
                    )
                ),
                30,
                "the end of all copies",
            )


def test_a_copy_of_another_node_is_used_when_the_primary_is_gone():
    with many_nodes(3) as nodes:
        # Cannot be computed again.
        make_once = make.options(**nodes.on(1), max_retries=0)
        refs = [make_once.remote(size, seed) for seed, size in enumerate([200_000, 10 * MIB])]
        for ref in refs:
            assert shoal.get(digest.options(**nodes.on(2)).remote(ref), timeout=30)
        never_read = make_once.remote(200_000, 9)
        shoal.wait([never_read], fetch_local=False)
        nodes.kill(1)
        for seed, (ref, size) in enumerate(zip(refs, [200_000, 10 * MIB], strict=True)):
            assert hashlib.blake2b(shoal.get(ref, timeout=60)).hexdigest() == expected(size, seed)
            # It is the primary copy now: it stays when other objects need the room.
        filler = [make.options(**nodes.on(2)).remote(STORE_BYTES // 2, seed) for seed in range(3)]
        shoal.wait(filler, num_returns=3, fetch_local=False)
        for seed, (ref, size) in enumerate(zip(refs, [200_000, 10 * MIB], strict=True)):
            assert shoal.get(digest.options(**nodes.on(2)).remote(ref), timeout=60) == expected(size, seed)
        with pytest.raises(shoal.exceptions.ObjectLostError):
            shoal.get(never_read, timeout=60)


def test_a_future_of_a_value_whose_node_died_is_computed_again():
    with many_nodes(2) as nodes:
        anywhere = make.options(
            scheduling_strategy=shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True)
        )
        shoal.get(has.options(**nodes.on(1)).remote([]), timeout=30)
        ref = anywhere.remote(MIB, 1)
        shoal.wait([ref], fetch_local=False)
        nodes.kill(1)
        assert hashlib.blake2b(ref.future().result(60)).hexdigest() == expected(MIB, 1)


def test_wait_brings_values_to_this_node():
    with many_nodes(2) as nodes:
        ref = make.options(**nodes.on(1)).remote(MIB, 1)
        shoal.wait([ref], fetch_local=False)
        here = has.options(**nodes.on(0))
        assert shoal.get(here.remote([ref.binary()]), timeout=30) == [False]
        for _ in range(2):  # the second time nothing has to come
            assert shoal.wait([ref], timeout=60) == ([ref], [])
            assert shoal.get(here.remote([ref.binary()]), timeout=30) == [True]


def test_a_value_is_ready_for_wait_when_it_is_here():
    with many_nodes(2) as nodes:
        there = make.options(**nodes.on(1))
        refs = [there.remote(MIB, seed) for seed in range(30)] + [there.remote("no number", 0)]
        assert len(shoal.wait(refs, num_returns=31, timeout=60, fetch_local=False)[0]) == 31
        # Without a time to wait it says what is here, has the rest brought, and a later call finds it.
        wait_for(lambda: shoal.wait(refs, num_returns=31, timeout=0) == (refs, []), 60, "all")
        stored = [ref.binary() for ref in refs[:30]]
        assert shoal.get(has.options(**nodes.on(0)).remote(stored), timeout=30) == [True] * 30
        # One after the other, and in a process that does not own them.
        refs = [there.remote(MIB, seed) for seed in range(10)]

        @shoal.remote
        def take_all(refs):
            seen = []
            while refs:
                ready, refs = shoal.wait(refs, timeout=60)
                assert shoal.get(has.options(**nodes_on_0).remote([ready[0].binary()])) == [True]
                seen += ready
            return len(seen)

        nodes_on_0 = nodes.on(0)
        assert shoal.get(take_all.options(**nodes.on(0)).remote(refs), timeout=60) == 10


def test_wait_for_values_that_get_lost():
    """Ready is what has been computed again and is here, or has failed for good."""
    with many_nodes(2) as nodes:
        shoal.get(has.options(**nodes.on(1)).remote([]), timeout=30)
        affinity = shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True)
        again = make.options(scheduling_strategy=affinity).remote(30 * MIB, 1)
        once = make.options(**nodes.on(1), max_retries=0).remote(MIB, 2)
        assert len(shoal.wait([again, once], num_returns=2, timeout=60, fetch_local=False)[0]) == 2
        nodes.kill(1)
        assert shoal.wait([again, once], num_returns=2, timeout=60) == ([again, once], [])
        assert hashlib.blake2b(shoal.get(again, timeout=0)).hexdigest() == expected(30 * MIB, 1)
        with pytest.raises(shoal.exceptions.ObjectLostError):
            shoal.get(once, timeout=0)


def test_a_source_that_is_killed_in_the_middle(tmp_path):
    """The puller is this process, with a wire that it holds up, so that the source dies when some has come and some has not."""
    nbytes = 5 * CHUNK_BYTES + 1000
    with many_nodes(2) as nodes:
        again = make.options(scheduling_strategy=shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True))
        shoal.get(has.options(**nodes.on(1)).remote([]), timeout=30)  # the first node knows the other, from now on at the latest
        ref = again.remote(nbytes, 5)
        shoal.wait([ref], fetch_local=False)
        ready = nodes.nodes[1].ready
        stored = holder.current().core.objects.own.entries[ref._id].data
        assert stored.node_id.hex() == nodes.id_of(1)

        async def scenario():
            async with Cluster(tmp_path, 1, token=nodes.token) as (puller,):
                loop = asyncio.get_running_loop()
                wire = Wire(limit=2 * CHUNK_BYTES)

                async def open_socket(_node_id):
                    sock = await dial(loop, parse_address(ready.endpoint), data_of(stored.node_id), timeout_s=10)
                    sock.setblocking(True)
                    return wire.before(sock)

                puller.pulling._open_socket = open_socket
                client = await puller.inner.client()
                killed = threading.Event()
                wire.on_cut = lambda: (nodes.kill(1), killed.set())
                [place] = await client.client.pin([ref.binary()], [stored])
                assert place is None
                assert killed.is_set()
                assert puller.pulling.statistics().pulled_bytes_total == 0
                assert puller.store.statistics().used_bytes == 0
                client.kill()

        asyncio.run(scenario())
        assert hashlib.blake2b(shoal.get(ref, timeout=60)).hexdigest() == expected(nbytes, 5)
