"""One program on several nodes: where tasks and actors run, and objects that move."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter

import numpy as np
import pytest

import shoal
from shoal._core.transport.preamble import data_of, encode_preamble
from shoal.testing import wait_for
from tests.cluster.nodes import STORE_BYTES, many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

MIB = 1 << 20


@shoal.remote
def where():
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
def make(nbytes, value=1):
    return np.full(nbytes, value, dtype=np.uint8)


@shoal.remote
def total(array):
    return int(array.sum())


@shoal.remote
def total_of_boxed(box):
    return int(shoal.get(box[0]).sum())


@shoal.remote
class Counting:
    def __init__(self):
        self.numbers = []

    def add(self, number):
        self.numbers.append(number)
        return len(self.numbers), shoal.get_runtime_context().get_node_id()

    def all(self):
        return self.numbers


@pytest.fixture(scope="module")
def nodes():
    with many_nodes() as nodes:
        shoal.get([where.options(**nodes.on(index)).remote() for index in range(3)], timeout=30)
        yield nodes


def test_a_task_runs_where_its_resources_are(nodes):
    for index in range(3):
        assert shoal.get(where.options(**nodes.on(index)).remote(), timeout=20) == nodes.id_of(index)


def test_more_work_than_one_node_takes_goes_to_all(nodes):
    @shoal.remote
    def slow():
        time.sleep(0.1)
        return shoal.get_runtime_context().get_node_id()

    counts = Counter(shoal.get([slow.remote() for _ in range(30)], timeout=30))
    assert set(counts) == {nodes.id_of(index) for index in range(3)}
    counts = Counter(shoal.get([slow.options(scheduling_strategy="SPREAD").remote() for _ in range(30)], timeout=30))
    assert set(counts) == {nodes.id_of(index) for index in range(3)}
    wait_for(lambda: shoal.available_resources().get("CPU") == 6.0, 20, "the return of the CPUs")


def test_tasks_of_every_node_call_tasks_of_every_other(nodes):
    @shoal.remote
    def through(first, second):
        inner = shoal.get(where.options(resources={f"n{second}": 0.001}, num_cpus=0).remote())
        return shoal.get_runtime_context().get_node_id(), inner

    pairs = [(first, second) for first in range(3) for second in range(3)]
    found = shoal.get([through.options(**nodes.on(first)).remote(first, second) for first, second in pairs], timeout=30)
    assert found == [(nodes.id_of(first), nodes.id_of(second)) for first, second in pairs]


def test_calls_to_an_actor_of_another_node_keep_their_order(nodes):
    actor = Counting.options(**nodes.on(2)).remote()
    answers = shoal.get([actor.add.remote(number) for number in range(500)], timeout=30)
    assert answers == [(number + 1, nodes.id_of(2)) for number in range(500)]
    assert shoal.get(actor.all.remote()) == list(range(500))


@pytest.mark.parametrize("nbytes", [200_000, 20 * MIB])
def test_values_go_to_whoever_reads_them(nodes, nbytes):
    ref = make.options(**nodes.on(1)).remote(nbytes)
    assert int(shoal.get(ref, timeout=20).sum()) == nbytes
    own = shoal.put(np.ones(nbytes, dtype=np.uint8))
    for index in range(3):
        assert shoal.get(total.options(**nodes.on(index)).remote(ref), timeout=20) == nbytes
        assert shoal.get(total_of_boxed.options(**nodes.on(index)).remote([ref]), timeout=20) == nbytes
        assert shoal.get(total.options(**nodes.on(index)).remote(own), timeout=20) == nbytes


def test_many_readers_of_one_node_pull_an_object_once_and_all_see_it(nodes):
    ref = make.options(**nodes.on(1)).remote(5 * MIB, 3)
    assert shoal.get([total.options(**nodes.on(2)).remote(ref) for _ in range(20)], timeout=30) == [15 * MIB] * 20


def test_copies_make_room_for_others(nodes):
    # Each half of a store: the copies of earlier ones are dropped, without a spill.
    for value in range(5):
        ref = make.options(**nodes.on(1)).remote(STORE_BYTES // 2, value)
        assert shoal.get(total.options(**nodes.on(2)).remote(ref), timeout=30) == value * (STORE_BYTES // 2)


def test_an_object_larger_than_the_store_is_pulled_from_file_to_file(nodes):
    nbytes = STORE_BYTES + 10 * MIB
    ref = make.options(**nodes.on(1)).remote(nbytes)
    assert shoal.get(total.options(**nodes.on(2)).remote(ref), timeout=60) == nbytes


def test_a_task_of_another_node_can_be_cancelled(nodes):
    @shoal.remote
    def endless():
        while True:
            time.sleep(0.01)

    ref = endless.options(**nodes.on(1)).remote()
    ready, _ = shoal.wait([ref], timeout=0.5)
    assert not ready
    shoal.cancel(ref)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        shoal.get(ref, timeout=20)


def test_the_cluster_describes_itself(nodes):
    rows = {row["NodeID"]: row for row in shoal.nodes()}
    assert set(rows) == {nodes.id_of(index) for index in range(3)}
    expected = {
        "NodeID", "Alive", "alive", "NodeManagerAddress", "NodeManagerHostname", "NodeManagerPort", "NodeName", "ObjectManagerPort",
        "ObjectStoreSocketName", "RayletSocketName", "MetricsExportPort", "MetricsAgentPort", "DashboardAgentListenPort",
        "RuntimeEnvAgentPort", "DeathReason", "DeathReasonMessage", "Resources", "Labels", "Draining",
    }  # fmt: skip
    for index in range(3):
        row = rows[nodes.id_of(index)]
        assert row.keys() == expected
        assert row["Alive"]
        assert row["alive"]
        assert row["Labels"]["ray.io/node-id"] == row["NodeID"]
        assert (row["Resources"]["CPU"], row["Resources"][f"n{index}"]) == (2.0, 1.0)
        port = int(nodes.nodes[index].ready.endpoint.rpartition(":")[2])
        assert (row["NodeManagerPort"], row["ObjectManagerPort"]) == (port, port)
    total = shoal.cluster_resources()
    assert total["CPU"] == 6.0
    assert [total[f"n{index}"] for index in range(3)] == [1.0] * 3
    assert all(isinstance(amount, float) for amount in total.values())


def test_what_is_held_on_any_node_is_missing_from_what_is_available(nodes):
    @shoal.remote(num_cpus=2)
    class Holder:
        def ready(self):
            return shoal.get_runtime_context().get_node_id()

    wait_for(lambda: shoal.available_resources() == shoal.cluster_resources(), 20, "the return of all resources")
    holders = [Holder.options(resources={f"n{index}": 1}).remote() for index in range(2)]
    assert shoal.get([holder.ready.remote() for holder in holders], timeout=20) == [nodes.id_of(0), nodes.id_of(1)]
    free = shoal.available_resources()
    assert (free["CPU"], free["n2"]) == (2.0, 1.0)
    assert "n0" not in free
    assert "n1" not in free
    del holders
    wait_for(lambda: shoal.available_resources() == shoal.cluster_resources(), 20, "the return of all resources")


@pytest.mark.parametrize("target_of", [bytes, data_of], ids=["agent", "data"])
@pytest.mark.parametrize(
    "words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x80\x04c__builtin__\neval\n", b"\0" * 300, os.urandom(10_000)], ids=len
)
def test_strangers_at_the_port_get_nothing(nodes, target_of, words):
    host, _, port = nodes.nodes[1].ready.endpoint.removeprefix("tcp:").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as stranger:
        stranger.sendall(encode_preamble(target_of(bytes.fromhex(nodes.id_of(1)))))
        assert stranger.recv(1) == b"\x01"
        try:  # it may hang up at any of these
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            assert len(stranger.recv(1000)) <= 200, "no more than a hello and a proof, which are no use to it"
        except OSError:
            assert words
    assert shoal.get(where.options(**nodes.on(1)).remote(), timeout=20) == nodes.id_of(1)
