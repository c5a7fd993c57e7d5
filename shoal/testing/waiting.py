"""Wait for what another process does, without sleeping for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks.
_STEP_S = 0.005


def wait_for(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "the condition") -> T:
    """Call ``condition`` until it returns something true, and return that. Blocks.

    Raises:
        TimeoutError: it was not true within ``timeout_s`` seconds; the text names ``what``.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {timeout_s:g} s.")
        time.sleep(_STEP_S)
    return found
