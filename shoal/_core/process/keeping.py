"""A node looks after the control store of its machine: one that died is started again on its tables.

    session.json ─▶ pidfd ─▶ it has ended ─┬─ in order (session.json is gone) ─▶ nothing more to do
                                           └─ died ─▶ pause ─▶ restart_control_store ─▶ watch again

The control store is a session of its own: it is neither killed with the node, nor waited for at the node's end.
"""

from __future__ import annotations

import asyncio
import logging
import os

from shoal._core.process import session as sessions
from shoal._core.process.start import HeadStartError, restart_control_store

log = logging.getLogger("shoal.head")

#: Seconds before it is started again: at first, and at most when it dies again and again.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 5.0
#: Seconds that it must have served for its death to be a first one again.
STEADY_S = 1.0
#: Seconds that the end of the node waits for a start that is under way.
_START_S = 5.0


class Pauses:
    """How long to wait before the next start. Pure: times are passed in, seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._started = -STEADY_S

    def started(self, now: float) -> None:
        self._started = now

    def next(self, now: float) -> float:
        """It has died, or could not be started: return the pause in seconds."""
        steady = now - self._started >= STEADY_S
        self._pause_s = FIRST_PAUSE_S if steady or not self._pause_s else min(2 * self._pause_s, LONGEST_PAUSE_S)
        return self._pause_s


class ControlStoreKeeper:
    """Watches from the loop's thread; the starting, which blocks, happens in another. ``session_dir``: the control store's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session_dir: str) -> None:
        self._loop = loop
        self._session = sessions.open_session(session_dir)
        self._pauses = Pauses()
        self._pidfd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._watch()

    async def close(self) -> None:
        """Look after it no more. A start that is under way is waited for: it must be on record when this node has ended. Idempotent."""
        self._closed = True
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
        if self._starting is not None:
            await asyncio.wait([self._starting], timeout=_START_S)

    def _watch(self) -> None:
        record = sessions.read_record(self._session.directory)
        if record is None:
            log.info("The control store has ended in good order.")
            return
        try:
            self._pidfd = os.pidfd_open(record.pid)
        except OSError:
            self._died()
            return
        self._loop.add_reader(self._pidfd, self._ended)
        if not record.is_running():  # before the pidfd was there: the number may be a stranger's
            self._ended()

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self) -> None:
        self._unwatch()
        if sessions.read_record(self._session.directory) is not None:
            self._died()

    def _died(self) -> None:
        if self._closed:
            return
        pause = self._pauses.next(self._loop.time())
        log.warning("The control store has died; starting it again in %.2f s. Its log is in %s.", pause, self._session.logs_dir)
        self._timer = self._loop.call_later(pause, self._start)

    def _start(self) -> None:
        self._starting = self._loop.create_task(self._restart())

    async def _restart(self) -> None:
        try:
            await self._loop.run_in_executor(None, restart_control_store, str(self._session.path))
        except (HeadStartError, OSError) as error:
            log.error("The control store could not be started again: %s", error)
            if sessions.read_record(self._session.directory) is not None:
                self._died()
            return
        self._pauses.started(self._loop.time())
        if not self._closed:
            self._watch()
