"""One value to one pickle, its out-of-band buffers and the references inside it.

The plain C pickler goes first: it is four times as fast as cloudpickle's. cloudpickle takes over when the plain one fails (lambdas,
closures, dynamic classes) or when its result names ``__main__``, which is another module in the reading process. Looking for the eight
bytes in the result costs less than asking every object; a string that contains them by chance only loses the shortcut.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from typing import Any, NamedTuple

import cloudpickle

from shoal._base.references import ObjectRef

from . import reducers
from .capture import capturing
from .torch_tensors import private

PROTOCOL = 5
#: What the picklers raise about objects they cannot handle. Other exceptions come from the user's __reduce__ or __getstate__.
UNPICKLABLE = (TypeError, pickle.PicklingError, AttributeError)


class Pickled(NamedTuple):
    """What ``pickle_value`` returns."""

    data: bytes
    #: Out-of-band buffers in the order of the pickle.
    buffers: list[pickle.PickleBuffer]
    #: Those of ``buffers`` that the reader must be able to write to.
    private: list[pickle.PickleBuffer]
    refs: list[ObjectRef[Any]]


#: ``Pickled(...)`` in a third of its time.
_new = tuple.__new__


class _PlainPickler(pickle.Pickler):
    """A class only so that instances take a ``dispatch_table``."""


class _ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, buffer_callback: Any, table: dict[Any, Any] | None) -> None:
        if table is not None:
            # Before __init__, which is where the C part looks for it.
            self.dispatch_table = ChainMap(reducers.added(), cloudpickle.Pickler.dispatch_table)
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)


def pickle_value(value: Any, *, by_value: bool = False, out_of_band: bool = True, capture: bool = True) -> Pickled:
    """Pickle ``value``; raises what the pickler raises.

    Args:
        by_value: go to cloudpickle at once; for functions and classes.
        out_of_band: False keeps all buffers inside the pickle.
        capture: False leaves the references inside to the runtime, which pins them for good.
    """
    refs: list[ObjectRef[Any]] = []
    buffers: list[pickle.PickleBuffer] = []
    private_buffers: list[pickle.PickleBuffer] = []
    callback = buffers.append if out_of_band else None
    table = reducers.current()
    outer, capturing.refs = capturing.refs, refs if capture else None
    if table is not None:
        outer_private, private.buffers = private.buffers, private_buffers if out_of_band else None
    try:
        if not by_value and not cloudpickle.list_registry_pickle_by_value():
            try:
                if table is None:
                    data = pickle.dumps(value, PROTOCOL, buffer_callback=callback)
                else:
                    file = io.BytesIO()
                    pickler = _PlainPickler(file, PROTOCOL, buffer_callback=callback)
                    pickler.dispatch_table = table
                    pickler.dump(value)
                    data = file.getvalue()
                if b"__main__" not in data:
                    return _new(Pickled, (data, buffers, private_buffers, refs))
            except UNPICKLABLE:
                pass
            del refs[:], buffers[:], private_buffers[:]
        file = io.BytesIO()
        _ByValuePickler(file, callback, table).dump(value)
        return Pickled(file.getvalue(), buffers, private_buffers, refs)
    finally:
        capturing.refs = outer
        if table is not None:
            private.buffers = outer_private
