"""The arguments of one call: references at top level become dependencies, everything else is pickled.

The payload of a call without keyword arguments and dependencies is the tuple of its arguments; of any other call the list
[positional, keyword, slots], where ``slots`` names the place of each dependency: an index or a keyword.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shoal._base.references import ObjectRef

from .inspect import describe, short
from .pickling import PROTOCOL, UNPICKLABLE, pickle_value
from .values import SCALARS, Serialized, assemble, deserialize


class SerializedArgs(NamedTuple):
    #: ``bytes`` unless there are buffers; b"" for a call without arguments.
    data: bytes | Serialized
    #: References at top level, in the order in which ``deserialize_args`` wants their values.
    deps: Sequence[ObjectRef[Any]]
    #: References inside other arguments.
    refs: Sequence[ObjectRef[Any]]


#: ``SerializedArgs(...)`` in a third of its time.
_new = tuple.__new__

NO_ARGS = SerializedArgs(b"", (), ())


def serialize_args(args: tuple[Any, ...], kwargs: dict[str, Any], function_name: str = "") -> SerializedArgs:
    """Turn the arguments of a call into bytes; TypeError names the argument that cannot be pickled, and which part of it."""
    if not kwargs:
        if not args:
            return NO_ARGS
        for value in args:
            if type(value) not in SCALARS:
                break
        else:
            return _new(SerializedArgs, (pickle.dumps(args, PROTOCOL), (), ()))
    deps: list[ObjectRef[Any]] = []
    slots: list[int | str] = []
    positional = [*args]
    only_scalars = True
    for index, value in enumerate(args):
        if type(value) in SCALARS:
            continue
        if isinstance(value, ObjectRef):
            deps.append(value)
            slots.append(index)
            positional[index] = None
        else:
            only_scalars = False
    for name, value in kwargs.items():
        if type(value) in SCALARS:
            continue
        if isinstance(value, ObjectRef):
            deps.append(value)
            slots.append(name)
            kwargs = {**kwargs, name: None}
        else:
            only_scalars = False
    payload = [positional, kwargs, slots] if kwargs or slots else args
    if only_scalars:
        return _new(SerializedArgs, (pickle.dumps(payload, PROTOCOL), deps, ()))
    try:
        pickled = pickle_value(payload)
    except (*UNPICKLABLE, RecursionError) as error:
        raise _explain(positional, kwargs, function_name, error) from error
    return _new(SerializedArgs, (assemble(pickled) if pickled.buffers else pickled.data, deps, pickled.refs))


def deserialize_args(
    data: bytes | memoryview, dep_values: Sequence[Any] = (), writable_view: Callable[[], memoryview] | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and keyword arguments, with the values of the dependencies in their places."""
    if not len(data):
        return [], {}
    payload = deserialize(data, writable_view)
    if type(payload) is tuple:
        return list(payload), {}
    positional, kwargs, slots = payload
    for slot, value in zip(slots, dep_values, strict=True):
        (positional if type(slot) is int else kwargs)[slot] = value
    return positional, kwargs


def _explain(positional: list[Any], kwargs: dict[str, Any], function_name: str, error: BaseException) -> TypeError:
    whom = f"a task or actor {function_name}" if function_name else "a task or actor"
    for name, value in [*((f"argument {index}", value) for index, value in enumerate(positional)), *kwargs.items()]:
        try:
            pickle_value(value)
        except Exception:  # whatever the user's own __reduce__ raises
            return TypeError(f"Could not serialize the argument {short(value)} ({name}) for {whom}: {error}\n{describe(value, name)}")
    return TypeError(f"Could not serialize the arguments for {whom}: {error}")
