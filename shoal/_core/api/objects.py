"""Objects: ``put``, ``get``, ``wait`` and ``cancel``.

``get`` and ``wait`` are called with thousands of references, so their checks are set operations that run in C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeVar, overload

from shoal._base import runtime as holder
from shoal._base.ids import TASK_BYTES
from shoal._base.references import ObjectRef, ObjectRefGenerator, unknown_owner
from shoal._base.runtime import Runtime

from .actor_handle import ActorHandle
from .lifecycle import ensure_runtime

T = TypeVar("T")
W = TypeVar("W", bound=ObjectRef[Any] | ObjectRefGenerator[Any])

_runtime_of = attrgetter("_runtime")
_id_of = attrgetter("_id")
_only_refs = {ObjectRef}


def put(value: T) -> ObjectRef[T]:
    """Store a copy of ``value`` and return a reference to it. Blocks only while the object store is full.

    Raises:
        TypeError: ``value`` is an ObjectRef (wrap it in a list), or cannot be pickled.
        ObjectStoreFullError: no room, and none came in time.
    """
    if isinstance(value, ObjectRef):
        raise TypeError(
            "put() does not take an ObjectRef: it is a reference already. To store the reference itself, put a list that holds it."
        )
    ref: ObjectRef[T] = ensure_runtime().put(value)
    return ref


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(object_refs: list[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...
@overload
def get(object_refs: ObjectRefGenerator[T], *, timeout: float | None = None) -> ObjectRefGenerator[T]: ...
def get(object_refs: Any, *, timeout: float | None = None) -> Any:
    """Return the value of a reference, or the values of a list of them in its order; blocks until they are there.

    Args:
        timeout: seconds to wait at most; 0 takes only what is ready, None (or -1) waits for ever.

    Raises:
        RayTaskError: the task raised; also an instance of what it raised. The first error in list order that is there raises
            at once, without waiting for the rest.
        GetTimeoutError: not all were there in time.
        ValueError: not a reference or list of references, or one of an earlier session.
        TypeError: the list holds something else.
    """
    if timeout is not None:
        timeout = _checked_timeout(timeout)
    if isinstance(object_refs, ObjectRef):
        runtime = holder._current
        if runtime is None or runtime is not object_refs._runtime:
            raise unknown_owner(object_refs)
        return runtime.get((object_refs,), timeout)[0]
    if isinstance(object_refs, ObjectRefGenerator):
        return object_refs
    if not isinstance(object_refs, list):
        raise ValueError(f"get() takes an ObjectRef or a list of them, got {_no_reference(object_refs)}")
    if not object_refs:
        return []
    if set(map(type, object_refs)) != _only_refs:
        for ref in object_refs:
            if not isinstance(ref, ObjectRef):
                raise TypeError(f"get() takes a list of ObjectRefs, but it holds {_no_reference(ref)}")
    return _session_of(object_refs).get(object_refs, timeout)


def wait(
    ray_waitables: list[W], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[W], list[W]]:
    """Wait until ``num_returns`` of the references are ready or the time is over.

    One is ready when its task has ended, well or not, and its value, if it is large, has been brought to this node.

    Args:
        ray_waitables: a list of unique ObjectRefs or ObjectRefGenerators; a generator is ready when its next item, or its end, is there.
        timeout: seconds; None waits for ever.
        fetch_local: False: a value need not be here to be ready, and is not brought here. True: what has begun to come goes on coming when
            the time is over, so that a later call finds it; a value for which this node has no room is ready where it is.

    Returns:
        (ready, rest), both in input order; ``ready`` has at most ``num_returns`` entries.

    Raises:
        TypeError: not a list of references.
        ValueError: duplicates, a bad ``num_returns`` or ``timeout``, or a reference of an earlier session.
    """
    if not isinstance(ray_waitables, list):
        raise TypeError(f"wait() expected a list of ObjectRefs or ObjectRefGenerators, got {_no_reference(ray_waitables)}")
    if timeout is not None and not _checked_number(timeout) >= 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    if not ray_waitables:
        return [], []
    try:
        # One pass over 500 references costs half of the call: whose the others are is looked at by the runtime, when it would block.
        unique = len(set(map(_id_of, ray_waitables)))
    except AttributeError:
        for item in ray_waitables:
            if not isinstance(item, ObjectRef | ObjectRefGenerator):
                raise TypeError(
                    f"wait() expected a list of ObjectRefs or ObjectRefGenerators, but it holds {_no_reference(item)}"
                ) from None
        unique = len(set(ray_waitables))
    if unique != len(ray_waitables):
        raise ValueError("wait() requires a list of unique references; some stand in it more than once.")
    if not isinstance(num_returns, int):
        raise TypeError(f"num_returns must be an int, got {type(num_returns).__name__}: {num_returns!r}.")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > unique:
        raise ValueError(f"num_returns ({num_returns}) cannot be greater than the number of references ({unique}).")
    runtime = holder._current
    if runtime is None or ray_waitables[0]._runtime is not runtime:
        raise unknown_owner(ray_waitables[0])
    return runtime.wait(ray_waitables, num_returns, timeout, fetch_local)


def cancel(ray_waitable: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True) -> None:
    """Cancel the task that makes the object: a queued one never runs, a running one gets KeyboardInterrupt. Does nothing to a finished one.

    ``get`` of its references raises TaskCancelledError.

    Args:
        force: kill the worker instead of interrupting it; not for actor calls (ValueError).
        recursive: also cancel what the task started.

    Raises:
        TypeError: not a reference; for actors use ``kill``.
    """
    if isinstance(ray_waitable, ObjectRefGenerator):
        task_id = ray_waitable._task_id
    elif isinstance(ray_waitable, ObjectRef):
        task_id = ray_waitable._id[:TASK_BYTES]
    else:
        hint = "for actors use shoal.kill()" if isinstance(ray_waitable, ActorHandle) else "what .remote() of a task returned"
        raise TypeError(f"cancel() takes an ObjectRef or ObjectRefGenerator ({hint}), got {type(ray_waitable).__name__}: {ray_waitable!r}.")
    _session_of([ray_waitable]).cancel(task_id, bool(force), bool(recursive))


def _session_of(refs: Sequence[Any]) -> Runtime:
    """Return the runtime that all references belong to. ValueError unless it is the one that runs now."""
    runtime = holder._current
    if runtime is None or set(map(_runtime_of, refs)) != {runtime}:
        raise unknown_owner(next(ref for ref in refs if ref._runtime is not runtime))
    return runtime


def _no_reference(value: Any) -> str:
    """Describe what was given in place of a reference, and what to give instead."""
    if isinstance(value, ObjectRef):
        hint = "Put it into a list: [ref]."
    elif callable(getattr(value, "remote", None)):
        hint = "It was not called: pass the reference that its .remote(...) returns."
    else:
        hint = "References are what .remote() and shoal.put() return; a plain value needs no get()."
    return f"{type(value).__name__}: {value!r:.200}. {hint}"


def _checked_timeout(timeout: float) -> float | None:
    """Return the seconds, None for "without limit"."""
    _checked_number(timeout)
    if timeout == -1:
        return None
    if not timeout >= 0:
        raise ValueError(f"The timeout of get() is in seconds and cannot be negative, got {timeout!r}. None waits without limit.")
    return None if math.isinf(timeout) else timeout


def _checked_number(timeout: float) -> float:
    if not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds or None, got {type(timeout).__name__}: {timeout!r}.")
    return timeout
