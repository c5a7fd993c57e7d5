"""The thread that readies pages of the arena before objects need them.

A page that the host has not given yet costs 3 us to write (0.35 GB/s here), a ready huge page nothing. While the used range grows, the
thread runs ahead of it by as much as has been used, at most ``AHEAD_BYTES``. When nothing has been created for ``QUIET_S`` it also goes
over what is below once, so that every reader needs one page-table entry per 2 MiB: beside a large copy that would take half of its speed
(two cores). An idle cluster has used nothing, so nothing is readied and nothing is spent.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from shoal._core.object_store.arena import Arena
from shoal._core.object_store.mapping import HUGE_PAGE_BYTES

log = logging.getLogger("shoal.object_store")

AHEAD_BYTES = 256 << 20
#: Seconds without a new object until pages are visited that nobody is about to need.
QUIET_S = 0.5
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
        self._last_use = 0.0
        #: The newest object took a range that no object had before; else memory is recycled, and what is ahead is not urgent.
        self._growing = False
        self._visited: set[int] = set()
        #: All chunks below these two were visited: of those ahead of use, and of those below.
        self._ahead_from = 0
        self._below_from = 0
        self.warmed_bytes = 0

    def used_until(self, high_water: int) -> None:
        """An object is created, and ranges below ``high_water`` are in use now. Cheap when nothing has changed; never blocks for long."""
        self._last_use = time.monotonic()
        self._growing = high_water > self._high_water
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
        chunk = max(first_ahead, self._ahead_from)
        while chunk < last and chunk in self._visited:
            chunk += 1
        self._ahead_from = chunk
        if chunk < last:
            return chunk
        chunk = self._below_from
        while chunk < first_ahead and chunk in self._visited:
            chunk += 1
        self._below_from = chunk
        return chunk if chunk < first_ahead else None

    def _must_wait(self, chunk: int) -> float:
        """Return the seconds until the chunk may be visited: none while the used range grows and the chunk is ahead of it."""
        if self._growing and chunk >= self._high_water // HUGE_PAGE_BYTES:
            return 0.0
        return max(0.0, self._last_use + QUIET_S - time.monotonic())

    def _run(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        except OSError:
            pass  # a sandbox may forbid it; then the thread competes like any other
        while True:
            with self._changed:
                while not self._closing and ((chunk := self.next_chunk()) is None or self._must_wait(chunk)):
                    self._changed.wait(None if chunk is None else self._must_wait(chunk))
                if self._closing:
                    return
            assert chunk is not None
            self._visited.add(chunk)
            if self._arena.warm(chunk):
                self.warmed_bytes += HUGE_PAGE_BYTES
            else:
                log.debug("this kernel cannot ready pages; first writes will be slower")
                return
