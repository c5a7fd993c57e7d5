"""Nodes that cannot be dialled: they are called back, and where neither of two can dial the other, they meet at a third.

head       a machine that all can dial, with the control store
open       another one
one, two   each behind a router of its own; the same address and the same port
"""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal._core.process.session import read_record
from shoal.testing import wait_for
from tests.faults.namespaces import namespaces, needs_routers
from tests.faults.test_network_trust import SMALL, Shell
from tests.faults.test_partitions import PATIENCE_S, Driver

pytestmark = [needs_routers, pytest.mark.cluster, pytest.mark.timeout(400)]

#: Of every node, so that what is behind one router and what is behind another differ in nothing.
PORT = "7100"

#: What a driver can be asked to do.
WORK = """
import shoal

def on(name):
    return {"resources": {name: 0.001}, "num_cpus": 0}

@shoal.remote
def make(nbytes):
    return bytes(nbytes - 1) + b"x"

@shoal.remote
def check(data):
    return len(data), data[-1:]

@shoal.remote
class Keeper:
    def __init__(self):
        self.kept = []

    def keep(self, data):
        self.kept.append(len(data))
        return self.kept, bytes(len(data))

    def ask(self, other, data):
        return shoal.get(other.keep.remote(data), timeout=60)[0]

def move(source, sink, nbytes):
    return shoal.get(check.options(**on(sink)).remote(make.options(**on(source)).remote(nbytes)), timeout=90)

def call(name, other, nbytes):
    here, there = (Keeper.options(**on(where)).remote() for where in (name, other))
    return shoal.get(here.ask.remote(there, b"x" * nbytes), timeout=60), len(shoal.get(here.keep.remote(b"y" * nbytes), timeout=60)[1])

@shoal.remote
def double(number):
    import time
    time.sleep(0.3)
    return 2 * number

def begin(source, sink, count, nbytes):
    "What goes on while somebody dies: tasks, objects, calls of an actor."
    global doubled, checked, called, keeper
    keeper = Keeper.options(max_task_retries=-1, **on(sink)).remote()
    doubled = [double.options(**on(sink)).remote(number) for number in range(count)]
    made = [make.options(**on(sink)).remote(nbytes) for _ in range(count)]
    checked = [check.options(**on(source)).remote(one) for one in made]
    called = [keeper.keep.remote(b"z" * 2000) for _ in range(count)]
    return shoal.get(doubled[0], timeout=60)

def outcome():
    return shoal.get(doubled, timeout=120), shoal.get(checked, timeout=120), [len(data) for _, data in shoal.get(called, timeout=120)]

def nodes():
    return {name: node["Alive"] for node in shoal.nodes() for name in ("head", "open", "other", "one", "two") if name in node["Resources"]}
"""


@contextmanager
def cluster(directory, names, version="ip4"):
    """Nodes of these names: "head", "open" (can be dialled), "one", "two" (cannot)."""
    kinds = (6,) if version == "ip6" else (4, 6)
    behind = [name for name in names if name in ("one", "two")]
    with namespaces(len(names) - len(behind), inside=len(behind), versions=kinds) as network:
        count = len(names) - len(behind)
        machines = dict(zip(names, [*network.machines[:count], *network.inside], strict=True))
        shells = {name: Shell(machine, directory / name, directory) for name, machine in machines.items()}
        head = getattr(machines["head"], version)
        control = f"[{head}]:6379" if version == "ip6" else f"{head}:6379"
        try:
            for name, shell in shells.items():
                where = ("--head", "--node-ip-address", head) if name == "head" else ("--address", control)
                shell("start", *where, "--node-port", PORT, "--resources", json.dumps({name: 1}), *SMALL)
            for name in behind:  # the point of all this
                with pytest.raises(OSError):
                    machines["head"].call(lambda: socket.create_connection((getattr(machines[name], version), int(PORT)), timeout=1.0))  # noqa: B023
            yield network, shells
        except BaseException:
            for log in sorted(directory.glob("*/**/*.err")):
                print(log, log.read_text()[-5000:], sep="\n")
            raise
        finally:
            for shell in shells.values():
                shell("stop")
            everybody = [*network.machines, *network.inside]
            wait_for(lambda: not any(machine.pids() for machine in everybody), PATIENCE_S, "the end of all processes")


@contextmanager
def driver_on(shell, address=None):
    driver = Driver(shell, address)
    try:
        yield driver
    finally:
        driver.end()


def node_pid(shell):
    """Return the process of the node on a machine."""
    directories = Path(shell.environ["SHOAL_TMPDIR"]).rglob("session.json")
    [pid] = [record.pid for path in directories if (record := read_record(path.parent)) is not None and record.part == "node"]
    return pid


