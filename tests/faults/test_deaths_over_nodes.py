"""Deaths whose consequences reach over nodes: of a driver, and of an owner. Once in `make test`, many rounds in `make soak`.

a round: the state is reached - SIGKILL - what others see on other nodes - all resources and bytes are back
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import shoal
from shoal._base.processes import is_running
from shoal.cluster_utils import Cluster
from shoal.testing import leak_check, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

MIB = 1 << 20
NODES = 3
PATIENCE_S = 60.0
GONE_S = 20.0

#: Holds something of every kind on every node, says the pids of its workers, and waits for its end.
DRIVER = """
import os, sys, time
import shoal
import numpy as np
from shoal.util.placement_group import placement_group

shoal.init(address=sys.argv[1], namespace="deaths", log_to_driver=False)

@shoal.remote(num_cpus=0)
class Holder:
    def hold(self, value):
        self.value = value
        self.made = shoal.put(np.ones(1 << 20, dtype=np.uint8))
        return os.getpid(), [self.made]

@shoal.remote(num_cpus=0)
def sleep(board):
    shoal.get(board.add.remote(os.getpid()))
    time.sleep(1000)

@shoal.remote(num_cpus=0, lifetime="detached", name="board")
class Board:
    def __init__(self):
        self.pids = []
    def add(self, pid):
        self.pids.append(pid)
    def all(self):
        return self.pids

board = Board.options(resources={"n0": 0.001}).remote()
on = [{"resources": {f"n{index}": 0.001}} for index in range(3)]
stored = shoal.put(np.zeros(4 << 20, dtype=np.uint8))
holders = [Holder.options(**place).remote() for place in on]
held = shoal.get([holder.hold.remote(stored) for holder in holders])
running = [sleep.options(**place).remote(board) for place in on for _ in range(2)]
group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
assert group.wait(60)
queued = [sleep.options(num_cpus=2).remote(board) for _ in range(5)]
while len(shoal.get(board.all.remote())) < 6:
    time.sleep(0.01)
print(*[pid for pid, _ in held], *shoal.get(board.all.remote()), flush=True)
time.sleep(1000)
"""


@pytest.fixture
def cluster():
    with leak_check(within_s=10):
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"n0": 1}, "object_store_memory": 80 * MIB})
        try:
            for index in range(1, NODES):
                made.add_node(num_cpus=2, resources={f"n{index}": 1}, object_store_memory=80 * MIB)
            shoal.init(address=made.address, namespace="deaths", log_to_driver=False)
            yield made
        finally:
            shoal.shutdown()
            made.shutdown()


def test_with_a_driver_its_work_ends_on_all_nodes_and_nothing_else(cluster, rounds, report):
    @shoal.remote(num_cpus=0)
    class Bystander:
        def calls(self):
            self.count = getattr(self, "count", 0) + 1
            return self.count

    report.expect("nothing left on any node", GONE_S)
    bystanders = [Bystander.options(resources={f"n{index}": 0.001}).remote() for index in range(NODES)]
    for number in rounds:
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, cluster.address], stdout=subprocess.PIPE, text=True)
        pids = [int(word) for word in driver.stdout.readline().split()]
        driver.stdout.close()
        assert len(pids) == NODES + 2 * NODES
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        begin = time.monotonic()
        wait_for(lambda pids=pids: not any(map(is_running, pids)), GONE_S, "the end of its actors and tasks on all nodes")
        board = shoal.get_actor("board")
        assert len(shoal.get(board.all.remote(), timeout=PATIENCE_S)) == 2 * NODES, "what is detached lives on; none of the queued has run"
        shoal.kill(board)
        assert shoal.get([one.calls.remote() for one in bystanders], timeout=PATIENCE_S) == [number + 1] * NODES
        del board
        _settle(held=0.002)
        report.round("others went on", time.monotonic() - begin)
    del bystanders


@shoal.remote(num_cpus=0)
class Owner:
    def own(self, inside):
        """Return references to what it has stored, to one with a reference inside, and to what tasks of its own have made."""
        array = np.full(MIB, 7, dtype=np.uint8)
        self.kept = [shoal.put(array), shoal.put([array, inside[0]]), doubled.remote(21), ones.options(num_cpus=0).remote()]
        shoal.wait(self.kept, num_returns=4)
        return self.kept

    def pid(self):
        return os.getpid()


@shoal.remote(num_cpus=0)
def doubled(number):
    return 2 * number


@shoal.remote
def ones():
    return np.ones(MIB, dtype=np.uint8)


@shoal.remote(num_cpus=0)
def total(box):
    return int(shoal.get(box[0]).sum())


def test_what_a_killed_owner_had_stored_is_there_for_those_who_hold_it_on_any_node(cluster, rounds, report):
    report.expect("all read", GONE_S)
    for number in rounds:
        owner = Owner.options(resources={"n1": 0.001}).remote()
        inner = shoal.put(np.full(MIB, 5, dtype=np.uint8))
        stored, box, small, made = shoal.get(owner.own.remote([inner]), timeout=PATIENCE_S)
        pid = shoal.get(owner.pid.remote(), timeout=PATIENCE_S)
        if number % 2:  # it is known on a third node, too, before the death
            assert shoal.get(total.options(resources={"n2": 0.001}).remote([stored]), timeout=PATIENCE_S) == 7 * MIB
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(shoal.exceptions.RayActorError):
            shoal.get(owner.pid.remote(), timeout=PATIENCE_S)
        assert _sum(stored) == 7 * MIB
        del inner
        assert _inside(box) == (7 * MIB, 5 * MIB)
        assert shoal.get(total.options(resources={"n2": 0.001}).remote([stored]), timeout=PATIENCE_S) == 7 * MIB
        seen = [_outcome(ref) for ref in (small, made)]
        assert seen[0] in (42, "OwnerDiedError")
        assert seen[1] in (MIB, "OwnerDiedError")
        report.round(f"value in its memory: {seen[0]}, result in a store: {seen[1]}", time.monotonic() - begin)
        del owner, stored, box, small, made
        _settle()


def _sum(ref):
    return int(shoal.get(ref, timeout=PATIENCE_S).sum())


def _inside(box):
    array, inner = shoal.get(box, timeout=PATIENCE_S)
    return int(array.sum()), _sum(inner)


def _outcome(ref):
    try:
        return int(np.sum(shoal.get(ref, timeout=PATIENCE_S)))
    except shoal.exceptions.OwnerDiedError as error:
        return type(error).__name__


@shoal.remote(num_cpus=0)
def room():
    """Fill most of the store of this node: fails where bytes are left of something else."""
    refs = [shoal.put(np.zeros(10 * MIB, dtype=np.uint8)) for _ in range(7)]
    return len(refs)


def _settle(held=0.0):
    """Wait until all resources are free but ``held`` of each, and the stores have room for as much as ever."""
    wait_for(lambda: all(amount - _free(name) <= held for name, amount in shoal.cluster_resources().items()), GONE_S, "all resources")
    places = [{"resources": {f"n{index}": 0.001}} for index in range(NODES)]
    assert shoal.get([room.options(**place).remote() for place in places], timeout=PATIENCE_S) == [7] * NODES


def _free(name):
    return shoal.available_resources().get(name, 0.0)
