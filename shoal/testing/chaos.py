"""Kills workers at random while a block runs."""

from __future__ import annotations

import random
import threading
from types import TracebackType

from .session_processes import SessionProcesses, kill


class Chaos:
    """Use as a context manager. Its end raises what went wrong with the killing, if anything did."""

    def __init__(self, session: SessionProcesses, seed: int, kills_per_s: float) -> None:
        if kills_per_s <= 0:
            raise ValueError(f"kills_per_s must be positive, got {kills_per_s}.")
        self._killed: list[int] = []
        self._session = session
        self._random = random.Random(seed)
        self._kills_per_s = kills_per_s
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shoal-chaos", daemon=True)

    @property
    def killed(self) -> list[int]:
        """The pids of the workers killed so far, in the order of their deaths. Raises what ended the killing, if anything did."""
        if self._error is not None:
            raise self._error
        return list(self._killed)

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            # Times between kills as between independent events: sometimes two at once, sometimes none for long.
            while not self._stop.wait(self._random.expovariate(self._kills_per_s)):
                pids = list(self._session.workers())
                if pids and kill(victim := self._random.choice(pids)):
                    self._killed.append(victim)
        except BaseException as error:  # handed to the thread that uses the block
            self._error = error
