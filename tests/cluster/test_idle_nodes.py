"""Nodes of a cluster that have nothing to do: no workers, and a template that is a bare interpreter until one is asked for."""

from __future__ import annotations

import os
import signal

import pytest

import shoal
from shoal._base.processes import is_running
from shoal.testing import wait_for
from shoal.testing.session_processes import SessionProcesses
from tests.cluster.nodes import Nodes, many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

PATIENCE_S = 30


def processes(nodes: Nodes, index: int) -> SessionProcesses:
    return SessionProcesses(nodes.nodes[index].session.name)


def is_awake(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline") as file:
        return "not needed yet" not in file.read()


def test_workers_are_there_where_somebody_may_ask_for_them():
    with many_nodes(3) as nodes:
        wait_for(lambda: len(processes(nodes, 0).workers()) == 2, PATIENCE_S, "the reserve of the driver's node")
        assert [len(processes(nodes, index).workers()) for index in (1, 2)] == [0, 0]
        sleeping = [processes(nodes, index).template() for index in (1, 2)]
        assert not any(map(is_awake, sleeping))
        ran_in = shoal.get(shoal.remote(os.getpid).options(**nodes.on(1)).remote())
        wait_for(lambda: len(processes(nodes, 1).workers()) == 3, PATIENCE_S, "the reserve beside the worker that has a job now")
        assert ran_in in processes(nodes, 1).workers()
        assert processes(nodes, 1).template() == sleeping[0], "the same process, which has become one that forks"
        assert is_awake(sleeping[0])
        assert not processes(nodes, 2).workers()


def test_the_reserve_goes_when_nothing_has_run_for_long():
    with many_nodes(2, idle_worker_s=0.05) as nodes:  # "long" is 30 times that
        shoal.get(shoal.remote(os.getpid).options(**nodes.on(1)).remote())
        wait_for(lambda: not processes(nodes, 1).workers(), PATIENCE_S, "the end of the reserve")
        assert shoal.get(shoal.remote(os.getpid).options(**nodes.on(1)).remote(), timeout=PATIENCE_S)


@pytest.mark.parametrize("victim", ["node", "template", "both"])
def test_a_template_that_nobody_has_needed_does_its_duty(victim):
    with many_nodes(2) as nodes:
        node, template = nodes.nodes[1], processes(nodes, 1).template()
        assert not is_awake(template)
        if victim in ("template", "both"):
            os.kill(template, signal.SIGKILL)
        if victim in ("node", "both"):
            nodes.kill(1)
        if victim == "template":
            wait_for(lambda: processes(nodes, 1).template() not in (0, template), PATIENCE_S, "another template")
            assert shoal.get(shoal.remote(os.getpid).options(**nodes.on(1)).remote(), timeout=PATIENCE_S)
        else:
            wait_for(lambda: not is_running(node.pid, 0), PATIENCE_S, "the end of the node")
        if victim == "node":
            wait_for(lambda: not (node.session.directory / "token").exists(), PATIENCE_S, "the end of its files")
