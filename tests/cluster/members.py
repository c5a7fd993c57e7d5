"""Actors that are created and looked up while control stores die, and a history by which each must be there exactly once."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import shoal
from shoal.testing import wait_for

PATIENCE_S = 60


@shoal.remote
class Member:
    """Writes down each of its starts: two lines for one number are two starts."""

    def __init__(self, number, journal):
        self.number = number
        with open(journal, "a") as file:
            file.write(f"{number} {os.getpid()}\n")

    def who(self):
        return self.number, os.getpid()


class Census:
    """Two threads create ``total`` actors, and a third looks up those that have a name, again and again.

    Args:
        plain: every second one is without a name, and not detached.
    """

    def __init__(self, total: int, journal: Path, *, plain: bool) -> None:
        self.total = total
        self.named = [number for number in range(total) if number % 2 or not plain]
        self._journal = journal
        self._handles: dict[int, object] = {}
        self._history: list[tuple[int, tuple[int, int]]] = []
        self._created = threading.Event()
        self._problems: list[BaseException] = []
        self._creators = [threading.Thread(target=self._guarded, args=(self._create, begin)) for begin in (0, 1)]
        self._reader = threading.Thread(target=self._guarded, args=(self._look_up,))
        for thread in [*self._creators, self._reader]:
            thread.start()

    def wait_for_progress(self) -> None:
        """Wait until somebody has seen one more of them, or all are there."""
        seen = len(self._history)
        wait_for(lambda: len(self._history) > seen or not self._creating() or self._problems, PATIENCE_S, "progress")

    def check(self) -> None:
        """Wait until all are created; then each was started once, and everybody saw the same process."""
        for thread in self._creators:
            thread.join(4 * PATIENCE_S)
        self._created.set()
        self._reader.join(2 * PATIENCE_S)
        assert not self._problems
        starts = Counter(int(line.split()[0]) for line in self._journal.read_text().splitlines())
        assert starts == dict.fromkeys(range(self.total), 1), "each was started once"
        processes: dict[int, tuple[int, int]] = {}
        for number, seen in self._history:
            assert processes.setdefault(number, seen) == seen, "everybody saw the same process"
        assert set(shoal.util.list_named_actors()) == {f"m{number}" for number in self.named}
        for number in self.named:
            shoal.kill(shoal.get_actor(f"m{number}"))

    def _creating(self) -> bool:
        return any(thread.is_alive() for thread in self._creators)

    def _create(self, begin: int) -> None:
        for number in range(begin, self.total, 2):
            options = {"name": f"m{number}", "lifetime": "detached"} if number in self.named else {}
            handle = Member.options(num_cpus=0, **options).remote(number, str(self._journal))
            self._handles[number] = handle
            self._history.append((number, shoal.get(handle.who.remote(), timeout=PATIENCE_S)))

    def _look_up(self) -> None:
        while not self._created.is_set():
            for number in [number for number in self.named if number in self._handles]:
                self._history.append((number, shoal.get(shoal.get_actor(f"m{number}").who.remote(), timeout=PATIENCE_S)))

    def _guarded(self, work: Callable[..., None], *args: int) -> None:
        try:
            work(*args)
        except BaseException as error:
            self._problems.append(error)
            raise