def prepare(driver):
    driver(f"exec({WORK!r}, globals())")
    return driver


MIB = 1 << 20


@pytest.mark.parametrize("version", ["ip4", "ip6"])
def test_a_node_behind_a_router_and_the_head_reach_each_other(own_directory, version):
    with cluster(Path(own_directory) / f"r-{version}", ["head", "one"], version) as (_, shells):
        for home in ("head", "one"):
            with driver_on(shells[home]) as driver:
                prepare(driver)
                for source, sink in (("head", "one"), ("one", "head")):
                    for nbytes in (1024, 64 * MIB):
                        assert driver(f"move({source!r}, {sink!r}, {nbytes})") == (nbytes, b"x")
                    assert driver(f"call({source!r}, {sink!r}, 2000)") == ([2000], 2000)
                assert driver("nodes()") == {"head": True, "one": True}


def test_two_nodes_behind_different_routers_reach_each_other(own_directory):
    with cluster(Path(own_directory), ["head", "one", "two"]) as (_, shells), driver_on(shells["one"]) as driver:
        prepare(driver)
        for source, sink in (("one", "two"), ("two", "one")):
            for nbytes in (1024, 64 * MIB):
                assert driver(f"move({source!r}, {sink!r}, {nbytes})") == (nbytes, b"x")
            assert driver(f"call({source!r}, {sink!r}, 2000)") == ([2000], 2000)
        assert driver("nodes()") == {"head": True, "one": True, "two": True}


def test_the_node_where_two_others_meet_is_killed_while_they_work(own_directory):
    with cluster(Path(own_directory), ["head", "open", "one", "two"]) as (_, shells), driver_on(shells["one"]) as driver:
        prepare(driver)
        assert driver("begin('one', 'two', 40, 4_000_000)") == 0
        os.kill(node_pid(shells["head"]), signal.SIGKILL)
        doubled, checked, called = driver("outcome()")
        assert doubled == [2 * number for number in range(40)]
        assert checked == [(4_000_000, b"x")] * 40
        assert called == [2000] * 40
        assert driver("nodes()") == {"open": True, "one": True, "two": True}
        assert driver("call('two', 'one', 2000)") == ([2000], 2000)


@pytest.mark.parametrize("when", ["before", pytest.param("later", marks=pytest.mark.soak)])
def test_two_nodes_that_live_and_cannot_reach_each_other(own_directory, when):
    with cluster(Path(own_directory), ["head", "open", "other"]) as (network, shells), driver_on(shells["open"]) as driver:
        prepare(driver)
        if when == "later":  # what stands between the two is found to be lost first, as nothing says so
            assert driver("move('other', 'open', 1024)") == (1024, b"x")
        network.cut(*network.machines[1:])
        for source, sink in (("open", "other"), ("other", "open")):
            for nbytes in (1024, 4 * MIB):
                assert driver(f"move({source!r}, {sink!r}, {nbytes})") == (nbytes, b"x")
            assert driver(f"call({source!r}, {sink!r}, 2000)") == ([2000], 2000)
        assert all(driver("nodes()").values())
        network.heal()


def test_machines_with_ipv6_addresses_alone(own_directory):
    with namespaces(2, versions=(6,)) as network:
        head, node = (Shell(machine, Path(own_directory) / f"{machine.number}", Path(own_directory)) for machine in network.machines)
        control = f"[{head.machine.ip6}]:6379"
        try:
            said = head("start", "--head", f"--node-ip-address={head.machine.ip6}", "--resources", '{"head": 1}', *SMALL)
            assert f"--address='{control}'" in said
            node("start", f"--address={control}", "--resources", '{"open": 1}', *SMALL)
            assert f"[{node.machine.ip6}]:" in node("status", f"--address={control}", "-v")
            node("health-check", f"--address={control}")
            for shell in (head, node):
                with driver_on(shell, control) as driver:
                    prepare(driver)
                    assert driver("move('head', 'open', 10_000_000)") == driver("move('open', 'head', 10_000_000)") == (10_000_000, b"x")
                    assert driver("call('head', 'open', 2000)") == driver("call('open', 'head', 2000)") == ([2000], 2000)
                    assert driver("nodes()") == {"head": True, "open": True}
            assert all(":" in host for machine in network.machines for host, _ in machine.listening())
        finally:
            for shell in (node, head):
                shell("stop")
            wait_for(lambda: not any(machine.pids() for machine in network.machines), PATIENCE_S, "the end of all processes")
