"""Whichever process of a session is killed, nothing of it stays behind, and a driver that lives on is told clearly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from shoal._base import processes

pytestmark = pytest.mark.timeout(60)

GONE_S = 2.0

BEGIN = """
import os, signal, sys, time
import shoal
context = shoal.init(num_cpus=2, object_store_memory=100 << 20)
@shoal.remote
def pid():
    return os.getpid()
@shoal.remote
def nap(seconds):
    time.sleep(seconds)
    return "slept"
def say(*words):
    print(*words, flush=True)
worker = shoal.get(pid.remote())
say(context.address_info["session_dir"])
"""


def wait_for(condition, timeout_s=10.0, what="the condition"):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.01)
    return found


class Driver:
    """A driver in a process of its own, and the session it started."""

    def __init__(self, code, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", BEGIN + textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        self.session_dir = Path(line)

    def line(self):
        return self.process.stdout.readline().strip()

    def members(self):
        return [
            found
            for found in processes.iter_stats()
            if found.state != "Z" and processes.mark_of(found.pid, processes.SESSION_MARK) == self.session_dir.name
        ]

    def head(self):
        # The process whose parent is not of the session, and which has children in it.
        found = self.members()
        parents = {one.ppid for one in found}
        [head] = [one.pid for one in found if one.pid in parents and self._mark(one) in ("", processes.NO_WORKER)]
        return head

    def template(self):
        head = self.head()
        [template] = [one.pid for one in self.members() if one.pid != head and self._mark(one) in ("", processes.NO_WORKER)]
        return template

    def workers(self):
        return [one.pid for one in self.members() if self._mark(one) not in ("", processes.NO_WORKER)]

    def _mark(self, stat):
        return processes.mark_of(stat.pid, processes.WORKER_MARK)

    def assert_nothing_left(self, within_s=GONE_S):
        begin = time.monotonic()
        wait_for(lambda: not self.members(), within_s, "the end of all processes")
        wait_for(lambda: [one.name for one in self.session_dir.iterdir()] == ["logs"], within_s, "the removal of the files")
        assert time.monotonic() - begin < within_s
        assert list((self.session_dir / "logs").iterdir())


@pytest.fixture
def start():
    drivers = []

    def begin(code, **environment):
        drivers.append(Driver(code, **environment))
        return drivers[-1]

    yield begin
    for driver in drivers:
        if driver.process.poll() is None:
            driver.process.kill()
        driver.process.wait()
        driver.process.stdout.close()
        driver.process.stderr.close()
        driver.assert_nothing_left(10)


def test_a_killed_driver_leaves_nothing(start):
    driver = start("refs = [nap.remote(60) for _ in range(5)]; say('go'); time.sleep(60)")
    assert driver.line() == "go"
    driver.process.kill()
    driver.process.wait()
    driver.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_ended_by_a_signal_leaves_nothing(start, number):
    driver = start("refs = [nap.remote(60) for _ in range(5)]; say('go'); time.sleep(60)")
    assert driver.line() == "go"
    driver.process.send_signal(number)
    driver.process.wait(10)
    driver.assert_nothing_left()


def test_a_killed_head_ends_everything_and_the_driver_is_told(start):
    driver = start(
        """
        ref = nap.remote(60)
        say("go")
        begin = time.monotonic()
        try:
            shoal.get(ref, timeout=20)
        except Exception as error:
            say(type(error).__name__, time.monotonic() - begin < 5)
        for again in (lambda: shoal.get(nap.remote(0), timeout=10), lambda: shoal.put(bytes(1 << 20)), shoal.cluster_resources):
            try:
                again()
                say("no error")
            except Exception as error:
                say("error", "ended" in str(error) or "gone" in str(error), type(error).__name__, str(error)[:200].replace(chr(10), " "))
        shoal.shutdown()
        shoal.init(num_cpus=1)
        say(shoal.get(nap.remote(0), timeout=10))
        shoal.shutdown()
        """
    )
    assert driver.line() == "go"
    time.sleep(0.3)
    os.kill(driver.head(), signal.SIGKILL)
    assert driver.line() == "LocalRayletDiedError True"
    for _ in range(3):
        assert (line := driver.line()).startswith("error True"), line
    assert driver.line() == "slept"
    driver.assert_nothing_left()
    assert driver.process.wait(10) == 0


def test_a_killed_template_is_replaced_and_running_workers_go_on(start):
    driver = start(
        """
        @shoal.remote(max_calls=1)
        def leave():
            return os.getpid()
        ref = nap.remote(1)
        say("go")
        say(shoal.get(ref, timeout=10))
        say(len(set(shoal.get([leave.remote() for _ in range(8)], timeout=20))))
        """
    )
    assert driver.line() == "go"
    time.sleep(0.3)
    os.kill(driver.template(), signal.SIGKILL)
    assert driver.line() == "slept"
    assert driver.line() == "8"
    assert driver.process.wait(10) == 0
    driver.assert_nothing_left()


def test_killed_idle_workers_are_not_missed(start):
    driver = start(
        """
        time.sleep(0.2)
        say("go")
        time.sleep(0.5)
        say(shoal.get([nap.remote(0.01) for _ in range(50)], timeout=10) == ["slept"] * 50)
        """
    )
    assert driver.line() == "go"
    for pid in driver.workers():
        os.kill(pid, signal.SIGKILL)
    assert driver.line() == "True"
    assert driver.process.wait(10) == 0


def test_what_a_task_started_ends_with_its_worker(start):
    driver = start(
        """
        @shoal.remote(max_retries=0)
        def litter():
            import subprocess, threading
            child = subprocess.Popen(["sleep", "100"])
            threading.Thread(target=time.sleep, args=(100,)).start()
            if (forked := os.fork()) == 0:
                time.sleep(100)
                os._exit(0)
            return os.getpid(), child.pid, forked
        say(*shoal.get(litter.remote()))
        time.sleep(60)
        """
    )
    worker, *children = map(int, driver.line().split())
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not any(processes.is_running(pid) for pid in children), GONE_S, "the end of the children")


def test_a_memory_hog_dies_with_its_usage_named(start):
    with open("/proc/meminfo") as file:
        facts = {line.split(":")[0]: int(line.split()[1]) for line in file}
    used = 1 - facts["MemAvailable"] / facts["MemTotal"]
    limit = used + 600 * 1024 / facts["MemTotal"]
    driver = start(
        """
        @shoal.remote(max_retries=0)
        def hog():
            kept = []
            while True:
                kept.append(bytearray(b"x" * (10 << 20)))
                time.sleep(0.005)
                if len(kept) > 300:
                    return "survived"
        neighbour = nap.remote(3)
        try:
            say(shoal.get(hog.remote(), timeout=30))
        except shoal.exceptions.OutOfMemoryError as error:
            say("OutOfMemoryError", "hog" in str(error), " MB" in str(error) or " GB" in str(error))
        except Exception as error:
            say(type(error).__name__, str(error)[:300].replace(chr(10), " "))
        say(shoal.get(neighbour, timeout=10))
        """,
        SHOAL_MEMORY_USAGE_THRESHOLD=str(limit),
        SHOAL_MEMORY_MONITOR_S="0.05",
    )
    assert driver.line() == "OutOfMemoryError True True"
    assert driver.line() == "slept"
