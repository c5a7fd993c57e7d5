"""How values are pickled: serializers of your own, and why something cannot be pickled. ``shoal.util`` has the same names."""

from __future__ import annotations

from ._core.serialization import FailureTuple, deregister_serializer, inspect_serializability, register_serializer

__all__ = ["FailureTuple", "deregister_serializer", "inspect_serializability", "register_serializer"]
