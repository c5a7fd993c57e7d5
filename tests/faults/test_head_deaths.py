"""SIGKILL of the head and of the template, alone and with a neighbour: the driver is told, can start anew, and nothing is left."""

from __future__ import annotations

import os
import signal
import time

import pytest
from watch import wait_for

from shoal._base import processes

pytestmark = pytest.mark.timeout(900)

#: What the driver does when the head is killed: a call that must raise. None: nothing, it waits for a line from us.
STATES = {
    "idle": None,
    "blocked-in-get": "shoal.get(kept[2])",
    "blocked-in-wait": "shoal.get(shoal.wait(kept[2])[0])",
    "blocked-in-put": "put_for_ever()",
    "submitting": "submit_for_ever()",
    "calling-an-actor": "shoal.get(kept[0].wait.remote(1000))",
}

AFTERWARDS = """
handle = globals().get('kept', [None])[0]
attempt('task', lambda: shoal.get(add.remote(1, 1), timeout=20))
attempt('put', lambda: shoal.put(bytes(1 << 20)))
attempt('resources', shoal.cluster_resources)
if handle is not None:
    attempt('actor', lambda: shoal.get(handle.arrive.remote(), timeout=20))
shoal.shutdown()
say('over')
sys.stdin.readline()
again = shoal.init(num_cpus=1, object_store_memory=100 << 20)
say(shoal.get(add.remote(1, 1), timeout=20))
shoal.shutdown()
say(again.address_info['session_dir'], [thread.name for thread in threading.enumerate()], len(os.listdir('/proc/self/fd')) - descriptors)
"""

FOR_EVER = """
def put_for_ever():
    while True:
        shoal.put(bytes(5 << 20))
def submit_for_ever():
    while True:
        shoal.get([add.remote(1, number) for number in range(100)])
import watch
descriptors = watch.Here().descriptors
context = shoal.init(**options)
say(context.address_info['session_dir'])
"""


def hear_of_the_end(driver, state):
    """The driver reads one clear error in every call; returns the error of the call that it was in."""
    seen = driver.hear("call raised LocalRayletDiedError") if state != "idle" else "every later call raises LocalRayletDiedError"
    for what in ("task", "put", "resources") + (() if state == "idle" else ("actor",)):
        line = driver.hear(f"{what} raised LocalRayletDiedError")
        for part in ("head process", "has ended", "head.err", "shoal.init()"):
            assert part in line, line
    return seen[:120]


@pytest.mark.parametrize("state", STATES)
def test_the_head_is_killed(start, rounds, report, state):
    for _ in rounds:
        prepare = "make_busy()" if state != "idle" else "shoal.get(add.remote(1, 1))"
        waits = f"attempt('call', lambda: {STATES[state]})" if state != "idle" else "sys.stdin.readline()"
        driver = start(f"{FOR_EVER}\n{prepare}\nsay('there')\n{waits}\n{AFTERWARDS}", init=False, session=True)
        driver.hear("there")
        head = driver.session.head()
        os.kill(head, signal.SIGKILL)
        begin = time.monotonic()
        took = driver.session.wait_until_gone(begin)
        if state == "idle":
            driver.say()
        seen = hear_of_the_end(driver, state)
        driver.hear("over")
        assert not driver.session.leftovers()
        driver.say()
        driver.hear("2")
        line = driver.line()
        assert "['MainThread'] 0" in line, line
        assert driver.process.wait(20) == 0
        report.round(seen, took)


