"""``RuntimeEnv`` under the module where Ray's users look for it."""

from __future__ import annotations

from ._core.api.runtime_envs import RuntimeEnv

__all__ = ["RuntimeEnv"]

RuntimeEnv.__module__ = __name__
