"""Nodes that get next to no CPU for longer than the time after which a silent one is dead (trap 15 of spec/operations.md)."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

import shoal
from shoal.testing import wait_for
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.soak]

LOAD_S = 15.0
BUSY = f"import os, time; os.nice(-20); until = time.monotonic() + {LOAD_S}\nwhile time.monotonic() < until: pass"


@pytest.mark.skipif(os.geteuid() != 0, reason="a load that is preferred to others (nice -20) needs root")
def test_a_node_that_is_starved_of_cpu_is_not_declared_dead():
    """With the usual time-out of 10 s; a load of twice the CPUs, each of which weighs as much as 87 processes of the cluster."""
    with many_nodes(2) as nodes:

        @shoal.remote
        class Place:
            def where(self):
                return os.getpid()

        actors = [Place.options(**nodes.on(index)).remote() for index in (0, 1)]
        pids = shoal.get([actor.where.remote() for actor in actors])
        living = nodes.living()
        load = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 * (os.cpu_count() or 1))]
        try:
            until = time.monotonic() + LOAD_S
            wait_for(lambda: time.monotonic() > until, 10 * LOAD_S, "the end of the load")
        finally:
            for one in load:
                one.kill()
                one.wait()
        assert shoal.get([actor.where.remote() for actor in actors], timeout=60) == pids
        assert nodes.living() == living
        del actors
