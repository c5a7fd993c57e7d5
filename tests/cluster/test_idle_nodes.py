"""Nodes of a cluster that have nothing to do: no workers, and a template that is a bare interpreter until one is asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

import shoal
from shoal._base.processes import is_running
from shoal.cluster_utils import Cluster, ClusterNode
from shoal.testing import leak_check, wait_for
from shoal.testing.session_processes import SessionProcesses
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

PATIENCE_S = 30


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with leak_check():
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        found.add_node(num_cpus=2, resources={"n1": 1})
        try:
            yield found
        finally:
            shoal.shutdown()
            found.shutdown()


def processes(node: ClusterNode) -> SessionProcesses:
    return SessionProcesses(node._process.session.name)


def sleeps(node: ClusterNode) -> bool:
    """Whether nobody has needed its template yet."""
    with open(f"/proc/{processes(node).template()}/cmdline") as file:
        return "not needed yet" in file.read()


def test_workers_come_to_all_nodes_with_the_first_job(cluster):
    nodes = cluster.list_all_nodes()
    assert [processes(node).workers() for node in nodes] == [{}, {}]
    assert all(map(sleeps, nodes))
    templates = [processes(node).template() for node in nodes]
    shoal.init(address=cluster.address)
    for node in nodes:
        wait_for(lambda node=node: len(processes(node).workers()) == 2, PATIENCE_S, "the reserve")
    assert [processes(node).template() for node in nodes] == templates, "the same processes, which have become what forks"
    assert not any(map(sleeps, nodes))
    late = cluster.add_node(num_cpus=1)
    wait_for(lambda: len(processes(late).workers()) == 1, PATIENCE_S, "the reserve of a node that joins while a job runs")


def test_the_reserve_goes_when_nothing_has_run_for_long():
    with many_nodes(2, idle_worker_s=0.05) as nodes:  # "long" is 30 times that
        far = SessionProcesses(nodes.nodes[1].session.name)
        shoal.get(shoal.remote(os.getpid).options(**nodes.on(1)).remote())
        wait_for(lambda: not far.workers(), PATIENCE_S, "the end of the reserve")
        assert shoal.get(shoal.remote(os.getpid).options(**nodes.on(1)).remote(), timeout=PATIENCE_S)


@pytest.mark.parametrize("victim", ["node", "template", "both"])
def test_a_template_that_nobody_has_needed_does_its_duty(cluster, victim):
    node = cluster.worker_nodes[0]
    session, template = node._process.session.directory, processes(node).template()
    assert sleeps(node)
    if victim in ("template", "both"):
        os.kill(template, signal.SIGKILL)
    if victim in ("node", "both"):
        os.kill(node._process.pid, signal.SIGKILL)
    if victim == "template":
        wait_for(lambda: processes(node).template() not in (0, template), PATIENCE_S, "another template")
        shoal.init(address=cluster.address)
        assert shoal.get(shoal.remote(os.getpid).options(resources={"n1": 1}).remote(), timeout=PATIENCE_S)
    else:
        wait_for(lambda: not is_running(node._process.pid, 0), PATIENCE_S, "the end of the node")
    if victim == "node":
        wait_for(lambda: not (session / "token").exists(), PATIENCE_S, "the end of its files")
