"""Functions and classes as bytes: by value if they live in ``__main__`` or in another function, by reference if a module has them."""

from __future__ import annotations

import pickle
from typing import Any

from shoal._base.references import ObjectRef

from .inspect import describe, short
from .pickling import UNPICKLABLE, pickle_value


def pickle_function(obj: Any) -> tuple[bytes, list[ObjectRef[Any]]]:
    """Return the pickle, and the references that the function's closure and globals hold.

    Raises:
        TypeError: something it uses cannot be pickled; the text says what.
    """
    try:
        pickled = pickle_value(obj, by_value=True, out_of_band=False)
    except (*UNPICKLABLE, RecursionError) as error:
        kind = "actor class" if isinstance(obj, type) else "function"
        name = getattr(obj, "__qualname__", None) or short(obj)
        raise TypeError(f"Could not serialize the {kind} {getattr(obj, '__module__', '?')}.{name}: {error}\n{describe(obj)}") from error
    return pickled.data, pickled.refs


def unpickle_function(blob: bytes | memoryview) -> Any:
    """Return the function or class. Raises what importing its module raises."""
    return pickle.loads(blob)
