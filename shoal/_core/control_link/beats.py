"""Heartbeats of a process whose loop is busy.

A link beats by itself, from the loop. When that is late, because one step of the loop takes long, a thread beats in its place: a node
that is only slow is not a dead one. It cannot when the loop has messages half on their way, or holds the interpreter in one call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Beats:
    """A thread from ``start`` to ``stop``. ``beat`` is called on it, every ``beat_s`` for as long as the loop is late."""

    def __init__(self, beat_s: float, beat: Callable[[], None]) -> None:
        self._beat_s = beat_s
        self._beat = beat
        self._stopped = threading.Event()
        self._at = time.monotonic()

    def start(self) -> None:
        threading.Thread(target=self._run, name="shoal-beats", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def on_time(self) -> None:
        """The loop has beaten."""
        self._at = time.monotonic()

    def _run(self) -> None:
        while not self._stopped.wait(self._beat_s):
            if time.monotonic() - self._at > 2 * self._beat_s:
                self._beat()
