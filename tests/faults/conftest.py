"""Deaths of processes, one kind per file. Each case runs once in `make test` and 20 times (SHOAL_ROUNDS) in `make soak`.

    a round: reach the state by a rendezvous - SIGKILL - what the user sees - all resources back - at the end: nothing left

The worst times until nothing was left, and what users saw, are printed at the end of the run.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

import shoal

# Parts shared by these tests, and imported by heads, workers and drivers that the tests start.
sys.path.insert(0, str(Path(__file__).parent))

import observed_head
from drivers import Driver
from meeting import Meeting
from watch import GONE_S, SAFETY_S, Here, Session, wait_for


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """A shell starts background jobs with SIGINT ignored, and programs hand that on to those that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_directory(request):
    """Sessions of these tests lie apart from all others: nobody else cleans up after them. After failures the logs stay."""
    path = tempfile.mkdtemp(prefix="shoal-faults-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_TMPDIR", path)
        yield Path(path)
    if not request.session.testsfailed:
        shutil.rmtree(path)


_reports = pytest.StashKey()


@pytest.fixture(
    params=[pytest.param(1, id="once"), pytest.param(int(os.environ.get("SHOAL_ROUNDS", "20")), id="rounds", marks=pytest.mark.soak)]
)
def rounds(request):
    return range(request.param)


class Report:
    """One case: rounds, the seconds until nothing was left, what the user saw."""

    def __init__(self, name):
        self.name = name
        self.rounds = 0
        self.worst_s = 0.0
        self.seen = {}
        self.expect("nothing left", GONE_S)

    def expect(self, what, within_s):
        """Say what a round is timed for, and the longest time that is right."""
        self.what, self.within_s = what, within_s

    def round(self, seen, took_s=0.0):
        seen = re.sub(r"\b[0-9a-f]{32,}\b", "<id>", re.sub(r"pid \d+", "pid <n>", seen))
        self.rounds += 1
        self.worst_s = max(self.worst_s, took_s)
        self.seen[seen] = self.seen.get(seen, 0) + 1


@pytest.fixture
def report(request):
    """Collect the rounds of a case; more than one round must each have left nothing within GONE_S, or what else it expects."""
    case = Report(request.node.name)
    request.config.stash.setdefault(_reports, []).append(case)
    yield case
    if case.rounds > 1:
        assert case.worst_s < case.within_s, f"not {case.what} after {case.worst_s:.2f} s"


_notes = pytest.StashKey()


class Notes:
    """Lines of a case: shown at once, or at the end of the run."""

    def __init__(self, request):
        self._name = request.node.name
        self._lines = request.config.stash.setdefault(_notes, [])
        self._capture = request.config.pluginmanager.getplugin("capturemanager")

    def add(self, text):
        self._lines.append(f"{self._name}: {text}")

    def show(self, text):
        if os.environ.get("SHOAL_SHOW"):
            with self._capture.global_and_fixture_disabled():
                print(f"  {text}", flush=True)


@pytest.fixture
def notes(request):
    return Notes(request)


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(_notes, []):
        terminalreporter.write_line(line)
    for case in config.stash.get(_reports, []):
        seen = "; ".join(f"{count}x {what}" for what, count in case.seen.items())
        terminalreporter.write_line(f"{case.name}: {case.rounds} rounds, {case.what} after {case.worst_s:.2f} s at worst; {seen}")


@pytest.fixture
def start():
    """Start a driver in a process of its own: ``start(code)``. Nothing of it or its session may be left at the end."""
    drivers = []

    def begin(code, **options):
        driver = Driver(code, **options)
        drivers.append(driver)
        if driver.session is not None:
            driver.session.remember_memory()
        return driver

    yield begin
    for driver in drivers:
        driver.end()
        if driver.session is not None:
            driver.session.wait_until_gone(time.monotonic())


class Cluster:
    """A session of this process. ``settle`` asserts that a round has left no trace in it."""

    def __init__(self, context):
        self.directory = Path(context.address_info["session_dir"])
        self.session = Session(self.directory)
        self.session.remember_memory()
        self.idle = wait_for(self._idle_facts, what="the first workers")

    def ask(self, **order):
        return observed_head.ask(self.directory, **order)

    def _idle_facts(self):
        facts = self.ask()
        return facts if not facts["leases"] and not facts["starting"] and facts["workers"] else None

    def settle(self):
        """The cluster works, and is as it was at its start: resources, store, spill files, creations, waiting requests."""
        assert shoal.get([_double.remote(number) for number in range(20)], timeout=SAFETY_S) == [2 * number for number in range(20)]
        data = os.urandom(200_000)
        assert shoal.get(shoal.put(data), timeout=SAFETY_S) == data
        gc.collect()
        found = []

        def is_as_before():
            found[:] = self.differences()
            return not found

        try:
            wait_for(is_as_before)
        except TimeoutError:
            pytest.fail(f"the round has left: {found}")

    def differences(self):
        now, found = self.ask(), []
        found += now["problems"]
        for key in ("available", "leases", "waiting", "creating"):
            if now[key] != self.idle[key]:
                found.append(f"{key}: {now[key]}, it was {self.idle[key]}")
        for key in ("used_bytes", "pinned_bytes", "objects", "on_disk", "own_files", "waiting", "spill_files"):
            if now["store"][key] != self.idle["store"][key]:
                found.append(f"store {key}: {now['store'][key]}, it was {self.idle['store'][key]}")
        spilled = [path for path in (self.directory / "spill").rglob("*") if path.is_file()]
        return found + [f"file {path}" for path in spilled]

    def check_growth(self, before):
        """Descriptors and threads of head and driver, after many rounds as after one."""
        now = (self.ask()["descriptors"], Here())
        workers = len(self.session.workers())
        assert now[0] - before[0] <= 4 * workers + 8, f"the head has {now[0]} descriptors, it had {before[0]}"
        assert now[1].descriptors - before[1].descriptors <= 2 * workers + 4
        assert len(now[1].threads) <= len(before[1].threads)


@shoal.remote
def _double(number):
    return 2 * number


@pytest.fixture
def cluster(monkeypatch):
    """A session of this process, with an observed head; at its end nothing is left of it, here neither."""
    gc.collect()
    here = Here()
    from shoal._core.process import options

    plain = options.HeadOptions
    observed_head.install()
    context = shoal.init(num_cpus=2, object_store_memory=100 << 20, log_to_driver=False)
    session = None
    try:
        found = Cluster(context)
        session = found.session
        before = (found.ask()["descriptors"], Here())
        yield found
        found.settle()
        found.check_growth(before)
    finally:
        options.HeadOptions = plain
        begin = time.monotonic()
        shoal.shutdown()
        if session is not None:
            session.wait_until_gone(begin)
            said = (session.directory / "logs" / "head.err").read_text()
            assert "Traceback" not in said, said
    gc.collect()
    assert not here.leftovers()


@pytest.fixture
def meeting(cluster):
    """Where a worker says that it is in the state in question, and with which pid."""
    actor = Meeting.remote()
    shoal.get(actor.arrive.remote())
    cluster.idle = wait_for(lambda: facts if (facts := cluster.ask())["leases"] == 1 else None)
    yield actor
    shoal.kill(actor)  # pytest holds the handle for longer than this
    cluster.idle["leases"] = 0
