"""SIGKILL of a worker in each of its states: values after a retry or one clear error, everything given back, the cluster as before."""

from __future__ import annotations

import os
import signal
import time

import pytest
from meeting import Meeting, first_arrival
from watch import SAFETY_S, wait_for

import shoal
from shoal import exceptions
from shoal._base import processes

pytestmark = pytest.mark.timeout(900)

MIB = 1 << 20


def kill(pid):
    os.kill(pid, signal.SIGKILL)


@shoal.remote
def nothing():
    return os.getpid()


def test_idle(cluster, rounds, report):
    for _ in rounds:
        shoal.get([nothing.remote() for _ in range(4)])
        facts = wait_for(lambda: facts if not (facts := cluster.ask())["leases"] else None)
        victims = [int(pid) for pid, state in facts["workers"].items() if state in ("IDLE", "FRESH")]
        assert victims
        for pid in victims:
            kill(pid)
        assert not set(shoal.get([nothing.remote() for _ in range(20)], timeout=SAFETY_S)) & set(victims)
        cluster.settle()
        report.round("values")


@shoal.remote
def run(meeting, path, deaths):
    """Say what number this run is and wait for the end; the run after ``deaths`` ones returns."""
    with open(path, "a") as file:
        file.write("x")
    number = os.path.getsize(path)
    if number <= deaths:
        print(f"last words of run {number}", flush=True)
        shoal.get(meeting.arrive.remote(os.getpid()))
        time.sleep(1000)
    return number


@pytest.mark.parametrize(("retries", "deaths"), [(3, 1), (2, 2), (0, 1), (1, 2)])
def test_running(cluster, meeting, rounds, report, tmp_path, retries, deaths):
    arrived = 0
    for number in rounds:
        ref = run.options(max_retries=retries).remote(meeting, tmp_path / str(number), deaths)
        for _ in range(deaths):
            arrived += 1
            kill(first_arrival(meeting, arrived))
        if deaths <= retries:
            assert shoal.get(ref, timeout=SAFETY_S) == deaths + 1
            report.round("value")
        else:
            with pytest.raises(exceptions.WorkerCrashedError) as caught:
                shoal.get(ref, timeout=SAFETY_S)
            text = str(caught.value)
            for part in (f"attempt {deaths} of {deaths}", "signal 9 (SIGKILL)", f"last words of run {deaths}", "max_retries", "task"):
                assert part in text, text
            report.round(text.splitlines()[0][:100])
        assert os.path.getsize(tmp_path / str(number)) == min(deaths + 1, retries + 1)
        del ref
        cluster.settle()


@shoal.remote
def parent(meeting, path):
    """Wait for a child that never ends, until the second run."""
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) > 1:
        return "value"
    child = run.remote(meeting, f"{path}-child", 99)
    shoal.get(meeting.wait.remote(1))
    meeting.arrive.remote(os.getpid())
    return shoal.get(child)


def test_blocked_in_get(cluster, rounds, report, tmp_path):
    """The child that it waits for ends with it: nobody else will ever ask for its result."""
    for number in rounds:
        meeting = Meeting.remote()
        ref = parent.remote(meeting, tmp_path / str(number))
        child, victim = shoal.get(meeting.wait.remote(2), timeout=SAFETY_S)
        kill(victim)
        assert shoal.get(ref, timeout=SAFETY_S) == "value"
        wait_for(lambda pid=child: not processes.is_running(pid), what="the end of the child")
        assert os.path.getsize(tmp_path / f"{number}-child") == 1
        del ref, meeting
        cluster.settle()
        report.round("value; its child ended")


# --- objects ----------------------------------------------------------------------------------------------


@shoal.remote(num_cpus=0)
class Owner:
    """Makes objects that it owns."""

    def pid(self):
        return os.getpid()

    def put(self, size):
        self.ref = shoal.put(b"v" * size)
        return [self.ref]

    def run_task(self, path, size):
        self.ref = make.remote(path, size)
        shoal.wait([self.ref])
        return [self.ref]


@shoal.remote
def make(path, size):
    with open(path, "a") as file:
        file.write("x")
    return b"v" * size


@shoal.remote
def length(data):
    return len(data)


@pytest.mark.parametrize("kind", ["put-small", "put-large", "task-large"])
def test_owner_of_the_only_copy(cluster, rounds, report, tmp_path, kind):
    """Large values lie in the node's memory and outlive their owner; a small one dies with it, which its readers are told."""
    for number in rounds:
        owner = Owner.remote()
        size = 1000 if kind == "put-small" else MIB
        [ref] = shoal.get(owner.run_task.remote(tmp_path / str(number), size) if kind == "task-large" else owner.put.remote(size))
        pid = shoal.get(owner.pid.remote())
        kill(pid)
        if kind == "put-small":
            with pytest.raises(exceptions.OwnerDiedError, match="owne") as caught:
                shoal.get(ref, timeout=SAFETY_S)
            report.round(str(caught.value).splitlines()[0][:100])
        else:
            assert shoal.get(ref, timeout=SAFETY_S) == b"v" * size
            assert shoal.get(length.remote(ref), timeout=SAFETY_S) == size
            report.round("value")
        with pytest.raises(exceptions.ActorDiedError):
            shoal.get(owner.pid.remote(), timeout=SAFETY_S)
        del ref, owner
        cluster.settle()


@pytest.mark.parametrize("kind", ["put", "result", "result-without-retries"])
def test_the_only_copy_is_lost(cluster, rounds, report, tmp_path, kind):
    """Worker and memory are gone together, as with a node: a result is computed again, a put value is an error."""
    for number in rounds:
        if kind == "put":
            ref = shoal.put(b"v" * MIB)
        else:
            ref = make.options(max_retries=0 if "without" in kind else 3).remote(tmp_path / str(number), MIB)
            shoal.wait([ref])
        for pid, state in cluster.ask()["workers"].items():
            if state != "ENDING" and processes.is_running(int(pid)):
                kill(int(pid))
        cluster.ask(lose=ref.hex())
        if kind == "result":
            assert shoal.get(length.remote(ref), timeout=SAFETY_S) == MIB
            assert shoal.get(ref, timeout=SAFETY_S) == b"v" * MIB
            assert os.path.getsize(tmp_path / str(number)) == 2
            report.round("value, computed again")
        else:
            with pytest.raises(exceptions.ObjectLostError, match="put" if kind == "put" else "max_retries") as caught:
                shoal.get(ref, timeout=SAFETY_S)
            report.round(f"{type(caught.value).__name__}: {str(caught.value)[:60]}...")
            del caught
        del ref
        cluster.settle()
