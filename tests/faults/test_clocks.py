"""Machines whose clocks jump: nobody is declared dead, nothing expires, nothing waits for an hour (trap 16 of spec/operations.md).

Needs the Debian package ``faketime``: a library between a process and its clock, which reads from a file how far that is off.
"""

from __future__ import annotations

import glob
import os
import time

import pytest

import shoal
from shoal._base.processes import is_running
from shoal.cluster_utils import Cluster
from shoal.testing import leak_check, wait_for
from shoal.util.placement_group import placement_group, remove_placement_group

LIBRARY = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), "")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not LIBRARY, reason="clocks that jump need the Debian package faketime"),
]

HOUR_S = 3600
TIMEOUT_S = 1.5
PATIENCE_S = 30.0
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


class Clock:
    """The wall clock of the processes that are started with ``environ``; the monotonic one is as ever."""

    def __init__(self, path):
        self._path = path
        self.off_by(0)
        self.environ = {
            "LD_PRELOAD": LIBRARY, "FAKETIME_TIMESTAMP_FILE": str(path), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip

    def off_by(self, seconds):
        beside = self._path.with_suffix(".new")
        beside.write_text(f"{seconds:+d}\n")
        os.replace(beside, self._path)


@shoal.remote(num_cpus=0)
class Place:
    def look(self):
        return os.getpid(), time.time()


def alive():
    return sorted(node["NodeID"] for node in shoal.nodes() if node["Alive"])


def test_clocks_that_jump_by_an_hour_end_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_NODE_TIMEOUT_S", str(TIMEOUT_S))
    heads, nodes = Clock(tmp_path / "head"), Clock(tmp_path / "node")
    with leak_check():
        with pytest.MonkeyPatch.context() as patch:
            for name, value in heads.environ.items():
                patch.setenv(name, value)
            cluster = Cluster(initialize_head=True, head_node_args={**NODE, "resources": {"n0": 1}})  # and the control store
        try:
            cluster.add_node(**NODE, resources={"n1": 1}, env_vars=nodes.environ)
            shoal.init(address=cluster.address, log_to_driver=False)
            actors = [Place.options(resources={f"n{index}": 0.001}, max_restarts=0).remote() for index in (0, 1)]
            pids = [pid for pid, _ in shoal.get([actor.look.remote() for actor in actors], timeout=PATIENCE_S)]
            before, kept = alive(), shoal.put(b"here")
            for offsets in ((HOUR_S, 0), (0, -HOUR_S), (-HOUR_S, HOUR_S), (0, 0)):
                heads.off_by(offsets[0])
                nodes.off_by(offsets[1])
                _work_for_a_while(actors, pids, offsets)
                assert alive() == before
            assert shoal.get(kept) == b"here"
            del actors, kept
        finally:
            shoal.shutdown()
            cluster.shutdown()
            _remove_what_the_library_left()


def _remove_what_the_library_left():
    """Processes that are killed leave its shared memory behind."""
    for path in glob.glob("/dev/shm/*faketime_*"):
        if not is_running(int(path.rpartition("_")[2])):
            os.unlink(path)


def _work_for_a_while(actors, pids, offsets):
    """Longer than it takes to declare a silent node dead."""
    until = time.monotonic() + 2 * TIMEOUT_S
    rounds = 0
    while time.monotonic() < until or rounds == 0:
        looked = shoal.get([actor.look.remote() for actor in actors], timeout=PATIENCE_S)
        assert [pid for pid, _ in looked] == pids
        for (_, clock), offset in zip(looked, offsets, strict=True):
            assert abs(clock - time.time() - offset) < PATIENCE_S, "the clock has jumped"
        group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
        assert group.wait(PATIENCE_S)
        remove_placement_group(group)
        fresh = Place.remote()
        shoal.get(fresh.look.remote(), timeout=PATIENCE_S)
        rounds += 1
    wait_for(lambda: shoal.available_resources().get("CPU") == 4.0, PATIENCE_S, "the return of the groups' resources")
