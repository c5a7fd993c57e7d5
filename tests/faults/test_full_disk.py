"""A disk without room: what needs it waits or is refused with words, all else goes on, and nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import shoal
from shoal._base import runtime as holder
from shoal._core.wire.messages import KvGet, KvPut
from shoal.cluster_utils import Cluster
from shoal.exceptions import GetTimeoutError, OutOfDiskError
from shoal.testing import leak_check, wait_for
from tests.cluster.nodes import many_nodes

MIB = 1 << 20
PATIENCE_S = 60.0


def _why_not() -> str:
    """Return why no small disk can be made here, "" if one can."""
    if os.geteuid() != 0:
        return "a small disk (tmpfs) needs root"
    path = tempfile.mkdtemp(prefix="shoal-disk-", dir="/tmp")
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, text=True)
        if mounted.returncode:
            return f"no small disk (tmpfs) can be mounted here: {mounted.stderr.strip()}"
        subprocess.run(["umount", path], check=True)
        return ""
    finally:
        os.rmdir(path)


_WHY_NOT = _why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180), pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)]


class SmallDisk:
    """A disk of its own, of 24 MiB."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="shoal-disk-", dir="/tmp")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", self.path], check=True)
        self._ballast = os.path.join(self.path, "ballast")

    def fill(self):
        with open(self._ballast, "ab", buffering=0) as file:
            for piece in (MIB, 4096):
                while True:
                    try:
                        if file.write(b"x" * piece) < piece:
                            break
                    except OSError:
                        break

    def free(self):
        os.unlink(self._ballast)

    def close(self):
        subprocess.run(["umount", "-l", self.path], check=True)
        shutil.rmtree(self.path)


@pytest.fixture
def disk():
    made = SmallDisk()
    yield made
    made.close()


@shoal.remote(num_cpus=0)
class Counting:
    def __init__(self):
        self.calls = 0

    def add(self):
        self.calls += 1
        return self.calls


@shoal.remote
def square(number):
    print("x" * 1000)
    return number * number


def put(number, timeout_s=PATIENCE_S):
    return holder.current().request_control_store(KvPut(0, "tests", b"k%d" % number, b"v" * (MIB // 4)), timeout_s)


def stored(number):
    return holder.current().request_control_store(KvGet(0, "tests", b"k%d" % number)).value is not None


def test_the_disk_of_the_control_store(disk):
    with many_nodes(2, control_dir=disk.path, node_timeout_s=2.0) as nodes, ThreadPoolExecutor(2) as pool:
        before = Counting.options(name="before", lifetime="detached", **nodes.on(1)).remote()
        assert shoal.get(before.add.remote(), timeout=PATIENCE_S) == 1
        assert shoal.get([square.options(**nodes.on(index)).remote(3) for index in (0, 1)], timeout=PATIENCE_S) == [9, 9]
        put(0)
        living = nodes.living()
        disk.fill()
        caught = pool.submit(put, 1)
        refused = wait_for(_refusal, PATIENCE_S, "a refusal")
        assert "Nothing of this request was done" in refused
        with pytest.raises(OutOfDiskError):
            Counting.options(name="refused").remote()
        new = shoal.remote(lambda: "a function that nobody has run before").remote()
        looked_up = pool.submit(shoal.get_actor, "before")
        until, calls = time.monotonic() + 6.0, 1  # thrice the time after which silence is death
        while time.monotonic() < until:
            calls += 1
            assert shoal.get(before.add.remote(), timeout=PATIENCE_S) == calls
            assert shoal.get([square.remote(number) for number in range(50)], timeout=PATIENCE_S) == [number**2 for number in range(50)]
        for waits in (caught, looked_up):
            assert not waits.done(), "it was begun: it waits for room"
        disk.free()
        caught.result(PATIENCE_S)
        assert shoal.get(looked_up.result(PATIENCE_S).add.remote(), timeout=PATIENCE_S) == calls + 1
        assert shoal.get(new, timeout=PATIENCE_S) == "a function that nobody has run before"
        after = wait_for(_created, PATIENCE_S, "room for an actor")
        assert shoal.get(after.add.remote(), timeout=PATIENCE_S) == 1
        assert nodes.living() == living
        nodes.kill_control()
        nodes.restart_control()
        assert stored(0)
        assert stored(1)
        assert set(shoal.util.list_named_actors()) == {"before", "after"}
        assert shoal.get(shoal.get_actor("before").add.remote(), timeout=PATIENCE_S) == calls + 2
        shoal.kill(before)


def _refusal():
    try:
        put(2, 0.5)
    except OutOfDiskError as error:
        return str(error)
    except GetTimeoutError:  # it came in the turn in which the disk was found to be full
        pass
    return ""


def _created():
    try:
        return Counting.options(name="after").remote()
    except OutOfDiskError:
        return None


@shoal.remote(num_cpus=0)
def fill_the_store(count):
    """Put more than the store and its disk can hold; return what came of it, and how many could be read back."""
    refs, said = [], ""
    try:
        refs.extend(shoal.put(np.full(10 * MIB, number, dtype=np.uint8)) for number in range(count))
    except (OutOfDiskError, shoal.exceptions.ObjectStoreFullError) as error:
        said = f"{type(error).__name__}: {error}"
    right = [bool(shoal.get(ref)[0] == number) for number, ref in enumerate(refs)]
    return said, len(refs), all(right)


def test_the_disk_of_a_node(disk):
    """Its logs, its sockets and what it spills are there."""
    with leak_check():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        try:
            cluster.add_node(num_cpus=2, resources={"small": 1}, temp_dir=disk.path, object_store_memory=80 * MIB)
            shoal.init(address=cluster.address, log_to_driver=False)
            there = {"resources": {"small": 0.001}}
            assert shoal.get(square.options(**there).remote(3), timeout=PATIENCE_S) == 9
            disk.fill()
            said, count, right = shoal.get(fill_the_store.options(**there).remote(20), timeout=PATIENCE_S)
            assert said.startswith("OutOfDiskError")
            assert disk.path in said
            assert 4 <= count < 20
            assert right, "what was stored is there"
            refs = [square.options(**place).remote(number) for number in range(200) for place in (there, {})]
            assert shoal.get(refs, timeout=PATIENCE_S) == [number**2 for number in range(200) for _ in range(2)]
            actor = Counting.options(**there).remote()
            assert shoal.get(actor.add.remote(), timeout=PATIENCE_S) == 1
            disk.free()
            said, count, right = shoal.get(fill_the_store.options(**there).remote(9), timeout=PATIENCE_S)
            assert (said, count, right) == ("", 9, True), "there is room again"
            assert len([node for node in shoal.nodes() if node["Alive"]]) == 2
            del actor
        finally:
            shoal.shutdown()
            cluster.shutdown()
