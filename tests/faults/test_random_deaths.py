"""Random deaths under load, and processes that stand still for a while: every result once, and right."""

from __future__ import annotations

import collections
import os
import random
import signal
import threading
import time

import pytest
from meeting import Meeting
from watch import SAFETY_S, wait_for

import shoal
from shoal import exceptions
from shoal._base import processes

pytestmark = pytest.mark.timeout(900)


@shoal.remote(num_cpus=0.25)
def square(number, seconds, log):
    time.sleep(seconds)
    with open(log, "a") as file:
        file.write(f"{number}\n")
    return number, number * number, os.getpid()


class Killer:
    """Kills about a tenth of the workers, each time anew, until it is stopped."""

    def __init__(self, session, period_s, seed):
        self.session, self.period_s, self.draw = session, period_s, random.Random(seed)
        self.killed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop.wait(self.period_s):
            workers = self.session.workers()
            for pid in self.draw.sample(workers, -(-len(workers) // 10)):
                try:
                    os.kill(pid, signal.SIGKILL)
                    self.killed += 1
                except ProcessLookupError:
                    pass

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize(
    ("count", "seconds", "period_s"),
    [pytest.param(4000, 0.001, 0.05, id="short"), pytest.param(5000, 0.09, 0.5, id="a-minute", marks=pytest.mark.soak)],
)
def test_random_kills_lose_no_result_and_repeat_none(cluster, report, tmp_path, count, seconds, period_s):
    log = tmp_path / "runs"
    begin = time.monotonic()
    refs = [square.options(max_retries=-1).remote(number, seconds, log) for number in range(count)]
    left, results = list(refs), []
    with Killer(cluster.session, period_s, seed=7) as killer:
        while left:
            ready, left = shoal.wait(left, num_returns=min(50, len(left)), timeout=120)
            assert ready, "nothing was finished for two minutes"
            results += shoal.get(ready)
    assert sorted(results)[0][0] == 0
    assert [(number, value) for number, value, _ in sorted(results)] == [(number, number * number) for number in range(count)]
    runs = collections.Counter(log.read_text().split())
    repeated = sum(runs.values()) - count
    assert len(runs) == count
    assert 0 <= repeated <= killer.killed  # a kill can make at most the task that ran there run again
    assert killer.killed
    del refs, ready
    report.round(f"{count} results in {time.monotonic() - begin:.0f} s, {killer.killed} kills, {repeated} finished tasks run again")


@pytest.mark.soak
def test_random_kills_of_everything_but_the_head(cluster, report, tmp_path):
    """The template too, and actors that may restart."""

    @shoal.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    class Adder:
        def add(self, a, b):
            return a + b

    adders = [Adder.remote() for _ in range(4)]
    with Killer(cluster.session, 0.3, seed=11) as killer:
        end = time.monotonic() + 30
        templates = rounds = 0
        while time.monotonic() < end:
            refs = [adders[number % 4].add.remote(number, 1) for number in range(100)]
            refs += [square.options(max_retries=-1).remote(number, 0.001, tmp_path / "runs") for number in range(100)]
            rounds += 1
            if rounds % 10 == 0 and (template := cluster.ask()["template"]):
                os.kill(template, signal.SIGKILL)
                templates += 1
            values = shoal.get(refs, timeout=120)
            assert values[:100] == [number + 1 for number in range(100)]
            assert [value[1] for value in values[100:]] == [number * number for number in range(100)]
    for adder in adders:
        shoal.kill(adder)
    del refs
    report.round(f"{200 * rounds} results, {killer.killed} workers and {templates} templates killed")


# --- standing still ---------------------------------------------------------------------------------------


def stand_still(pid, seconds):
    """The fault itself takes time: SIGSTOP, ``seconds``, SIGCONT."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


@shoal.remote(num_cpus=0)
class Log:
    def __init__(self):
        self.calls = []

    def pid(self):
        return os.getpid()

    def add(self, number):
        self.calls.append(number)
        return number

    def all(self):
        return self.calls


def still_s(rounds):
    return 1.0 if len(rounds) == 1 else 3.0


def test_an_actor_that_stands_still_runs_nothing_twice(cluster, rounds, report):
    log = Log.options(max_restarts=3, max_task_retries=3).remote()
    pid = shoal.get(log.pid.remote())
    expected = []
    for number in rounds:
        threading.Thread(target=stand_still, args=(pid, still_s(rounds))).start()
        wait_for(lambda: processes.read_stat(pid).state == "T")
        calls = list(range(100 * number, 100 * number + 100))
        refs = [log.add.remote(call) for call in calls]
        with pytest.raises(exceptions.GetTimeoutError):
            shoal.get(refs[0], timeout=0.3)
        assert shoal.get(refs, timeout=SAFETY_S) == calls
        expected += calls
        assert shoal.get(log.all.remote()) == expected
        assert shoal.get(log.pid.remote()) == pid
        report.round("GetTimeoutError, then all values in order")
    del log, refs


def test_a_task_that_stands_still_runs_once(cluster, rounds, report, tmp_path):
    @shoal.remote
    def run(meeting, path):
        with open(path, "a") as file:
            file.write("x")
        shoal.get(meeting.arrive.remote(os.getpid()))
        return "value"

    meeting = Meeting.remote()
    for number in rounds:
        ref = run.remote(meeting, tmp_path / str(number))
        pid = shoal.get(meeting.wait.remote(number + 1))[number]
        stand_still(pid, still_s(rounds))
        assert shoal.get(ref, timeout=SAFETY_S) == "value"
        assert os.path.getsize(tmp_path / str(number)) == 1
        report.round("value")
    del meeting, ref


@pytest.mark.parametrize("which", ["head", "template"])
def test_a_server_that_stands_still(cluster, rounds, report, which):
    """20 s in `make soak`: calls time out or wait; afterwards everything goes on, and no actor runs twice."""
    log = Log.options(max_restarts=3, max_task_retries=3, name=f"log-{which}").remote()
    shoal.get(log.add.remote(0))
    for number in rounds[:1] if len(rounds) == 1 else rounds[:3]:
        pid = cluster.session.head() if which == "head" else cluster.ask()["template"]
        thread = threading.Thread(target=stand_still, args=(pid, 1.0 if len(rounds) == 1 else 20.0))
        thread.start()
        wait_for(lambda pid=pid: processes.read_stat(pid).state == "T")
        others = [Log.remote() for _ in range(12)]  # more than there are processes in store
        refs = [other.add.remote(1) for other in others]
        with pytest.raises(exceptions.GetTimeoutError):
            shoal.get(refs, timeout=0.5)
        assert shoal.get(log.add.remote(number + 1), timeout=SAFETY_S) == number + 1  # its caller needs no server
        assert shoal.get([other.add.remote(2) for other in others], timeout=60) == [2] * 12
        thread.join()
        assert shoal.get(log.all.remote()) == list(range(number + 2))
        assert shoal.get(others[0].all.remote()) == [1, 2]
        del others, refs
        report.round("GetTimeoutError, then all values")
    del log
