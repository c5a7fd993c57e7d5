"""Real nodes that spill behind a URL: what a dead one has spilled is restored, not computed again, and deleted when nobody needs it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import shoal
from shoal._base import runtime as holder
from shoal._core.process.start import HeadStartError
from shoal.testing import wait_for
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.cluster.nodes import many_nodes

pytest.importorskip("fsspec", reason="spilling elsewhere needs fsspec")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

MIB = 1 << 20
COUNT = 20


@pytest.fixture
def lake(tmp_path):
    """A directory that all nodes reach by a URL; empty at the end."""
    path = tmp_path / "lake"
    path.mkdir()
    yield path
    assert files_in(path) == []
    assert list(path.iterdir()) == []


def files_in(path):
    return [os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names]


@shoal.remote
def make(seed, counts):
    with open(os.path.join(counts, f"{seed}"), "a") as file:
        file.write("x")
    return np.full(8 * MIB, seed, dtype=np.uint8)


@shoal.remote
class Holder:
    def total(self, refs):
        return [int(shoal.get(ref)[0]) for ref in refs]


def ran(counts):
    return sum(os.path.getsize(path) for path in files_in(counts))


def known_spills(nodes):
    """Wait until the driver knows where half of what the second node has made is spilled; return these."""
    copies, node_id = holder.current().core.objects.copies, {bytes.fromhex(nodes.id_of(1))}
    wait_for(lambda: len(copies.spilled_by(node_id)) >= COUNT // 2, 30, "the word of what is spilled")
    return set(copies.spilled_by(node_id))


def test_what_a_dead_node_has_spilled_is_restored_and_not_computed_again(lake, tmp_path):
    with many_nodes(2, spill_dir=f"file://{lake}", spill_sweep_s=2.0) as nodes:
        counts = tmp_path / "counts"
        counts.mkdir()
        shoal.get(Holder.options(**nodes.on(1)).remote().total.remote([]), timeout=30)  # the first node knows the other from now on
        soft = make.options(scheduling_strategy=NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True))
        refs = [soft.remote(seed, str(counts)) for seed in range(COUNT)]
        shoal.wait(refs, num_returns=COUNT, fetch_local=False, timeout=60)
        assert ran(counts) == COUNT
        spilled = len(known_spills(nodes))
        dead = lake / f"node-{nodes.id_of(1)}"
        nodes.kill(1)
        values = [int(shoal.get(ref, timeout=60)[0]) for ref in refs]
        assert values == list(range(COUNT))
        assert ran(counts) <= COUNT + (COUNT - spilled)
        # Still needed: the files stay however often they are looked at; then they go.
        del refs
        wait_for(lambda: not dead.exists(), 60, "the end of what the dead node had spilled")


def test_values_of_put_survive_their_node_while_their_owner_lives(lake, tmp_path):
    """Nobody reads them before the sweep: they are claimed at the death, not at the first read."""
    with many_nodes(3, spill_dir=f"file://{lake}", spill_sweep_s=1.0) as nodes:
        counts = tmp_path / "counts"
        counts.mkdir()
        # Cannot be computed again.
        once = make.options(**nodes.on(1), max_retries=0)
        refs = [once.remote(seed, str(counts)) for seed in range(COUNT)]
        shoal.wait(refs, num_returns=COUNT, fetch_local=False, timeout=60)
        known = known_spills(nodes)
        kept = [(seed, ref) for seed, ref in enumerate(refs) if ref.binary() in known]
        gone = [ref for ref in refs if ref.binary() not in known]
        del refs
        dead = lake / f"node-{nodes.id_of(1)}"
        before = set(files_in(dead))
        nodes.kill(1)
        some, rest = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        del kept, gone[:]
        wait_for(lambda: nodes.id_of(1) not in nodes.living(), 30, "the death to be known")
        for seed, ref in some:
            assert int(shoal.get(ref, timeout=60)[0]) == seed
        del some, ref
        # What nobody needs is swept away, what is still claimed is not.
        wait_for(lambda: set(files_in(dead)) < before, 60, "the sweep")
        for seed, ref in rest:
            assert int(shoal.get(ref, timeout=60)[0]) == seed
        del rest, ref
        wait_for(lambda: not dead.exists(), 60, "the last sweep")


def test_a_session_of_one_node_leaves_nothing_however_it_ends(lake, tmp_path):
    program = f"""
import sys, os, signal, numpy as np, shoal
shoal.init("local", num_cpus=1, object_store_memory=80 << 20, object_spilling_directory="file://{lake}", log_to_driver=False)
refs = [shoal.put(np.full(8 << 20, seed, dtype=np.uint8)) for seed in range({COUNT})]
assert [int(shoal.get(ref)[0]) for ref in refs] == list(range({COUNT}))
assert any(names for _, _, names in os.walk("{lake}"))
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "kill head":
    from shoal._core.api import lifecycle
    os.kill(lifecycle._session.head.pid, signal.SIGKILL)
"""
    for how in ("end", "kill", "kill head"):
        subprocess.run(
            [sys.executable, "-c", program, how],
            timeout=60,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        wait_for(lambda: list(lake.iterdir()) == [], 30, f"the end of all files after: {how}")


def test_a_place_that_cannot_be_used_is_told_at_the_start(tmp_path):
    with pytest.raises(HeadStartError, match=r"file://.*no/such.*FileNotFoundError"):
        shoal.init("local", num_cpus=1, object_spilling_directory=f"file://{tmp_path}/no/such/place")
    with pytest.raises(ValueError, match="nosuch"):
        shoal.init("local", num_cpus=1, object_spilling_directory="nosuch://place")
    assert not shoal.is_initialized()
