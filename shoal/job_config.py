"""``JobConfig`` under the module where Ray's users look for it."""

from __future__ import annotations

from ._core.api.job import JobConfig

__all__ = ["JobConfig"]

JobConfig.__module__ = __name__
