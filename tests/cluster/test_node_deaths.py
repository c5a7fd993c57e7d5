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
