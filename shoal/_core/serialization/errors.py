"""Exceptions on their way from the task that raised them to the ``get`` that raises them again.

A serialized error is a pickle that needs nothing of the user's: a kind, plain facts, and the exception itself as a pickle inside the
pickle. If that inner one cannot be made (a lock in its attributes) or read (its module is not here), the facts still arrive.
"""

from __future__ import annotations

import os
import pickle
import traceback
from typing import Any

from shoal import exceptions
from shoal.exceptions import RayError, RayTaskError

from .pickling import PROTOCOL, pickle_value

_RUNTIME_FILES = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TASK, _SYSTEM = 0, 1
#: How the text of an error begins that came with an argument.
_DEPENDENT = "At least one of the input arguments for this task"


def serialize_error(
    exc: BaseException,
    *,
    function_name: str,
    pid: int,
    ip: str,
    attempt: int,
    max_attempts: int,
    actor_repr: str = "",
    actor_id: str = "",
) -> bytes:
    """Turn the exception that user code has just raised into what the owner of the result stores. Never raises.

    Args:
        function_name: "module.qualname".
        attempt: which try this was, from 1.
        max_attempts: how many there may be after errors like this; -1 for no limit, 0 if such errors are not retried: then the attempt is
            told only when it is not the first.
        actor_repr: of the actor whose method it was.
        actor_id: hexadecimal; set for errors of ``__init__``.
    """
    _explain(exc)
    cause, text = exc, ""
    if isinstance(exc, RayTaskError):  # get() raised another task's error: keep the original cause, do not nest
        cause = exc.cause or exc
        frames = format_frames(exc)
        text = f"{exc}\n" + (f"  which reached task {function_name} here:\n{frames}" if frames else "")
    facts = {
        "function_name": function_name,
        "traceback_str": text or format_error(exc),
        "proctitle": f"shoal::{function_name}()",
        "pid": pid,
        "ip": ip,
        "actor_repr": actor_repr,
        "actor_id": actor_id or None,
        "attempt": attempt if max_attempts or attempt > 1 else 0,
        "max_attempts": max_attempts,
    }
    summary = "".join(_summary(cause))
    return pickle.dumps((_TASK, facts, _pickle_exception(cause), summary), PROTOCOL)


def serialize_dependent_error(data: bytes, function_name: str) -> bytes:
    """Turn the error of an argument into that of the task that needed it: the same cause, with a line that says how it got there.

    Only the first task of a chain is named, so that an error does not grow with every step. Runs no user code.
    """
    kind, facts, blob, summary = pickle.loads(data)
    if kind != _TASK or facts["traceback_str"].startswith(_DEPENDENT):
        return data
    text = f"{_DEPENDENT} could not be computed: {function_name} did not run.\n{facts['traceback_str']}"
    return pickle.dumps((kind, {**facts, "traceback_str": text}, blob, summary), PROTOCOL)


def _explain(exc: BaseException) -> None:
    """Add what to do to errors whose own text does not say it."""
    if type(exc) is ValueError and "read-only" in str(exc) and not getattr(exc, "__notes__", None):
        exc.add_note(
            "Arguments and the results of get() are read-only, since other tasks may read the same memory. Change a copy: x = x.copy()."
        )


def serialize_system_error(exc: BaseException) -> bytes:
    """Turn an error that the runtime itself has made into what ``get`` raises as it is."""
    blob = _pickle_exception(exc)
    return pickle.dumps((_SYSTEM, {}, blob, "".join(_summary(exc))), PROTOCOL)


def deserialize_error(data: bytes | memoryview) -> BaseException:
    """Return what ``get`` must raise. Never raises: an exception that cannot be rebuilt arrives as a RayTaskError with the text."""
    kind, facts, blob, summary = pickle.loads(data)
    cause = _unpickle_exception(blob, summary)
    if kind == _SYSTEM:
        return cause
    return RayTaskError(cause=cause, **facts).as_instanceof_cause()


def format_error(exc: BaseException) -> str:
    """Return the traceback as Python prints it, with causes and notes, without frames of the runtime."""
    try:
        report = traceback.TracebackException(type(exc), exc, exc.__traceback__, compact=True)
        _strip(report, set())
        return "".join(report.format())
    except Exception as problem:  # user code: __str__, __notes__ or a broken loader of source lines
        return f"{type(exc).__qualname__}: (its traceback cannot be shown: {type(problem).__name__}: {problem})\n"


def format_frames(exc: BaseException) -> str:
    """Return only the user's frames of the traceback, each in two lines."""
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if not is_runtime_file(frame.filename)]
    return "".join(traceback.format_list(frames))


def _strip(report: traceback.TracebackException | None, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    report.stack = traceback.StackSummary.from_list([frame for frame in report.stack if not is_runtime_file(frame.filename)])
    for other in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
        _strip(other, seen)


def is_runtime_file(filename: str) -> bool:
    """Whether a frame of this source file is the runtime's own, which users need not see."""
    return filename.startswith(_RUNTIME_FILES)


def _pickle_exception(exc: BaseException) -> bytes | None:
    try:
        # capture=False: a failed value names no references, so those in an exception are pinned for good.
        return pickle_value(exceptions._Portable(exc), out_of_band=False, capture=False).data
    except Exception:  # user code: attributes that cannot be pickled, a __reduce__ that raises
        return None


def _unpickle_exception(blob: bytes | None, summary: str) -> BaseException:
    if blob is None:
        return RayError(f"{summary}(The exception cannot be pickled, so its text stands in its place.)")
    try:
        exc: Any = pickle.loads(blob)
    except Exception as problem:  # user code: its module cannot be imported here, __setstate__ raises
        why = f"{type(problem).__name__}: {problem}"
        return RayError(f"{summary}(The exception cannot be rebuilt in this process, so its text stands in its place: {why})")
    return exc if isinstance(exc, BaseException) else RayError(summary)


def _summary(exc: BaseException) -> list[str]:
    try:
        return traceback.format_exception_only(type(exc), exc)
    except Exception as problem:  # the user's __str__ or __notes__
        return [f"{type(exc).__qualname__} (its text cannot be shown: {type(problem).__name__})\n"]
