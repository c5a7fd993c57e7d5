"""Every option of tasks, actors and methods: one table, one check.

A wrong type is a TypeError, a bad value a ValueError, an unknown name a ValueError that lists the valid ones and suggests the nearest.
``None`` always means "as if not given". What the options mean for scheduling is ``shapes``' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal._base.suggestions import did_you_mean
from shoal._core.scheduling import labels
from shoal._core.scheduling.resources import UNIT

from .placement import PlacementGroup
from .strategies import STRATEGY_CLASSES

#: Smallest amount of a resource that can be asked for; resources are counted in units of it.
RESOURCE_STEP = 1 / UNIT
#: What users write finer than that (1/3 of a GPU) is rounded.
RESOURCE_DECIMALS = 4


@dataclass(frozen=True)
class Option:
    """One option: its types besides None, its default, and a check that returns the complaint about a value of the right type."""

    name: str
    types: tuple[type, ...]
    default: Any = None
    check: Callable[[Any], str | None] | None = None


def _amount(value: float) -> str | None:
    if not math.isfinite(value) or value < 0:
        return "a resource amount cannot be negative or infinite"
    if 0 < value < RESOURCE_STEP:
        return f"the smallest amount of a resource is {RESOURCE_STEP}"
    return None


def _resources(value: Mapping[Any, Any]) -> str | None:
    for name, amount in value.items():
        if not isinstance(name, str) or not name:
            return f"resource names are non-empty strings, got {name!r}"
        if name in _OWN_KEYWORD:
            return f"{name!r} has a keyword of its own; use {_OWN_KEYWORD[name]}"
        if not isinstance(amount, int | float):
            raise TypeError(f"Option 'resources' maps names to numbers, got {amount!r} for {name!r}.")
        if complaint := _amount(amount):
            return f"{complaint} ({name!r}: {amount!r})"
    return None


_OWN_KEYWORD = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory", "object_store_memory": "object_store_memory"}


def _count_or_forever(value: int) -> str | None:
    return None if value >= -1 else "only 0, a positive number, or -1 for without limit make sense"


def _at_least(low: int) -> Callable[[int], str | None]:
    return lambda value: None if value >= low else f"the least is {low}"


def _num_returns(value: int | str) -> str | None:
    if isinstance(value, str):
        return None if value in ("streaming", "dynamic") else "the words are 'streaming' and 'dynamic'"
    return None if value >= 0 else "num_returns must be >= 0, 'streaming' or 'dynamic'"


def _retry_exceptions(value: Any) -> str | None:
    if isinstance(value, bool) or all(isinstance(item, type) and issubclass(item, BaseException) for item in value):
        return None
    return "it must be a bool or a list of exception classes"


def _backpressure(value: int) -> str | None:
    return None if value > 0 or value == -1 else "it must be at least 1 (one item at a time), or -1 to switch it off"


def _sendable(value: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return "it holds characters that UTF-8 cannot say"
    return None


def _not_empty(value: str) -> str | None:
    return None if value else "it cannot be an empty string; leave it out instead"


def _lifetime(value: str) -> str | None:
    return None if value in ("detached", "non_detached") else "it is 'detached', 'non_detached' or None"


def _groups(value: Mapping[Any, Any]) -> str | None:
    for name, limit in value.items():
        if not isinstance(name, str) or not isinstance(limit, int) or limit < 1:
            return f"it maps names to a number of concurrent calls, got {name!r}: {limit!r}"
    return None


def _not_for_tasks(value: Any) -> str | None:
    return "tasks cannot reserve room in the object store"


def _selector(value: dict[Any, Any]) -> str | None:
    labels.parse_selector(value)
    return None


def _fallbacks(value: list[Any]) -> str | None:
    for item in value:
        if not isinstance(item, dict) or set(item) != {"label_selector"}:
            return f"it is a list of {{'label_selector': {{...}}}}, got {item!r}"
        labels.parse_selector(item["label_selector"])
    return None


def _table(*groups: Iterable[Option]) -> dict[str, Option]:
    return {option.name: option for group in groups for option in group}


_NUMBER = (int, float)

_SCHEDULING = (
    Option("num_cpus", _NUMBER, None, _amount),
    Option("num_gpus", _NUMBER, None, _amount),
    Option("memory", _NUMBER, None, _amount),
    Option("resources", (dict,), None, _resources),
    Option("accelerator_type", (str,)),
    Option("label_selector", (dict,), None, _selector),
    Option("fallback_strategy", (list,), None, _fallbacks),
    Option("runtime_env", (dict,)),
    Option("scheduling_strategy", (str, *STRATEGY_CLASSES)),
    Option("placement_group", (str, PlacementGroup), "default"),
    Option("placement_group_bundle_index", (int,), -1, _at_least(-1)),
    Option("placement_group_capture_child_tasks", (bool,)),
    Option("enable_task_events", (bool,), True),
    Option("_labels", (dict,)),
    Option("_metadata", (dict,)),
)
_STREAM = Option("_generator_backpressure_num_objects", (int,), None, _backpressure)
_RETRY = Option("retry_exceptions", (bool, list, tuple), False, _retry_exceptions)
_RETURNS = Option("num_returns", (int, str), None, _num_returns)

TASK_OPTIONS = _table(
    _SCHEDULING,
    (
        Option("name", (str,), None, _sendable),
        Option("max_calls", (int,), None, _at_least(0)),
        Option("max_retries", (int,), None, _count_or_forever),
        Option("object_store_memory", _NUMBER, None, _not_for_tasks),
        _RETRY,
        _RETURNS,
        _STREAM,
    ),
)

ACTOR_OPTIONS = _table(
    _SCHEDULING,
    (
        Option("name", (str,), None, _not_empty),
        Option("namespace", (str,), None, _not_empty),
        Option("lifetime", (str,), None, _lifetime),
        Option("max_restarts", (int,), 0, _count_or_forever),
        Option("max_task_retries", (int,), 0, _count_or_forever),
        Option("max_concurrency", (int,), None, _at_least(1)),
        Option("max_pending_calls", (int,), -1, _count_or_forever),
        Option("concurrency_groups", (dict,), None, _groups),
        Option("get_if_exists", (bool,), False),
        Option("allow_out_of_order_execution", (bool,)),
        Option("object_store_memory", _NUMBER, None, _amount),
        Option("enable_tensor_transport", (bool,)),
        Option("_actor_generator_backpressure_num_objects", (int,), None, _backpressure),
    ),
)

METHOD_OPTIONS = _table((
    _RETURNS,
    Option("name", (str,), None, _sendable),
    Option("concurrency_group", (str,)),
    Option("max_task_retries", (int,), None, _count_or_forever),
    _RETRY,
    Option("enable_task_events", (bool,), True),
    Option("tensor_transport", (str,)),
    _STREAM,
))  # fmt: skip

#: Options that describe the function or class itself, so one call cannot change them.
_DECORATOR_ONLY = {"max_calls", "concurrency_groups", "enable_tensor_transport"}


def check_options(table: dict[str, Option], options: Mapping[str, Any], what: str, *, at_call: bool = False) -> None:
    """Check names, types and values of ``options`` against ``table``.

    Args:
        what: whose options they are, in the plural, for the message: "remote functions", "actors", "actor methods".
        at_call: they come from ``.options()``, where some are not allowed.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is bad, a name is unknown, or an option cannot be changed in ``.options()``.
    """
    for name, value in options.items():
        option = table.get(name)
        if option is None:
            raise ValueError(f"Invalid option keyword {name!r} for {what}.{did_you_mean(name, table)} Valid ones are: {', '.join(table)}.")
        if at_call and name in _DECORATOR_ONLY:
            raise ValueError(f"Setting {name!r} is not supported in '.options()'. Give it to the decorator.")
        if value is None:
            continue
        if not isinstance(value, option.types):
            expected = " or ".join(t.__name__ for t in option.types)
            raise TypeError(f"Option {name!r} must be {expected} or None, got {type(value).__name__}: {value!r}.")
        complaint = option.check(value) if option.check is not None else None
        if complaint is not None:
            raise ValueError(f"Option {name}={value!r} is not valid: {complaint}.")


def frozen(options: Mapping[str, Any]) -> Any:
    """Return something hashable that is equal for equal options; None if there is no such thing."""
    key = tuple(sorted((name, _frozen_value(value)) for name, value in options.items()))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _frozen_value(value: Any) -> Any:
    if isinstance(value, dict):
        return ("dict", *((key, _frozen_value(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", *map(_frozen_value, value))
    return value


def value_of(table: dict[str, Option], options: Mapping[str, Any], name: str) -> Any:
    """Return the option's value, or its default when it was not given or is None."""
    value = options.get(name)
    return table[name].default if value is None else value
