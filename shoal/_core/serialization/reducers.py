"""Classes that shoal pickles in its own way: tensors, sliced Arrow tables, and what the user registered.

Kept out of ``copyreg``, which would change the user's own ``pickle`` and ``copy.deepcopy`` too. The reducers of a library are added when
the library is seen in ``sys.modules``; shoal never imports it.
"""

from __future__ import annotations

import copyreg
import sys
import threading
from collections.abc import Callable
from typing import Any

from . import arrow_tables, torch_tensors

Reducer = Callable[[Any], Any]

#: What makes a library's reducers; {} while the library is still being imported.
_libraries: dict[str, Callable[[Any], dict[type, Reducer]]] = {"torch": torch_tensors.reducers, "pyarrow": arrow_tables.reducers}
#: Libraries whose reducers are not there yet. Replaced, never changed: other threads iterate over it.
_pending = tuple(_libraries)
_modules = sys.modules
_added: dict[type, Reducer] = {}
#: ``_added`` over a copy of copyreg's table, which had ``_copied`` entries: the C pickler looks up plain dicts three times as fast as a
#: ChainMap. Replaced, never changed: picklers use it. None: out of date.
_merged: dict[Any, Any] | None = None
_copied = 0
_lock = threading.RLock()


def current() -> dict[Any, Any] | None:
    """Return the dispatch table for a pickler, or None if the standard one does. The result must not be changed."""
    for name in _pending:
        if name in _modules:
            _add_libraries()
            break
    if not _added:
        return None
    merged = _merged
    return merged if merged is not None and len(copyreg.dispatch_table) == _copied else _merge()


def added() -> dict[type, Reducer]:
    """Return only shoal's and the user's own reducers, for a pickler that has a table of its own."""
    return _added


def add_reducer(cls: type, reducer: Reducer) -> None:
    global _merged
    with _lock:
        _added[cls] = reducer
        _merged = None


def remove_reducer(cls: type) -> None:
    global _merged
    with _lock:
        _added.pop(cls, None)
        _merged = None


def _merge() -> dict[Any, Any]:
    global _merged, _copied
    with _lock:
        standard: dict[Any, Any] = {**copyreg.dispatch_table}
        _merged, _copied = {**standard, **_added}, len(standard)
        return _merged


def _add_libraries() -> None:
    global _pending, _merged
    with _lock:
        for name in _pending:
            found = _libraries[name](_modules[name]) if name in _modules else {}
            if found:
                _added.update(found)
                _pending = tuple(other for other in _pending if other != name)
                _merged = None
