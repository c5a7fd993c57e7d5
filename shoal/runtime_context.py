"""The runtime context under the module where Ray's users look for it."""

from __future__ import annotations

from ._core.api.context import RuntimeContext, get_runtime_context

__all__ = ["RuntimeContext", "get_runtime_context"]

RuntimeContext.__module__ = __name__
