"""Random programs in the seeded simulation: results right, `check()` clean, nothing leaked, nothing freed too early, nothing hangs.

python -m shoal.testing.simulation SEED       runs one of them again, and shrinks it if it fails
"""

from __future__ import annotations

import hashlib
from collections import Counter
from unittest import mock

import pytest

from shoal._core.transport.memory import MemoryConnection
from shoal._core.worker.ownership import Ownership
from shoal._core.worker.tasks import Tasks
from shoal.testing.simulation.campaign import ONE_NODE, Mode, run_seed, run_seeds, shrink
from shoal.testing.simulation.generation import KINDS, generate
from shoal.testing.simulation.programs import count_ops

pytestmark = pytest.mark.timeout(300)

BLOCK = 50


def clean(seeds: range) -> None:
    done, failures = run_seeds(seeds)
    assert not failures, f"\n{shrink(failures[0], tries=300)}"
    assert done == len(seeds)


@pytest.mark.parametrize("first", range(0, 400, BLOCK))
def test_programs_run_clean(first):
    clean(range(first, first + BLOCK))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", range(0, 10_000, 500))
def test_ten_thousand_programs_run_clean(first):
    clean(range(first, first + 500))


def test_programs_of_all_kinds_and_operations_are_made():
    programs = [generate(seed) for seed in range(300)]
    assert Counter(program.kind for program in programs).keys() == KINDS.keys()
    text = "".join(repr(program.body) for program in programs)
    for operation in [
        "Put",
        "Submit",
        "Get",
        "Wait",
        "Take",
        "Drop",
        "Create",
        "Call",
        "Cancel",
        "KillActor",
        "KillWorker",
        "Pause",
        "Crash",
        "Raise",
    ]:
        assert f"{operation}(" in text, operation


def trace(seed: int, mode: Mode = ONE_NODE) -> str:
    """Return a digest of every frame that travelled, when and where. Not of its bytes: they hold the name of the session."""
    digest = hashlib.sha256()
    put = MemoryConnection._put

    def note(self, payload):
        digest.update(f"{self._loop.time()} {self.endpoint} {self._other_endpoint} {payload is None}\n".encode())
        put(self, payload)

    with mock.patch.object(MemoryConnection, "_put", note):
        failure = run_seed(seed, mode)
    return digest.hexdigest() + str(failure)


@pytest.mark.parametrize("seed", [1, 13, 23])
def test_the_same_seed_gives_the_same_run(seed):
    assert trace(seed) == trace(seed)


# --- the simulation can fail: each of these bugs is found within a few programs ---------------------------


def found(seeds: range) -> str:
    _, failures = run_seeds(seeds)
    assert failures, "the bug was not found"
    return failures[0].problem


def test_a_removal_that_is_forgotten_is_found():
    real = Ownership.remove_borrower
    calls = iter(range(10**9))

    def forgetful(self, object_id, worker_id, count):
        if next(calls) % 7:
            real(self, object_id, worker_id, count)

    with mock.patch.object(Ownership, "remove_borrower", forgetful):
        assert "left over" in found(range(100))


def test_an_object_that_is_freed_in_spite_of_its_borrowers_is_found():
    real = Ownership.add_borrower
    calls = iter(range(10**9))

    def forgetful(self, entry, borrower, count=1):
        if next(calls) % 7:
            real(self, entry, borrower, count)

    with mock.patch.object(Ownership, "add_borrower", forgetful):
        assert "Freed" in found(range(200))


def test_a_reply_that_is_swallowed_is_found():
    real = Tasks.finish
    calls = iter(range(10**9))

    def forgetful(self, record, message):
        if next(calls) % 7:
            real(self, record, message)

    with mock.patch.object(Tasks, "finish", forgetful):
        assert "has not ended" in found(range(100))  # with the dump of who waits for what


def test_a_failing_program_is_made_small():
    with mock.patch.object(Ownership, "remove_borrower", return_value=None):
        _, failures = run_seeds(range(100))
        small = shrink(failures[0], tries=300)
    assert count_ops(small.program.body) < count_ops(failures[0].program.body)
    assert count_ops(small.program.body) <= 8
