"""Sessions that work for minutes. See ``measures.py`` for what is watched meanwhile.

`make soak` runs these tests; `SOAK_SECONDS` (300) is how long the timed ones last, `SOAK_SCALE` (1) multiplies the amounts of the
counted ones, so that `SOAK_SECONDS=10 SOAK_SCALE=0.01` is a smoke test.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from shoal.testing import fresh_cluster

# ``tests.soak.measures`` can be imported, here and in workers, however pytest was started.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@pytest.fixture
def soak_session():
    """Start a session with options of the test's choice; at the end nothing of it may be left."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(fresh_cluster(faults=False, **options)).context


@pytest.fixture
def progress(request) -> Callable[[str], None]:
    """Show a line at once, although the test's output is captured: a test of five silent minutes looks like one that hangs."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    began = time.monotonic()

    def show(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"  [{request.node.name} {time.monotonic() - began:6.1f} s] {text}", flush=True)

    return show
