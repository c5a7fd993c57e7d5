"""Serializers that the user registers for classes that cannot be pickled, or should be pickled otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .reducers import add_reducer, remove_reducer


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Pickle instances of exactly ``cls`` as ``serializer(instance)``, in this process.

    The deserializer travels inside the value, so processes that read it need no registration.

    Args:
        serializer: returns something that can be pickled.
        deserializer: makes an instance from it.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer() expects a class, got {cls!r} of type {type(cls).__name__}.")
    for role, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"The {role} of {cls.__qualname__} must be callable, got {function!r}.")

    def reduce(value: Any) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return deserializer, (serializer(value),)

    add_reducer(cls, reduce)


def deregister_serializer(cls: type) -> None:
    """Forget the serializer of ``cls`` in this process; nothing happens if it has none."""
    remove_reducer(cls)
