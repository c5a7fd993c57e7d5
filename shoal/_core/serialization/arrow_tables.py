"""Slices of Arrow tables, which by themselves pickle the whole table they were cut from."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

#: A slice goes through Arrow's IPC format (one copy of the slice) when what it would drag along is this many bytes at least...
WASTE_BYTES = 4096
#: ... and this many times its own size. Below that the plain way is better: no copy.
WASTE_FACTOR = 2


def reducers(pyarrow: Any) -> dict[type, Any]:
    """Return reducers by class; {} while pyarrow is still being imported."""
    if not hasattr(pyarrow, "ipc") or not hasattr(pyarrow, "RecordBatchStreamWriter"):
        return {}

    def reduce(table: Any) -> Any:
        try:
            dragged = table.get_total_buffer_size()
            wasteful = dragged > WASTE_BYTES and dragged > WASTE_FACTOR * table.nbytes
        except (NotImplementedError, pyarrow.ArrowException):  # types whose size Arrow cannot tell
            wasteful = False
        if not wasteful:
            return table.__reduce_ex__(5)
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write(table)
        return _read, (pickle.PickleBuffer(sink.getvalue()), isinstance(table, pyarrow.RecordBatch))

    return {pyarrow.Table: reduce, pyarrow.RecordBatch: reduce}


def _read(buffer: Any, as_batch: bool) -> Any:
    pyarrow = importlib.import_module("pyarrow")
    with pyarrow.ipc.open_stream(pyarrow.py_buffer(buffer)) as reader:
        return reader.read_next_batch() if as_batch else reader.read_all()
