"""A node of a cluster: a head without a control store of its own. Its parts are imported while its options are still on their way."""

from __future__ import annotations

from shoal._core.process import composition  # noqa: F401  of use while the control store comes up, on a cluster's first node
from shoal._core.process.head import main

__all__ = ["main"]
