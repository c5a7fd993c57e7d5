"""Values, arguments, functions and errors as bytes, and back.

    user thread, main thread of a worker
        values.py      a value: pickle, out-of-band buffers, 64-byte aligned; read without copies
        arguments.py   the arguments of a call; top-level references become dependencies
        copying.py     large buffers into a mapping, without the GIL
        functions.py   functions and classes, by value where no module has them
        errors.py      what a task raised, and what get raises; causes.py: the death of a process in words
        |
        pickling.py    plain C pickler first, cloudpickle where needed
        capture.py     which references are inside
        reducers.py    classes pickled in our own way: custom.py, torch_tensors.py, arrow_tables.py
        inspect.py     which part of an object cannot be pickled

Must not know: sockets, the object store, who owns what. Runs in every process that runs user code; a value is pickled and unpickled on
the thread that asks for it, never on the I/O thread, because pickling runs user code.
"""

from __future__ import annotations

from .arguments import SerializedArgs, deserialize_args, serialize_args
from .capture import record
from .causes import actor_died, describe_cause, error_named, sys_exit_cause, worker_crashed
from .custom import deregister_serializer, register_serializer
from .errors import deserialize_error, serialize_dependent_error, serialize_error, serialize_system_error
from .functions import pickle_function, unpickle_function
from .inspect import FailureTuple, inspect_serializability
from .values import Serialized, deserialize, serialize

__all__ = [
    "FailureTuple",
    "Serialized",
    "SerializedArgs",
    "actor_died",
    "deregister_serializer",
    "describe_cause",
    "deserialize",
    "deserialize_args",
    "deserialize_error",
    "error_named",
    "inspect_serializability",
    "pickle_function",
    "record",
    "register_serializer",
    "serialize",
    "serialize_args",
    "serialize_dependent_error",
    "serialize_error",
    "serialize_system_error",
    "sys_exit_cause",
    "unpickle_function",
    "worker_crashed",
]
