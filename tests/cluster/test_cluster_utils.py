"""``shoal.cluster_utils.Cluster`` and ``init(address=...)``: several nodes on this machine, joined, killed and ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import shoal
from shoal.cluster_utils import Cluster
from shoal.testing import leak_check, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

HEAD = {"num_cpus": 1, "object_store_memory": 80 << 20}
SMALL = {"object_store_memory": 80 << 20}


@shoal.remote
def where():
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
def variable(name):
    return os.environ.get(name)


@pytest.fixture
def cluster():
    with leak_check():
        one = Cluster(initialize_head=True, head_node_args=HEAD)
        yield one
        shoal.shutdown()
        one.shutdown()


def test_nodes_come_and_go(cluster):
    second = cluster.add_node(num_cpus=2, resources={"two": 1}, labels={"zone": "b"}, env_vars={"MINE": "here"}, **SMALL)
    cluster.connect(namespace="mine")
    assert shoal.get_runtime_context().namespace == "mine"
    assert shoal.get_runtime_context().gcs_address.endswith(cluster.address)
    assert {node["NodeID"] for node in shoal.nodes()} == {node.node_id for node in cluster.list_all_nodes()}
    assert shoal.cluster_resources()["CPU"] == 3
    on_second = {"resources": {"two": 0.1}}
    assert shoal.get(where.options(**on_second).remote()) == second.node_id
    assert shoal.get(variable.options(**on_second).remote("MINE")) == "here"
    assert next(node["Labels"]["zone"] for node in shoal.nodes() if node["NodeID"] == second.node_id) == "b"
    assert (cluster.head_node.head, second.head, cluster.worker_nodes) == (True, False, [second])
    cluster.remove_node(second)
    assert [node["NodeID"] for node in shoal.nodes() if node["Alive"]] == [cluster.head_node.node_id]
    assert not second.is_alive()
    assert cluster.remaining_processes_alive()
    third = cluster.add_node(num_cpus=1, **SMALL)
    cluster.wait_for_nodes()
    cluster.remove_node(third, allow_graceful=False)
    assert cluster.worker_nodes == []


def test_a_node_that_is_killed_is_noticed(cluster):
    node = cluster.add_node(**SMALL)
    node.kill()
    wait_for(lambda: not node.is_alive(), 10, "the end of the node")
    cluster.wait_for_nodes(10)
    assert not cluster.remaining_processes_alive()


def test_the_drivers_node_is_not_removed(cluster):
    other = cluster.add_node(**SMALL)
    shoal.init(address=cluster.address)
    with pytest.raises(ValueError, match="This process is a driver on"):
        cluster.remove_node(cluster.head_node)
    cluster.remove_node(other)
    with pytest.raises(ValueError, match="not a node of this cluster"):
        cluster.remove_node(other)


def test_arguments(cluster):
    with pytest.raises(TypeError, match=r"no argument 'num_cpu'.*num_cpus"):
        cluster.add_node(num_cpu=1)
    with pytest.raises(TypeError, match="env_vars"):
        cluster.add_node(env_vars={"A": 1})
    with pytest.raises(ValueError, match="object_store_memory"):
        cluster.add_node(object_store_memory=1)
    with pytest.raises(ValueError, match="head_node_args"):
        Cluster(head_node_args={"num_cpus": 1})
    with pytest.raises(RuntimeError, match="no node yet"):
        _ = Cluster().address
    with pytest.raises(RuntimeError, match="initialize_head"):
        Cluster(connect=True)
    assert len(cluster.list_all_nodes()) == 1


NODE_ARGUMENTS = [
    {"num_cpus": 1}, {"num_gpus": 0}, {"resources": {"a": 1}}, {"labels": {"a": "b"}}, {"object_store_memory": 80 << 20},
    {"_system_config": {"a": 1}}, {"_node_name": "x"},
]  # fmt: skip


@pytest.mark.parametrize("argument", NODE_ARGUMENTS)
def test_who_joins_describes_no_node(joinable, argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} cannot be given when init\\(\\) joins a cluster"):
        shoal.init(joinable.address, **argument)
    assert not shoal.is_initialized()


@pytest.fixture(scope="module")
def joinable():
    with leak_check():
        one = Cluster(initialize_head=True, head_node_args=HEAD)
        yield one
        one.shutdown()


DRIVER = """
import sys, shoal
context = shoal.init({address!r}, namespace="shared")
@shoal.remote
class Counter:
    def __init__(self): self.n = 0
    def add(self): self.n += 1; return self.n
counter = Counter.options(name="c", lifetime="detached", get_if_exists=True, num_cpus=0).remote()
print(shoal.get(counter.add.remote()), context.address_info["address"], flush=True)
sys.stdin.readline()
"""


def run_driver(address, **environ):
    command = [sys.executable, "-c", DRIVER.format(address=address)]
    return subprocess.run(command, env={**os.environ, **environ}, input="\n", capture_output=True, text=True, timeout=60)


def test_drivers_one_after_the_other_share_the_cluster(cluster):
    forms = [cluster.address, "tcp:" + cluster.address, cluster.address.replace("127.0.0.1", "localhost"), "auto"]
    for number, address in enumerate(forms, 1):
        done = run_driver(address)
        assert done.stdout.split() == [str(number), cluster.address], done.stderr
    done = run_driver(None, RAY_ADDRESS=cluster.address)
    assert done.stdout.split() == [str(len(forms) + 1), cluster.address], done.stderr


def test_without_an_address_a_driver_has_a_session_of_its_own(cluster):
    """Only what was started from a shell is joined unasked: another program's cluster may end at any moment."""
    done = run_driver(None)
    number, address = done.stdout.split()
    assert number == "1"
    assert address != cluster.address


def test_auto_finds_another_drivers_session():
    with leak_check():
        context = shoal.init(num_cpus=1, object_store_memory=80 << 20)
        for address in ("auto", context.address_info["address"]):
            done = run_driver(address)
            assert done.stdout.split()[1] == context.address_info["address"], done.stderr
        assert shoal.get(where.remote()) == context.address_info["node_id"]
        shoal.shutdown()


def test_a_cluster_without_a_node_here_is_told_apart(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_TMPDIR", str(tmp_path))
    monkeypatch.setenv("SHOAL_AUTH_TOKEN", cluster._token.hex())
    with pytest.raises(ConnectionError, match="does not hold this cluster's token"):
        shoal.init(cluster.address)


def test_the_cluster_ends_with_its_process():
    program = """
import os, signal, sys
from shoal.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
node = cluster.add_node(object_store_memory=80 << 20)
cluster.connect()
print("up", flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with leak_check():
        for way, status in (("end", 0), ("kill", -9)):
            done = subprocess.run([sys.executable, "-c", program, way], capture_output=True, text=True, timeout=60)
            assert (done.stdout, done.returncode) == ("up\n", status), done.stderr


OTHER_PYTHON = """
import importlib.util, sys
spec = importlib.util.find_spec("shoal")
spec = importlib.util.spec_from_file_location("shoal._base.version", spec.submodule_search_locations[0] + "/_base/version.py")
version = sys.modules["shoal._base.version"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(version)
version.RELEASE = version.__version__ + " 3.99"
import shoal
shoal.init({address!r})
"""


def test_a_driver_of_another_release_is_told_so(cluster):
    command = [sys.executable, "-c", OTHER_PYTHON.format(address=cluster.address)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ConnectionError: This driver cannot join the cluster. It runs Python 3.99" in done.stderr
