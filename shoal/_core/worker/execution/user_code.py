"""What stands between the runtime and user code: nothing.

A test kit that wants calls to fail starts its workers through an entry of its own, which sets ``around`` before the first call. It is asked
once per function, method or class and worker, when that is first used; calls themselves pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: (function, what the user calls it) -> what is called in its place.
around: Callable[[Callable[..., Any], str], Callable[..., Any]] | None = None


def prepared(function: Callable[..., Any], label: str = "") -> Callable[..., Any]:
    """Return what to call for ``function``. ``label``: ``Class.method``; functions tell their own."""
    return function if around is None else around(function, label)
