"""A whole cluster, its tables in etcd: the leader's machine is gone, and the program goes on with the standby."""

from __future__ import annotations

import os
import signal

import pytest
from etcd_server import SAFETY_S, unique_prefix

import shoal
from shoal._base import runtime as holder
from shoal._base.storage_place import read_storage_place
from shoal._core.process.options import ControlOptions
from shoal._core.process.start import start_control_store
from shoal.testing import wait_for
from tests.cluster.members import PATIENCE_S, Census, Member
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


def test_a_standby_that_nobody_was_told_of_is_found_when_it_leads(etcd):
    """The leader dies before it tells its nodes: the one that takes over looks for them."""
    place = read_storage_place(etcd.url + unique_prefix(), {})
    with many_nodes(2, storage=place, leader_lease_s=2.0) as nodes:
        member = Member.options(name="m", lifetime="detached").remote(0, os.devnull)
        before = shoal.get(member.who.remote())
        os.kill(nodes.control.pid, signal.SIGSTOP)
        standby = start_control_store(ControlOptions(storage=place, standby=True, settings=nodes.settings), nodes.token)
        nodes.standbys.append(standby)
        assert standby.ready.control_address not in holder.current().core._control_addresses.all()
        os.kill(nodes.control.pid, signal.SIGKILL)
        assert shoal.get(shoal.get_actor("m").who.remote(), timeout=PATIENCE_S) == before
        later = Member.options(name="later", **nodes.on(1)).remote(1, os.devnull)
        assert shoal.get(later.who.remote(), timeout=PATIENCE_S)
        assert sum(node["Alive"] for node in shoal.nodes()) == len(shoal.nodes()) == 2, "no node was given up"
        shoal.kill(member)
