"""One round of everything that a program does with the core, each answer checked; the unit in which fairness is counted.

A round: tasks, a chain, calls of a shared actor in order, small and large values, wait, cancelled tasks. Everybody does the same pieces
in an order of his own, so that rounds are comparable and callers do not march in step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import shoal

LARGE_BYTES = 300_000
TASKS = 20


@shoal.remote
def double(number):
    return 2 * number


@shoal.remote
def nap(seconds):
    time.sleep(seconds)
    return "slept"


@shoal.remote
def repeated(byte, size):
    return bytes([byte]) * size


@shoal.remote(num_cpus=0)
class Register:
    """Counts for each caller separately, so that a lost, doubled or overtaken call shows."""

    def __init__(self):
        self.counts = {}

    def count(self, caller):
        self.counts[caller] = self.counts.get(caller, 0) + 1
        return self.counts[caller]


class MixedWork:
    """The rounds of one caller."""

    def __init__(self, caller: int, register) -> None:
        self.caller = caller
        self.register = register
        self.rounds = 0
        self.cancelled = 0
        #: Seconds of the slowest piece, which it was, and when.
        self.slowest = (0.0, "", "")
        self._calls = 0
        self._random = random.Random(caller)
        self._pieces: list[Callable[[], None]] = [
            self._tasks, self._chain, self._actor_calls, self._small_values, self._large_values, self._wait, self._cancel,
        ]  # fmt: skip

    def run(self, seconds: float) -> None:
        """Do rounds until the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._random.shuffle(self._pieces)
            for piece in self._pieces:
                begin = time.monotonic()
                piece()
                taken = time.monotonic() - begin
                if taken > self.slowest[0]:
                    self.slowest = (taken, piece.__name__, time.strftime("%H:%M:%S"))
            self.rounds += 1

    def _tasks(self) -> None:
        first = self._random.randrange(1000)
        refs = [double.remote(number) for number in range(first, first + TASKS)]
        assert shoal.get(refs) == [2 * number for number in range(first, first + TASKS)]

    def _chain(self) -> None:
        ref = shoal.put(1)
        for _ in range(5):
            ref = double.remote(ref)
        assert shoal.get(ref) == 32

    def _actor_calls(self) -> None:
        refs = [self.register.count.remote(self.caller) for _ in range(TASKS)]
        expected = list(range(self._calls + 1, self._calls + TASKS + 1))
        self._calls += TASKS
        assert shoal.get(refs) == expected

    def _small_values(self) -> None:
        values = [(self.caller, number) for number in range(TASKS)]
        refs = [shoal.put(value) for value in values]
        assert shoal.get(refs) == values
        assert [shoal.get(ref) for ref in refs] == values

    def _large_values(self) -> None:
        byte = self._random.randrange(256)
        expected = bytes([byte]) * LARGE_BYTES
        mine, theirs = shoal.put(expected), repeated.remote(byte, LARGE_BYTES)
        assert shoal.get([theirs, mine]) == [expected, expected]

    def _wait(self) -> None:
        left, seen = [double.remote(number) for number in range(5)], []
        while left:
            ready, left = shoal.wait(left)
            seen += shoal.get(ready)
        assert sorted(seen) == [0, 2, 4, 6, 8]

    def _cancel(self) -> None:
        ref = nap.remote(0.01)
        if self._random.random() < 0.5:
            shoal.wait([ref], timeout=self._random.uniform(0, 0.01))
        shoal.cancel(ref)
        try:
            assert shoal.get(ref) == "slept"
        except shoal.exceptions.TaskCancelledError:
            self.cancelled += 1
