"""A whole cluster, its tables in etcd: the leader's machine is gone, and the program goes on with the standby."""

from __future__ import annotations

import os
import signal

import pytest
from etcd_server import SAFETY_S, unique_prefix

import shoal
from shoal._base.storage_place import read_storage_place
from shoal.testing import wait_for
from tests.cluster.members import Census
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


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


def test_a_program_goes_on_when_the_leaders_machine_is_gone(etcd):
    place = read_storage_place(etcd.url + unique_prefix(), {})
    with many_nodes(2, storage=place, leader_lease_s=2.0) as nodes:
        nodes.add_standby()
        before = Counting.options(name="before", **nodes.on(1)).remote()
        _, pid = shoal.get(before.add.remote(), timeout=SAFETY_S)
        leader, kept = nodes.control, [before]
        for takeover in range(3):
            os.kill(leader.pid, signal.SIGKILL)
            # Asked of nobody, answered by whoever takes over.
            during = Counting.options(name=f"during{takeover}", **nodes.on(takeover % 2)).remote()
            kept.append(during)
            assert shoal.get(during.add.remote(), timeout=60)[0] == 1
            assert shoal.get(shoal.get_actor("before").add.remote(), timeout=SAFETY_S) == (takeover + 2, pid), "the same actor, once"
            assert shoal.get([square.remote(number) for number in range(50)], timeout=SAFETY_S) == [number**2 for number in range(50)]
            leader = nodes.standbys[-1]
            nodes.add_standby()
        nodes.add()
        wait_for(lambda: len([node for node in shoal.nodes() if node["Alive"]]) == 3, SAFETY_S, "the node that joined last")
        assert shoal.get(square.options(**nodes.on(2)).remote(5), timeout=SAFETY_S) == 25
        assert set(shoal.util.list_named_actors()) == {"before", "during0", "during1", "during2"}


@pytest.mark.parametrize(
    ("total", "takeovers"),
    [pytest.param(40, 2, id="few"), pytest.param(500, 20, id="500-detached", marks=[pytest.mark.soak, pytest.mark.timeout(1200)])],
)
def test_what_is_created_and_looked_up_while_leaders_go_is_there_exactly_once(etcd, tmp_path, total, takeovers):
    place = read_storage_place(etcd.url + unique_prefix(), {})
    with many_nodes(2, storage=place, leader_lease_s=2.0) as nodes:
        nodes.add_standby()
        census, leader = Census(total, tmp_path / "starts", plain=False), nodes.control
        for _ in range(takeovers):
            census.wait_for_progress()
            os.kill(leader.pid, signal.SIGKILL)
            leader = nodes.standbys[-1]
            nodes.add_standby()
        census.check()
        del census
