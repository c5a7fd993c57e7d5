"""SIGKILL for any process of a cluster of four nodes, at a random moment under load: every result comes, and is right; nothing is left.

a round: work is submitted - some of it gets done - one process is killed - all of it must come out right - a fourth node again
victims: the control store, a node (the head, too), a template, a worker. The driver lives on a node that is spared.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from cluster_work import PATIENCE_S, Work

import shoal
from shoal._core.process.session import read_record
from shoal.cluster_utils import Cluster
from shoal.testing import leak_check, wait_for
from shoal.testing.session_processes import SessionProcesses, kill

pytestmark = pytest.mark.timeout(3600)

NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}
VICTIMS = ("control store", "node", "head", "template", "worker", "worker", "worker of the driver's node")
if "SHOAL_VICTIM" in os.environ:  # to hunt one kind
    VICTIMS = (os.environ["SHOAL_VICTIM"],)


class FourNodes:
    """Node 0 is the head, node 1 the driver's."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE)
        self.mine = self.cluster.add_node(**NODE)
        self.fill()

    def fill(self):
        """Have four living nodes again, with a head that looks after the control store."""
        for node in self.cluster.list_all_nodes():
            if not node.is_alive():
                self.cluster.remove_node(node)
        while self.cluster.head_node is None or len(self.cluster.list_all_nodes()) < 4:
            self.cluster.add_node(**NODE)
        self.cluster.wait_for_nodes()

    def processes(self, node):
        return SessionProcesses(Path(node.session_dir).resolve().name)

    def pid_of(self, victim):
        """Draw a process of that kind; 0 if there is none at this moment."""
        nodes = self.cluster.list_all_nodes()
        others = [node for node in nodes if node is not self.mine]
        if victim == "control store":
            record = read_record(self.cluster._control_store.session.directory)
            return record.pid if record is not None and record.is_running() else 0
        if victim == "head":
            return self.cluster.head_node.pid
        if victim == "node":
            return self.draw.choice([node for node in others if not node.head]).pid
        if victim == "template":
            return self.processes(self.draw.choice(nodes)).template()
        where = self.mine if victim == "worker of the driver's node" else self.draw.choice(others)
        workers = list(self.processes(where).workers())
        return self.draw.choice(workers) if workers else 0

    def settle(self):
        """All resources are free, and no actor, group or object of the round is left."""

        def is_free():
            return shoal.available_resources() == shoal.cluster_resources()

        try:
            wait_for(is_free, 30, "the return of all resources")
        except TimeoutError:
            missing = {
                name: amount for name, amount in shoal.cluster_resources().items() if shoal.available_resources().get(name) != amount
            }
            pytest.fail(f"these resources have not come back: {missing}, of which there are {shoal.available_resources()}")


@pytest.fixture
def four_nodes(monkeypatch):
    with leak_check(within_s=10):
        nodes = FourNodes(int(os.environ.get("SHOAL_SEED", "20261121")))
        # The driver joins by way of node 1, so that the head can be killed, too.
        monkeypatch.setattr("shoal._core.process.discovery.nodes_of", lambda records, _address: [
            record for record in records if record.node_id == nodes.mine.node_id
        ])  # fmt: skip
        shoal.init(address=nodes.cluster.address, log_to_driver=False, namespace="deaths", configure_logging=False)
        try:
            yield nodes
        finally:
            shoal.shutdown()
            nodes.cluster.shutdown()


@pytest.mark.parametrize("count", [pytest.param(len(VICTIMS), id="once-each"), pytest.param(200, id="200-rounds", marks=pytest.mark.soak)])
def test_any_process_may_die(four_nodes, count, notes):
    """Each kind in turn, so that each has its share of the rounds; the process and the moment are drawn."""
    worst: dict[str, float] = {}
    rounds: dict[str, int] = {}
    for number in range(count):
        victim = VICTIMS[number % len(VICTIMS)]
        work = Work(number)
        work.submit()
        moment = four_nodes.draw.randrange(len(work.expected))
        wait_for(lambda: work.done() >= moment, PATIENCE_S, "the first results")  # noqa: B023
        pid = wait_for(lambda: four_nodes.pid_of(victim), PATIENCE_S, f"a victim: {victim}")  # noqa: B023
        kill(pid)
        begin = time.monotonic()
        wrong = work.check()
        took = time.monotonic() - begin
        assert not wrong, f"round {number}, {victim} (pid {pid}) killed after {moment} results: {len(wrong)} wrong: {wrong[:5]}"
        worst[victim], rounds[victim] = max(worst.get(victim, 0.0), took), rounds.get(victim, 0) + 1
        four_nodes.fill()
        four_nodes.settle()
        notes.show(f"round {number}: {victim} killed after {moment} of 180 results; all right {took:.2f} s later")
    for victim, seconds in worst.items():
        notes.add(f"{victim}: {rounds[victim]} rounds, all results right after {seconds:.2f} s at worst")
