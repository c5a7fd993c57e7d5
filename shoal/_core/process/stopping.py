"""End sessions, nodes and control stores that other processes have started.

SIGTERM ─ grace ─ SIGKILL ─▶ wait until the template, as janitor, has removed the files

Nodes first: a node that lives starts its control store again. Whoever is meant is known by pid and start time, so a number that
has changed hands is left alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shoal._base import paths, processes

from . import session as sessions
from .session import SessionRecord

#: Seconds that the template has to clean up after a process that was killed.
_JANITOR_S = 2.0

Progress = Callable[[SessionRecord, bool], None]


def stop(records: Sequence[SessionRecord], grace_s: float, *, on_stopped: Progress | None = None) -> int:
    """End the processes and remove their files; return how many there were. Blocks ``grace_s`` + about 2 s at most for each kind.

    Args:
        grace_s: seconds for an end in good order; 0: SIGKILL at once.
        on_stopped: told of each, and whether it had to be killed.
    """
    stores = [record for record in records if record.part == "control store"]
    return sum(_stop(some, grace_s, on_stopped) for some in ([r for r in records if r not in stores], stores))


def _stop(records: Sequence[SessionRecord], grace_s: float, on_stopped: Progress | None) -> int:
    running = [(record, pidfd) for record in records if (pidfd := _open(record)) is not None]
    try:
        if grace_s > 0:
            _signal(running, signal.SIGTERM)
        stubborn = _wait(running, grace_s)
        _signal(stubborn, signal.SIGKILL)
        _wait(stubborn, _JANITOR_S)
        for record, pidfd in running:
            _clean_up(record)
            if on_stopped is not None:
                on_stopped(record, (record, pidfd) in stubborn)
    finally:
        for _, pidfd in running:
            os.close(pidfd)
    return len(running)


def _open(record: SessionRecord) -> int | None:
    """Return a descriptor of the process, None if it has ended. Looked at again after the open: until then the pid may change hands."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError:
        return None
    if record.is_running():
        return pidfd
    os.close(pidfd)
    return None


def _signal(running: Sequence[tuple[SessionRecord, int]], number: signal.Signals) -> None:
    for _, pidfd in running:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)


def _wait(running: Sequence[tuple[SessionRecord, int]], timeout_s: float) -> list[tuple[SessionRecord, int]]:
    """Wait until they have ended; return those that have not."""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    left = {pidfd: (record, pidfd) for record, pidfd in running}
    for pidfd in left:
        poll.register(pidfd, select.POLLIN)
    while left:
        ended = poll.poll(max(deadline - time.monotonic(), 0) * 1000)
        if not ended:
            break
        for pidfd, _ in ended:
            poll.unregister(pidfd)
            del left[pidfd]
    return list(left.values())


def _clean_up(record: SessionRecord) -> None:
    """Remove what the process and its template have left: nothing, unless both were killed, or it was a control store."""
    session = sessions.open_session(record.session_dir)
    deadline = time.monotonic() + _JANITOR_S
    janitor = record.part != "control store"
    while os.path.lexists(Path(session.directory) / paths.TOKEN_FILE):
        if not janitor or time.monotonic() > deadline:
            while processes.kill_marked(session.name, frozenset()) and time.monotonic() < deadline + 1:
                time.sleep(0.005)
            session.remove()
            return
        time.sleep(0.005)
