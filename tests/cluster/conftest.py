"""Real sessions: what a test starts is gone when it ends."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import shoal
from shoal._base import processes

#: Seconds within which everything of a session must be gone after shutdown.
GONE_S = 5.0


def leftovers(session_dir: Path) -> list[str]:
    """Name what is left of a session: processes, threads, files besides logs."""
    found = [
        f"process {stat.pid}"
        for stat in processes.iter_stats()
        if stat.state != "Z" and processes.mark_of(stat.pid, processes.SESSION_MARK) == session_dir.name
    ]
    found += [f"thread {thread.name}" for thread in threading.enumerate() if thread.name.startswith("shoal-")]
    found += [f"file {path}" for path in (session_dir.iterdir() if session_dir.exists() else ()) if path.name != "logs"]
    return found


@contextmanager
def running_session(**options):
    """``shoal.init(**options)``; at the end a shutdown, and the check that nothing is left."""
    context = shoal.init(**{"num_cpus": 2, "object_store_memory": 256 * 2**20, **options})
    session_dir = Path(context.address_info["session_dir"])
    try:
        yield context
    finally:
        shoal.shutdown()
        deadline = time.monotonic() + GONE_S
        while (left := leftovers(session_dir)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left


@pytest.fixture(scope="module")
def session():
    """One session of 2 CPUs for the tests of a module."""
    with running_session() as context:
        yield context


@pytest.fixture
def fresh_session():
    """Start a session with options of the test's choice: ``fresh_session(num_cpus=1)``."""
    opened = []

    def start(**options):
        manager = running_session(**options)
        context = manager.__enter__()
        opened.append(manager)
        return context

    yield start
    for manager in opened:
        manager.__exit__(None, None, None)
