"""Remote functions under the module where Ray's users look for them."""

from __future__ import annotations

from ._core.api.remote_function import RemoteFunction

__all__ = ["RemoteFunction"]

RemoteFunction.__module__ = __name__
