"""What a worker has started, or has taken, ends with it: subprocesses, daemons, memory."""

from __future__ import annotations

import os
import signal
import time

import pytest
from watch import wait_for

from shoal._base import processes

pytestmark = pytest.mark.timeout(900)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def test_what_a_task_started_ends_with_its_worker(start, rounds, report):
    """A subprocess in its group, and a daemon that has left it."""
    for _ in rounds:
        driver = start(
            """
            meeting = Meeting.remote()
            ref = litter.options(max_retries=0).remote(meeting)
            say(*shoal.get(meeting.wait.remote(3)))
            attempt("get", lambda: shoal.get(ref))
            sys.stdin.read()
            """
        )
        worker, *children = map(int, driver.line().split())
        assert all(processes.is_running(pid) for pid in children)
        kill(worker)
        begin = time.monotonic()
        seen = driver.hear("get raised WorkerCrashedError")
        wait_for(lambda pids=children: not any(processes.is_running(pid) for pid in pids), what="the end of the children")
        report.round(seen[:100], time.monotonic() - begin)
        driver.go_on()
        assert driver.process.wait(20) == 0


def test_a_worker_that_leaves_by_sys_exit_takes_what_it_started_along(start, rounds, report):
    for _ in rounds:
        driver = start(
            """
            @shoal.remote(max_retries=0)
            def leave():
                child = subprocess.Popen(["sleep", "1000"])
                shoal.get(meeting.arrive.remote(child.pid))
                sys.exit(3)
            meeting = Meeting.remote()
            ref = leave.remote()
            say(*shoal.get(meeting.wait.remote(1)))
            attempt("get", lambda: shoal.get(ref))
            sys.stdin.read()
            """
        )
        child = int(driver.line())
        begin = time.monotonic()
        seen = driver.hear("sys.exit(3) was called in function leave")
        wait_for(lambda pid=child: not processes.is_running(pid), what="the end of the child")
        report.round(seen[:100], time.monotonic() - begin)
        driver.go_on()
        assert driver.process.wait(20) == 0


def test_a_memory_hog_dies_with_its_usage_named(start, rounds, report):
    """The head kills it before the kernel has to choose; its neighbour lives."""
    with open("/proc/meminfo") as file:
        facts = {line.split(":")[0]: int(line.split()[1]) for line in file}
    limit = 1 - facts["MemAvailable"] / facts["MemTotal"] + 600 * 1024 / facts["MemTotal"]
    for _ in rounds:
        driver = start(
            """
            @shoal.remote(max_retries=0)
            def hog():
                kept = []
                while len(kept) < 300:
                    kept.append(bytearray(b"x" * (10 << 20)))
                    time.sleep(0.005)
                return "survived"
            @shoal.remote
            def neighbour(meeting):
                shoal.get(meeting.wait.remote(1))
                return "lived"
            meeting = Meeting.remote()
            near = neighbour.remote(meeting)
            attempt("hog", lambda: shoal.get(hog.remote(), timeout=60))
            meeting.arrive.remote("over")
            attempt("neighbour", lambda: shoal.get(near, timeout=20))
            """,
            environment={"SHOAL_MEMORY_USAGE_THRESHOLD": str(limit), "SHOAL_MEMORY_MONITOR_S": "0.05"},
        )
        seen = driver.hear("hog raised OutOfMemoryError")
        assert "hog" in seen
        assert " MiB" in seen or " GiB" in seen or " MB" in seen or " GB" in seen, seen
        driver.hear("neighbour gave lived")
        report.round(seen[:100])
