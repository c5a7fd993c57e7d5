"""Nodes that die, and what becomes of what was there."""

from __future__ import annotations

import time

import numpy as np
import pytest

import shoal
from shoal.testing import wait_for
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

MIB = 1 << 20


def test_what_a_killed_node_ran_and_held_is_computed_again_elsewhere():
    with many_nodes(2) as nodes:

        @shoal.remote(max_retries=3)
        def make_anywhere(nbytes):
            time.sleep(0.2)
            return np.ones(nbytes, dtype=np.uint8)

        def soft():
            return shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True)

        held = make_anywhere.options(scheduling_strategy=soft()).remote(MIB)
        shoal.wait([held], fetch_local=False)
        running = [make_anywhere.options(scheduling_strategy=soft()).remote(MIB) for _ in range(6)]
        ready, _ = shoal.wait(running, num_returns=1, timeout=20, fetch_local=False)
        assert ready
        nodes.kill(1)
        for ref in [held, *running]:
            assert int(shoal.get(ref, timeout=60).sum()) == MIB
        wait_for(lambda: [node["Alive"] for node in shoal.nodes()].count(True) == 1, 20, "the end of the node in the table")


def test_all_results_of_one_task_are_lost_and_read_at_once():
    """Each reader finds another result lost; the task runs again once, not once per reader, and never "cannot be computed again"."""
    with many_nodes(3) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()

        @shoal.remote(max_retries=1)
        def make(runs):
            shoal.get(runs.add.remote())
            return [np.full(MIB, number, dtype=np.uint8) for number in range(8)]

        @shoal.remote(num_cpus=0, max_retries=0)
        def read(number, array):
            return number, int(array[0]), len(array)

        where = shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True)
        parts = make.options(num_returns=8, scheduling_strategy=where).remote(runs)
        shoal.wait(parts, num_returns=8, fetch_local=False)
        nodes.kill(1)
        wait_for(lambda: [node["Alive"] for node in shoal.nodes()].count(True) == 2, 20, "the end of the node in the table")
        read_at = [read.options(resources={f"n{number % 2 * 2}": 0.001}).remote(number, parts[number]) for number in range(8)]
        assert shoal.get(read_at, timeout=60) == [(number, number, MIB) for number in range(8)]
        assert [int(part[0]) for part in shoal.get(parts, timeout=60)] == list(range(8))
        assert shoal.get(runs.get.remote()) == 2


@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1

    def get(self):
        return self.count
