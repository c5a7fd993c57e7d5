"""Which references are inside the value that this thread is pickling.

    serialize ── begins a capture ──▶ pickler ──▶ ObjectRef.__reduce__ ──▶ runtime.ref_pickled ──▶ record(ref)
        ▲                                                                                            │
        └────────────────────────────── the captured references ◀────────────────────────────────────┘

A reference that is pickled while nothing is captured (the user's own ``pickle.dumps``) leaves our sight, and the runtime pins it for good.
Captures nest: a ``__reduce__`` may call ``put``, whose references belong to the inner value alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shoal._base.references import ObjectRef


class Capturing(threading.local):
    #: The references met so far; None while this thread captures nothing.
    refs: list[ObjectRef[Any]] | None = None


#: Read and set directly by the pickling fast path, which cannot afford a context manager.
capturing = Capturing()


def record(ref: ObjectRef[Any]) -> bool:
    """Note a reference that is being pickled. False: no capture is active, so this is a pickle outside of shoal."""
    refs = capturing.refs
    if refs is None:
        return False
    refs.append(ref)
    return True


@contextmanager
def capture() -> Iterator[list[ObjectRef[Any]]]:
    """Collect into the returned list the references that this thread pickles inside the block."""
    outer, refs = capturing.refs, []  # type: tuple[list[ObjectRef[Any]] | None, list[ObjectRef[Any]]]
    capturing.refs = refs
    try:
        yield refs
    finally:
        capturing.refs = outer
