"""However the driver ends, and whenever: nothing of its session stays behind, daemons that its tasks have started included."""

from __future__ import annotations

import os
import signal
import time

import pytest
from watch import Session

from shoal._base import processes

pytestmark = pytest.mark.timeout(900)

#: How the driver ends: code that it runs (or a signal that we send), and the exit status that a shell would see.
ENDS = {
    "killed": (signal.SIGKILL, -signal.SIGKILL),
    "SIGTERM": (signal.SIGTERM, signal.SIGTERM),
    "SIGINT": (signal.SIGINT, -signal.SIGINT),
    "last-line": ("pass", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "unhandled": ("raise ValueError('unhandled')", 1),
    "os._exit": ("os._exit(4)", 4),
    "abort": ("os.abort()", -signal.SIGABRT),
    "shutdown": ("shoal.shutdown()", 0),
    "exec": ("os.execv('/bin/true', ['true'])", 0),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_driver_that_ends_leaves_nothing(start, rounds, report, how):
    """Busy: running tasks with subprocesses and daemons, queued ones, a blocked parent, an actor, stored and spilled objects."""
    end, status = ENDS[how]
    for _ in rounds:
        driver = start(
            f"""
            pids = make_busy()
            say("busy", *pids)
            sys.stdin.read() if {isinstance(end, str)} else time.sleep(1000)
            {end if isinstance(end, str) else ""}
            """,
        )
        driver.hear("busy")
        assert len(driver.session.members()) >= 11
        begin = driver.go_on() if isinstance(end, str) else driver.kill(end)
        took = driver.session.wait_until_gone(begin)
        assert driver.process.wait(10) == status
        report.round(f"exit status {status}", took)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_a_driver_that_waits_for_a_task(start, rounds, report, signal_number):
    for _ in rounds:
        driver = start("refs = make_busy()\nsay('busy')\nshoal.get(kept[2])")
        driver.hear("busy")
        begin = driver.kill(signal_number)
        took = driver.session.wait_until_gone(begin)
        report.round(f"exit status {driver.process.wait(10)}", took)


#: Where in init() the driver is when it is killed: a function that is replaced by one that says so and waits.
MOMENTS = {
    "head-started": "shoal._core.process.start.send_frame",
    "head-has-its-options": "shoal._core.process.start.receive_frame",
    "head-ready": "shoal._core.worker.driver.connect_driver",
    "job-registered": "shoal._core.worker.driver.CoreRuntime",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_driver_killed_during_init_leaves_nothing(start, rounds, report, moment):
    module, _, name = MOMENTS[moment].rpartition(".")
    for _ in rounds:
        driver = start(
            f"""
            import {module} as module
            from shoal._core.process import session
            create = session.create
            def create_and_tell(*args, **kwargs):
                made = create(*args, **kwargs)
                say(made.directory)
                return made
            session.create = create_and_tell
            def wait_here(*args, **kwargs):
                say("there")
                time.sleep(1000)
            module.{name} = wait_here
            shoal.init(**options)
            """,
            init=False,
        )
        driver.session = Session(driver.line())
        driver.hear("there")
        assert driver.session.members()
        took = driver.session.wait_until_gone(driver.kill())
        report.round("nothing", took)


def test_a_driver_killed_before_it_has_a_head_is_cleaned_up_after_by_the_next(start, rounds, report):
    """No process is left that could do it: what lies there is a directory and its token."""
    for _ in rounds:
        driver = start(
            """
            from shoal._core.process import start
            def wait_here(role, session, *args):
                say(session.directory)
                time.sleep(1000)
            start._spawn = wait_here
            shoal.init(**options)
            """,
            init=False,
        )
        session = Session(driver.line())
        driver.kill()
        driver.process.wait()
        assert session.leftovers()
        following = start("shoal.shutdown()")
        assert following.process.wait(20) == 0
        assert not session.leftovers()
        report.round("nothing, once another session has run")


def test_a_driver_killed_while_the_store_spills(start, rounds, report):
    for _ in rounds:
        driver = start(
            """
            gate = observed_head.Gate(context.address_info["session_dir"])
            kept = []
            def fill():
                while True:
                    kept.append(shoal.put(bytes(10 << 20)))
            threading.Thread(target=fill, daemon=True).start()
            gate.wait()
            say("spilling")
            time.sleep(1000)
            """
        )
        driver.hear("spilling")
        assert [path for path in (driver.session.directory / "spill").rglob("*") if path.is_file()]
        took = driver.session.wait_until_gone(driver.kill())  # its end closes the gate's pipes, so the disk thread goes on
        report.round("nothing", took)


def test_a_fork_of_the_driver_keeps_nothing_alive(start, rounds, report):
    """It inherits every descriptor of the driver, the lifeline among them."""
    for _ in rounds:
        driver = start(
            """
            make_busy()
            if (child := os.fork()) == 0:
                time.sleep(1000)
            say(child)
            time.sleep(1000)
            """
        )
        child = int(driver.line())
        memory, driver.session.memory = driver.session.memory, None
        try:
            took = driver.session.wait_until_gone(driver.kill())
            assert processes.is_running(child)
        finally:
            os.kill(child, signal.SIGKILL)
        driver.session.memory = memory  # the fork may have looked at arrays: with it, the memory goes, too
        driver.session.wait_until_gone(time.monotonic())
        report.round("nothing", took)
