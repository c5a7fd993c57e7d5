"""The programs of the simulation on real processes, with real SIGKILLs; and nothing of the session is left at the end."""

from __future__ import annotations

import pytest

from shoal.testing import fresh_cluster
from shoal.testing.simulation.generation import generate
from shoal.testing.simulation.real_processes import run_seed_on_processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def run(seeds):
    """Run programs one after the other in one session per number of CPUs."""
    for nodes in sorted({generate(seed).nodes for seed in seeds}):
        with fresh_cluster(faults=False, num_cpus=nodes[0], log_to_driver=False) as cluster:
            for seed in seeds:
                if generate(seed).nodes == nodes:
                    failure = run_seed_on_processes(seed, cluster.processes)
                    assert failure is None, f"\n{failure}"


def test_ten_programs_run_clean():
    run(range(10))


@pytest.mark.soak
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_two_hundred_programs_run_clean(first):
    run(range(first, first + 20))