def test_the_head_is_killed_while_it_spills(start, rounds, report):
    for _ in rounds:
        driver = start(
            """
            gate = observed_head.Gate(context.address_info["session_dir"])
            kept = []
            def fill():
                while True:
                    kept.append(shoal.put(bytes(10 << 20)))
            filler = threading.Thread(target=lambda: attempt("put", fill))
            filler.start()
            gate.wait()
            say("spilling")
            filler.join()
            attempt("get", lambda: shoal.get(kept[0], timeout=20))
            """
        )
        driver.hear("spilling")
        assert [path for path in (driver.session.directory / "spill").rglob("*") if path.is_file()]
        os.kill(driver.session.head(), signal.SIGKILL)
        took = driver.session.wait_until_gone(time.monotonic())
        seen = driver.hear("put raised LocalRayletDiedError")
        driver.hear("get raised LocalRayletDiedError")
        assert driver.process.wait(20) == 0
        report.round(seen[:120], took)


# --- the template -----------------------------------------------------------------------------------------


def test_the_template_is_killed_while_it_is_idle(cluster, rounds, report):
    """Running workers go on; the next ones come from another template."""
    import shoal

    @shoal.remote(max_calls=1)
    def leave():
        return os.getpid()

    for _ in rounds:
        template = cluster.session.template()
        os.kill(template, signal.SIGKILL)
        pids = shoal.get([leave.remote() for _ in range(8)], timeout=20)
        assert len(set(pids)) == 8
        wait_for(lambda old=template: cluster.ask()["template"] not in (0, old), what="a new template")
        cluster.settle()
        report.round("values")


def test_the_template_is_killed_in_a_burst_of_forks(cluster, rounds, report):
    """200 actors are asked for; the template dies when the first few of them are there."""
    import shoal

    for number in rounds:
        actors = [_Member.remote(number) for number in range(60)]
        shoal.get(actors[number % 10].pid.remote(), timeout=60)
        os.kill(cluster.session.template(), signal.SIGKILL)
        pids = shoal.get([actor.pid.remote() for actor in actors], timeout=60)
        assert len(set(pids)) == len(actors)
        del actors
        wait_for(lambda pids=pids: not any(processes.is_running(pid) for pid in pids), timeout_s=60, what="the end of the actors")
        cluster.settle()
        report.round("60 actors")


def _make_member():
    import shoal

    @shoal.remote(num_cpus=0)
    class Member:
        def __init__(self, number):
            self.number = number

        def pid(self):
            return os.getpid()

    return Member


_Member = _make_member()


# --- two at once ------------------------------------------------------------------------------------------

PAIRS = {
    "head-and-template": lambda session: (session.head(), session.template()),
    "head-and-worker": lambda session: (session.head(), session.workers()[0]),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_head_and_another_are_killed_at_once(start, rounds, report, pair):
    for _ in rounds:
        driver = start(
            "make_busy()\nsay('there')\nattempt('get', lambda: shoal.get(kept[2]))\nshoal.shutdown()\nsay('over')\nsys.stdin.readline()"
        )
        driver.hear("there")
        pids = PAIRS[pair](driver.session)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        seen = driver.hear("get raised LocalRayletDiedError")
        driver.hear("over")
        report.round(seen[:120], driver.session.wait_until_gone(begin))
        driver.go_on()
        assert driver.process.wait(20) == 0


def test_the_driver_and_another_are_killed_at_once(start, rounds, report):
    for _ in rounds:
        for find in ("head", "template"):
            driver = start("make_busy()\nsay('there')\ntime.sleep(1000)")
            driver.hear("there")
            other = getattr(driver.session, find)()
            begin = driver.kill()
            os.kill(other, signal.SIGKILL)
            report.round(f"nothing ({find})", driver.session.wait_until_gone(begin))


def test_the_template_and_a_worker_are_killed_at_once(cluster, rounds, report, tmp_path):
    import shoal

    @shoal.remote(max_retries=1)
    def once(path, pids):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) == 1:
            for pid in (*pids, os.getpid()):
                os.kill(pid, signal.SIGKILL)
        return "value"

    for number in rounds:
        template = cluster.session.template()
        assert shoal.get(once.remote(tmp_path / str(number), [template]), timeout=20) == "value"
        wait_for(lambda old=template: cluster.ask()["template"] not in (0, old), what="a new template")
        cluster.settle()
        report.round("value")
