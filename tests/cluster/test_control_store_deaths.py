"""The control store dies, and comes back on its tables: nothing that it acknowledged is lost, nothing is done twice."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal.testing import wait_for
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@shoal.remote
def square(number):
    return number * number


@shoal.remote
class Counting:
    def __init__(self):
        self.calls = 0

    def add(self):
        self.calls += 1
        return self.calls, os.getpid()


def test_work_goes_on_without_a_control_store_and_waits_for_it_where_it_must():
    with many_nodes(2) as nodes:
        actor = Counting.options(name="it", **nodes.on(1)).remote()
        before, pid = shoal.get(actor.add.remote(), timeout=30)
        assert shoal.get([square.remote(number) for number in range(20)], timeout=30) == [number * number for number in range(20)]
        nodes.kill_control()
        assert shoal.get([square.remote(number) for number in range(20)], timeout=30) == [number * number for number in range(20)]
        assert shoal.get(actor.add.remote(), timeout=30) == (before + 1, pid)
        called = Counting.options(**nodes.on(1)).remote().add.remote()
        with ThreadPoolExecutor(1) as pool:  # a name is taken when the call returns
            named = pool.submit(Counting.options(name="later", **nodes.on(1)).remote)
            assert shoal.wait([called], timeout=0.5)[0] == []
            assert not named.done()
            nodes.restart_control()
            later = named.result(30)
        assert shoal.get([called, later.add.remote()], timeout=30)[0][0] == 1
        assert shoal.get(shoal.get_actor("it").add.remote(), timeout=30) == (before + 2, pid)
        assert set(shoal.util.list_named_actors()) == {"it", "later"}


def test_a_control_store_that_died_is_started_again_by_the_node_beside_it():
    with many_nodes(2, keep_control=True) as nodes:
        actor = Counting.options(name="it", **nodes.on(1)).remote()
        shoal.get(actor.add.remote(), timeout=30)
        first = nodes.kill_control()
        wait_for(lambda: nodes.control_pid not in (0, first), 30, "the next control store")
        assert shoal.get(shoal.get_actor("it").add.remote(), timeout=30)[0] == 2
