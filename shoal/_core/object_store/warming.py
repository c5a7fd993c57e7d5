"""The thread that readies pages of the arena before objects need them.

A page that the host has not given yet costs 3 us to write (0.35 GB/s here), a ready huge page nothing. The thread runs ahead of the highest
range ever used by as much as has been used, at most ``AHEAD_BYTES``, and then goes over what is below once, so that every reader needs one
page-table entry per 2 MiB. An idle cluster has used nothing, so nothing is readied and nothing is spent.
"""

from __future__ import annotations

import logging
import os
import threading

from shoal._core.object_store.arena import Arena
from shoal._core.object_store.mapping import HUGE_PAGE_BYTES

log = logging.getLogger("shoal.object_store")

AHEAD_BYTES = 256 << 20
#: Below normal: it must not take a processor from a task.
_NICENESS = 10


class Warmer:
    """One thread, started by the first use of the arena and joined by ``close``."""

    def __init__(self, arena: Arena, ahead_bytes: int = AHEAD_BYTES) -> None:
        self._arena = arena
        self._ahead_bytes = ahead_bytes
        self._changed = threading.Condition()
        self._high_water = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        #: Chunks below the first have been visited; those from the second on are ahead of use.
        self._visited: set[int] = set()
        self.warmed_bytes = 0

    def used_until(self, high_water: int) -> None:
        """Ranges below ``high_water`` are in use now. Cheap when nothing has changed; never blocks for long."""
        if high_water <= self._high_water or self._ahead_bytes <= 0:
            return
        with self._changed:
            self._high_water = high_water
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="shoal-warmer", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread; waits for the step it is in, some milliseconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def next_chunk(self) -> int | None:
        """Return the chunk to ready next: ahead of use first, in order; then below."""
        high = self._high_water
        first_ahead = high // HUGE_PAGE_BYTES
        end = min(high + min(high + HUGE_PAGE_BYTES, self._ahead_bytes), self._arena.nbytes)
        last = -(-end // HUGE_PAGE_BYTES)
        for chunk in range(first_ahead, last):
            if chunk not in self._visited:
                return chunk
        return next((chunk for chunk in range(first_ahead) if chunk not in self._visited), None)

    def _run(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        except OSError:
            pass  # a sandbox may forbid it; then the thread competes like any other
        while True:
            with self._changed:
                while not self._closing and (chunk := self.next_chunk()) is None:
                    self._changed.wait()
                if self._closing:
                    return
            assert chunk is not None
            self._visited.add(chunk)
            if self._arena.warm(chunk):
                self.warmed_bytes += HUGE_PAGE_BYTES
            else:
                log.debug("this kernel cannot ready pages; first writes will be slower")
                return
