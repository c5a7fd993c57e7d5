"""Real sessions: what a test starts is gone when it ends. The workers are those of every user: none looks for faults."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest

from shoal.testing import fresh_cluster


@contextmanager
def running_session(**options):
    """``shoal.init(**options)``; at the end a shutdown, and the check that nothing is left."""
    with fresh_cluster(faults=False, **options) as cluster:
        yield cluster.context


@pytest.fixture(scope="module")
def session():
    """One session of 2 CPUs for the tests of a module."""
    with running_session() as context:
        yield context


@pytest.fixture
def fresh_session():
    """Start a session with options of the test's choice: ``fresh_session(num_cpus=1)``."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(running_session(**options))
