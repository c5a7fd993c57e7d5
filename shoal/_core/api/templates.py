"""From options to the ``TaskTemplate`` that all calls with the same options share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal._base.runtime import Runtime
from shoal._core.serialization import pickle_function
from shoal._core.wire.messages import TaskTemplate

from .conventions import DYNAMIC, RETRY_ALL, RETRY_NONE, STREAMING
from .options import TASK_OPTIONS, value_of
from .shapes import task_shape
from .wire_check import checked_record


def task_template(
    runtime: Runtime,
    function_id: bytes,
    function_name: str,
    options: Mapping[str, Any],
    *,
    is_generator: bool,
    inherited_group: bytes = b"",
) -> TaskTemplate:
    """Build the template of a remote function's calls."""
    name = function_name.rpartition(".")[2]
    shape, capture = task_shape(runtime, options, name, inherited_group)
    retries = options.get("max_retries")
    max_calls = options.get("max_calls")
    if max_calls is None:
        # A process keeps its device memory until it ends, so the device is free for the next task only if the worker goes.
        max_calls = 1 if options.get("num_gpus") else 0
    template = TaskTemplate(
        function_id=function_id,
        name=name,
        function_name=function_name,
        shape=shape,
        num_returns=encode_num_returns(options.get("num_returns"), is_generator=is_generator),
        max_retries=runtime.settings.task_max_retries if retries is None else retries,
        retry_exceptions=encode_retry_exceptions(options.get("retry_exceptions")),
        max_calls=max_calls,
        backpressure=value_of(TASK_OPTIONS, options, "_generator_backpressure_num_objects") or -1,
        capture_child_tasks=capture,
    )
    return checked_record(template, f"the options of {name}")


def encode_num_returns(num_returns: int | str | None, *, is_generator: bool) -> int:
    """Return the number on the wire; generator functions stream unless told otherwise.

    Raises:
        ValueError: "streaming" or "dynamic" for a function that yields nothing.
    """
    if num_returns is None:
        return STREAMING if is_generator else 1
    if isinstance(num_returns, int):
        return num_returns
    if not is_generator:
        raise ValueError(f"num_returns={num_returns!r} can only be used with generator functions, which use 'yield'; this one does not.")
    return STREAMING if num_returns == "streaming" else DYNAMIC


def encode_retry_exceptions(value: bool | list[type] | tuple[type, ...] | None) -> bytes:
    if not value:
        return RETRY_NONE
    if isinstance(value, bool):
        return RETRY_ALL
    return pickle_function(tuple(value))[0]
