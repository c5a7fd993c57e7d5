"""Random programs on simulated clusters of three to five nodes, calm and under faults: kill, pause, partition, delay, clock jump.

python -m shoal.testing.simulation SEED --nodes 5 --faults      runs one of them again, and shrinks it if it fails
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args
from unittest import mock

import pytest

from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.remote_processes import RemoteProcesses
from shoal._core.object_store.store import ObjectStore
from shoal.testing.simulation.campaign import Mode, SimulatedSurroundings, run_seeds, shrink
from shoal.testing.simulation.cluster import make_directory
from shoal.testing.simulation.faults import Fault
from shoal.testing.simulation.generation import generate
from shoal.testing.simulation.programs import show_program, smaller_programs
from tests.simulation.test_random_programs import trace

pytestmark = pytest.mark.timeout(300)

CALM, FAULTY = Mode(nodes=5), Mode(nodes=5, faults=True)
BLOCK = 50


def clean(seeds: range, mode: Mode) -> None:
    done, failures = run_seeds(seeds, mode)
    assert not failures, f"\n{shrink(failures[0], tries=200)}"
    assert done == len(seeds)


@pytest.mark.parametrize("first", range(0, 300, BLOCK))
def test_clusters_run_clean(first):
    clean(range(first, first + BLOCK), CALM)


@pytest.mark.parametrize("first", range(0, 300, BLOCK))
def test_clusters_run_clean_under_faults(first):
    clean(range(first, first + BLOCK), FAULTY)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", range(0, 10_000, 500))
@pytest.mark.parametrize("mode", [CALM, FAULTY], ids=["calm", "faults"])
def test_ten_thousand_clusters_run_clean(mode, first):
    clean(range(first, first + 500), mode)


def test_all_operations_and_faults_are_made():
    programs = [generate(seed, 5, True) for seed in range(400)]
    assert {len(program.nodes) for program in programs} == {3, 4, 5}
    text = "".join(map(show_program, programs))
    for operation in ["CreateGroup", "RemoveGroup", "Find", "SPREAD", "HARD", "SOFT", "RESOURCE", "GROUP"]:
        assert operation in text, operation
    faults = Counter(type(fault) for program in programs for fault in program.faults)
    assert faults.keys() == set(get_args(Fault))


def test_the_same_seed_gives_the_same_cluster():
    assert trace(7, FAULTY) == trace(7, FAULTY)


def test_a_failing_program_loses_its_faults_first():
    program = next(program for seed in range(50) if len((program := generate(seed, 5, True)).faults) > 1)
    assert len(next(smaller_programs(program)).faults) == len(program.faults) - 1


def test_directories_of_simulations_that_were_killed_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f"shoal-sim-{pid}-x" / "node").mkdir(parents=True)
    mine = Path(make_directory(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([mine, tmp_path / f"shoal-sim-{os.getpid()}-x"])


# --- the simulation can fail: each of these bugs is found within a few programs ---------------------------


def found(mode: Mode, seeds: range = range(60)) -> str:
    _, failures = run_seeds(seeds, mode)
    assert failures, "the bug was not found"
    return failures[0].problem


def test_a_node_whose_death_is_not_noticed_is_found():
    real = ClusterView.update

    def blind(self, changed):
        return real(self, [record for record in changed if record.alive])

    with mock.patch.object(ClusterView, "update", blind):
        assert found(FAULTY, range(200))


def test_ends_of_owners_that_other_nodes_do_not_hear_of_are_found():
    with mock.patch.object(RemoteProcesses, "ended"):
        assert "left over" in found(CALM, range(200))


def test_an_instance_of_an_actor_that_acts_behind_its_successor_is_found():
    with mock.patch.object(SimulatedSurroundings, "new_instance", side_effect=itertools.count(0, -1)):
        assert "began a call after" in found(FAULTY, range(300))


def test_copies_that_are_not_freed_are_found():
    with mock.patch.object(ObjectStore, "on_freed", None, create=True):
        real = ObjectStore.free

        def forgetful(self, object_ids, *args, **kwargs):
            kept = [one for one in object_ids if not self._residence.objects.get(one) or not self._residence.objects[one].is_copy]
            return real(self, kept, *args, **kwargs)

        with mock.patch.object(ObjectStore, "free", forgetful):
            assert "left over" in found(CALM)
