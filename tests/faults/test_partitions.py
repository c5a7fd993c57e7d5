"""Two machines whose network is cut: one live copy of each actor, and a node that was declared dead joins as another when it is healed."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal._base.processes import is_running
from shoal.testing import wait_for
from tests.faults.namespaces import namespaces, needs_namespaces
from tests.faults.test_network_trust import SMALL, Shell

pytestmark = [needs_namespaces, pytest.mark.cluster, pytest.mark.timeout(1800)]

TIMEOUT_S = "2"
PATIENCE_S = 60.0

#: A driver that does what it is told, line by line, and answers with a line each.
DRIVER = """
import os, sys, shoal
shoal.init(*sys.argv[1:], log_to_driver=False, namespace="tests")

@shoal.remote(num_cpus=0)
class Place:
    def where(self):
        return shoal.get_runtime_context().get_node_id(), os.getpid()

def alive():
    return sorted(node["NodeID"] for node in shoal.nodes() if node["Alive"])

def soft(node_id):
    return shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=True)

def create(node_id):
    global actor
    actor = Place.options(max_restarts=-1, max_task_retries=-1, scheduling_strategy=soft(node_id)).remote()
    return where()

def where():
    return shoal.get(actor.where.remote(), timeout=60)

def drop():
    global actor
    actor = None

def fresh():
    return shoal.get(Place.options(resources={"n1": 0.001}).remote().where.remote(), timeout=60)

for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


class Driver:
    def __init__(self, shell, address=None):
        arguments = [] if address is None else [address]
        self.process = shell.machine.start(
            [sys.executable, "-c", DRIVER, *arguments], env=shell.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, expression):
        print(expression, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, f"the driver ended at {expression}"
        return eval(line)

    def end(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)
        self.process.stdout.close()


@contextmanager
def two_machines(directory):
    """A head on the first, a node on the second; a driver on the first."""
    with namespaces(2) as network:
        one, two = (Shell(machine, directory / f"{machine.number}", directory) for machine in network.machines)
        try:
            one("start", "--head", "--node-ip-address", one.machine.ip4, *SMALL, SHOAL_NODE_TIMEOUT_S=TIMEOUT_S)
            join = ("start", "--address", f"{one.machine.ip4}:6379", "--resources", '{"n1": 1}', *SMALL)
            two(*join, SHOAL_NODE_TIMEOUT_S=TIMEOUT_S)
            driver = Driver(one)
            try:
                yield network, driver
            except BaseException:
                for log in sorted(directory.glob("*/**/head.err")):
                    print(log, log.read_text()[-5000:], sep="\n")
                raise
            finally:
                driver.end()
        finally:
            network.heal()
            for shell in (one, two):
                shell("stop")
            wait_for(lambda: not any(machine.pids() for machine in network.machines), PATIENCE_S, "the end of all processes")


def _cut(network, cut):
    one, two = network.machines
    if cut == "both ways":
        network.cut(one, two)
    elif cut == "from the node":
        network.cut(two, one, one_way=True)
    else:
        network.cut(one, two, one_way=True)


@pytest.mark.parametrize("cut", ["both ways", "from the node", "to the node"])
def test_a_node_that_is_cut_off_is_another_node_afterwards(own_directory, cut, rounds, report):
    with two_machines(Path(own_directory)) as (network, driver):
        for _ in rounds:
            _cut_and_heal(network, driver, cut, report)


@pytest.mark.soak
@pytest.mark.parametrize("cut", ["both ways", "from the node", "to the node"])
def test_a_minute_without_a_network(own_directory, cut, report):
    """Longer than TCP tries again within, longer than all time-outs."""
    with two_machines(Path(own_directory)) as (network, driver):
        _cut_and_heal(network, driver, cut, report, least_s=60.0)


def _cut_and_heal(network, driver, cut, report, least_s=0.0):
    report.expect("all as before", PATIENCE_S)
    before = driver("alive()")
    old = driver("fresh()")[0]
    node, pid = driver(f"create({old!r})")
    assert node == old
    begin = time.monotonic()
    _cut(network, cut)
    wait_for(lambda: old not in driver("alive()"), PATIENCE_S, "the death of the node")
    elsewhere = driver("where()")
    moved_s = time.monotonic() - begin
    assert elsewhere[0] in before
    assert elsewhere[0] != old
    assert is_running(pid), "it cannot know"
    wait_for(lambda: time.monotonic() - begin >= least_s, 2 * PATIENCE_S, "the time")
    network.heal()
    begin = time.monotonic()
    wait_for(lambda: len(driver("alive()")) == 2, PATIENCE_S, "the return of the node")
    assert old not in driver("alive()")
    assert not is_running(pid), "one live copy"
    assert driver("where()") == elsewhere
    assert driver("fresh()")[0] not in before
    report.round("the actor went on elsewhere, the node came back as another", max(moved_s, time.monotonic() - begin))
    driver("drop()")
