"""Many callers at once for minutes: 24 threads of a driver, 8 owners in one session, 8 drivers. No error, no leak, nobody starves.

A driver cannot join the session of another one yet (``init(address=...)`` says so), so that the 8 drivers have a session each, and
8 actors that submit work stand for many owners in one session.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from shoal.testing import SessionProcesses, wait_for
from tests.soak.measures import SECONDS, check_driver, sample
from tests.soak.mixed_work import MixedWork, Register

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

THREADS = 24
OWNERS = 8
#: The most that one caller may do for each round of another.
FAIR = 2.0


def assert_fair(rounds):
    assert min(rounds) > 0, rounds
    assert max(rounds) <= FAIR * min(rounds), rounds


def summary(rounds, slowest):
    seconds, piece, at = max(slowest)
    return f"{sum(rounds)} rounds, {min(rounds)} to {max(rounds)} for each; the slowest piece took {seconds:.2f} s ({piece} at {at})"


def test_24_threads_of_one_driver(soak_session, progress):
    context = soak_session()
    registers = [Register.remote() for _ in range(4)]
    callers = [MixedWork(number, registers[number % len(registers)]) for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:

        def minutes(seconds):
            for future in [pool.submit(caller.run, seconds) for caller in callers]:
                future.result()

        minutes(SECONDS / 10)
        early = sample(context)
        progress(f"after a tenth: {early}")
        for _ in range(3):
            minutes(SECONDS * 0.3)
            late = sample(context)
            progress(f"{summary([caller.rounds for caller in callers], [caller.slowest for caller in callers])}; {late}")
    assert sum(caller.cancelled for caller in callers) > 0
    check_driver()
    assert late.grown(early) == []
    assert_fair([caller.rounds for caller in callers])


@shoal.remote(num_cpus=0, max_concurrency=2)
class Owner:
    """A process that owns tasks, objects and calls of its own."""

    def __init__(self, number, register):
        self.work = MixedWork(number, register)

    def run(self, seconds):
        self.work.run(seconds)
        return self.work.rounds, self.work.slowest


def test_8_owners_in_one_session(soak_session, progress):
    context = soak_session()
    registers = [Register.remote() for _ in range(2)]
    owners = [Owner.remote(number, registers[number % 2]) for number in range(OWNERS)]
    shoal.get([owner.run.remote(SECONDS / 10) for owner in owners])
    early = sample(context)
    progress(f"after a tenth: {early}")
    for _ in range(3):
        found = shoal.get([owner.run.remote(SECONDS * 0.3) for owner in owners])
        late = sample(context)
        progress(f"{summary(*zip(*found, strict=True))}; {late}")
    check_driver()
    assert late.grown(early) == []
    assert_fair([rounds for rounds, _ in found])


def test_8_drivers(progress):
    """All on this machine at once. Each watches its own session, the parent what is left of them."""
    command = [sys.executable, str(Path(__file__).with_name("driver_program.py")), str(SECONDS)]
    drivers = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in range(OWNERS)
    ]
    errors = [[] for _ in drivers]
    readers = [
        threading.Thread(target=lambda driver=driver, lines=lines: lines.extend(driver.stderr))
        for driver, lines in zip(drivers, errors, strict=True)
    ]
    for reader in readers:
        reader.start()
    reports = [[json.loads(line) for line in driver.stdout] for driver in drivers]
    codes = [driver.wait(60) for driver in drivers]
    for reader in readers:
        reader.join()
    for driver in drivers:
        driver.stdout.close()
        driver.stderr.close()
    assert codes == [0] * OWNERS, [lines[-20:] for lines in errors]
    assert [lines for lines in errors if lines] == []
    finals = [lines[-1] for lines in reports]
    progress(summary([final["rounds"] for final in finals], [tuple(final["slowest"]) for final in finals]))
    assert [final["grown"] for final in finals] == [[]] * OWNERS
    assert_fair([final["rounds"] for final in finals])
    for final in finals:
        directory = Path(final["session_dir"]).resolve()
        wait_for(lambda directory=directory: not SessionProcesses(directory.name).members(), 5, f"The end of all processes of {directory}")
        # The logs stay, until there are enough newer ones.
        assert [one.name for one in (directory.iterdir() if directory.exists() else ())] in (["logs"], [])
