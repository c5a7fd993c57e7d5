"""Sessions do not see each other, and each takes with it all that it brought, however many come after it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import shoal
from shoal.testing import leak_check

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

REPOSITORY = Path(__file__).parents[2]
SESSIONS = 30

OTHER = """
import sys, shoal
context = shoal.init(num_cpus=1, resources={"theirs": 1}, namespace="common", object_store_memory=100 << 20)
@shoal.remote
class Named:
    def who(self):
        return "theirs"
named = Named.options(name="same-name").remote()
def look():
    found = shoal.get_actor("same-name")
    total = shoal.cluster_resources()
    print(shoal.get(found.who.remote()), len(shoal.nodes()), "mine" in total, total["CPU"], context.address_info["session_dir"], flush=True)
look()
for line in sys.stdin:
    look()
shoal.shutdown()
print("ended", flush=True)
"""


@shoal.remote
class Named:
    def who(self):
        return "mine"


@shoal.remote
def double(x):
    return 2 * x


def check(session_dir):
    """This driver's session is whole, and shows nothing of another one."""
    assert shoal.get(shoal.get_actor("same-name", namespace="common").who.remote(), timeout=30) == "mine"
    assert shoal.get([double.remote(i) for i in range(20)], timeout=30) == list(range(0, 40, 2))
    assert len(shoal.nodes()) == 1
    assert "theirs" not in shoal.cluster_resources()
    assert (session_dir / "token").exists()


def test_two_drivers_do_not_see_each_other(fresh_session):
    """Same user, same namespace, same actor name. The end of either leaves the other as it was."""
    context = fresh_session(num_cpus=2, resources={"mine": 1})
    session_dir = Path(context.address_info["session_dir"])
    keep = Named.options(name="same-name", namespace="common").remote()
    with subprocess.Popen(
        [sys.executable, "-u", "-c", OTHER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as other:  # fmt: skip
        try:
            first = other.stdout.readline().split()
            assert first[:4] == ["theirs", "1", "False", "1.0"]
            theirs = Path(first[4]).resolve()
            assert theirs != session_dir.resolve()
            check(session_dir)
            other.stdin.write("again\n")
            other.stdin.flush()
            assert other.stdout.readline().split() == first
            out, _ = other.communicate(timeout=30)
            assert out.split() == ["ended"]
            assert other.returncode == 0
            assert [path.name for path in theirs.iterdir()] == ["logs"]
        finally:
            if other.poll() is None:
                other.kill()
    check(session_dir)
    del keep


def test_the_other_driver_goes_on_when_this_one_ends():
    with subprocess.Popen(
        [sys.executable, "-u", "-c", OTHER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as other:  # fmt: skip
        try:
            first = other.stdout.readline()
            for _ in range(2):
                with shoal.init(num_cpus=1, object_store_memory=100 << 20):
                    assert shoal.get(double.remote(1), timeout=30) == 2
                other.stdin.write("again\n")
                other.stdin.flush()
                assert other.stdout.readline() == first
            assert other.communicate(timeout=30)[0].split() == ["ended"]
        finally:
            if other.poll() is None:
                other.kill()


def holdings():
    """Descriptors, threads and memory maps of this process."""
    with open("/proc/self/maps") as file:
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task")), sum(1 for _ in file)


def one_session():
    with shoal.init(num_cpus=1, object_store_memory=100 << 20):
        assert shoal.get(double.remote(21), timeout=30) == 42
        large = shoal.get(shoal.put(bytes(1 << 20)))
        assert len(large) == 1 << 20
        actor = Named.remote()
        assert shoal.get(actor.who.remote(), timeout=30) == "mine"
        assert actor.who.remote().future().result(30) == "mine"


def test_many_sessions_in_a_row_leave_nothing():
    command = [sys.executable, "-c", "from tests.cluster.test_sessions_side_by_side import many_sessions; many_sessions()"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=170, check=False)
    assert answer.returncode == 0, answer.stderr


def many_sessions():
    """After a few for warm-up, the process holds as many descriptors and threads as before, and no more maps than the allocator makes.

    A process of its own: what earlier tests have left to the garbage collector goes when that pleases.
    """
    for _ in range(3):
        one_session()
    before = holdings()
    with leak_check():
        for _ in range(SESSIONS):
            one_session()
    after = holdings()
    assert after[:3] == before[:3]
    assert after[3] - before[3] < SESSIONS, "less than one map per session: the allocator's own"
