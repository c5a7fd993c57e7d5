"""Find the part of an object that cannot be pickled.

The search follows what the pickler would follow, a few levels deep: closures and globals of functions, attributes, items of containers. The
deepest parts that fail are the culprits.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from .pickling import pickle_value

#: Members looked at per object, so that the report about a list of a million locks comes soon.
MEMBERS_MAX = 1000


@dataclass(frozen=True, eq=False)
class FailureTuple:
    """A part that cannot be pickled.

    Attributes:
        obj: the part.
        name: its path from the object that was inspected, as one would write it: ``f.<closure> lock``, ``self.items[3]``.
        parent: the object it was found in.
    """

    obj: Any
    name: str
    parent: Any

    @property
    def path(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"FailTuple({self.name} [obj={short(self.obj)}, parent={short(self.parent)}])"


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Tell whether an object can be sent to another process, and if not, which of its parts prevent it. Prints a report.

    Args:
        base_obj: any object.
        name: what the report calls it.
        depth: how many levels of members to follow.
        print_file: where the report goes; standard output by default.

    Returns:
        (True, empty set) or (False, the innermost parts that cannot be pickled).
    """
    name = name or _name_of(base_obj)
    file = print_file or sys.stdout
    rule = "=" * 80
    title = f"Checking Serializability of {short(base_obj)}"
    print(rule, title, rule, sep="\n", file=file)
    error = _failure(base_obj)
    if error is None:
        return True, set()
    failures = _search(base_obj, name, depth, error)
    print(_report(failures), file=file)
    print(rule, file=file)
    return False, {failure for failure, _ in failures}


def describe(obj: Any, name: str | None = None, depth: int = 3) -> str:
    """Return the report about an object that failed to pickle, for an error message."""
    error = _failure(obj)
    if error is None:
        return "(A second attempt succeeded: the object was changed meanwhile, perhaps by another thread.)"
    return _report(_search(obj, name or _name_of(obj), depth, error))


def short(value: Any, limit: int = 100) -> str:
    """Return the repr of a user's value, cut, for a message."""
    try:
        text = repr(value)
    except Exception as error:  # the user's __repr__
        text = f"<{type(value).__qualname__}, whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[:limit]}..."


def _report(failures: list[tuple[FailureTuple, BaseException]]) -> str:
    lines = ["What cannot be pickled:"]
    for failure, error in failures[:10]:
        lines.append(f"    {failure.name} = {short(failure.obj)}: {type(error).__name__}: {error}")
    if len(failures) > 10:
        lines.append(f"    ... and {len(failures) - 10} more")
    lines.append(
        "Create it inside the task or actor instead of passing it; or leave it out with __getstate__; or teach shoal to pickle its class "
        "with shoal.util.register_serializer."
    )
    return "\n".join(lines)


def _search(
    obj: Any, name: str, depth: int, error: BaseException, seen: set[int] | None = None, parent: Any = None
) -> list[tuple[FailureTuple, BaseException]]:
    """Return the innermost failing parts of ``obj``, which is known to fail with ``error``."""
    seen = set() if seen is None else seen
    seen.add(id(obj))
    found: list[tuple[FailureTuple, BaseException]] = []
    if depth > 0:
        for count, (member_name, member) in enumerate(_members(obj, name)):
            if count == MEMBERS_MAX:
                break
            if id(member) in seen:
                continue
            member_error = _failure(member)
            if member_error is not None:
                found += _search(member, member_name, depth - 1, member_error, seen, obj)
    return found or [(FailureTuple(obj, name, parent), error)]


def _members(obj: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of what the pickler would visit next."""
    if isinstance(obj, (list, tuple, set, frozenset)):
        for index, item in enumerate(obj):
            yield f"{name}[{index}]", item
    elif isinstance(obj, dict):
        for key, item in obj.items():
            yield f"{name}[{short(key, 40)}]", item
            yield f"key {short(key, 40)} of {name}", key
    elif inspect.ismethod(obj):
        yield f"{name}.__self__", obj.__self__
        yield f"{name}.__func__", obj.__func__
    elif inspect.isfunction(obj):
        try:
            outside = inspect.getclosurevars(obj)
        except ValueError:  # a cell that is still empty
            return
        for kind, names in (("closure", outside.nonlocals), ("global", outside.globals)):
            for variable, value in names.items():
                yield f"{name} -> {kind} variable {variable}", value
        for index, value in enumerate(obj.__defaults__ or ()):
            yield f"{name} -> default {index}", value
    elif isinstance(obj, type):
        for attribute, value in vars(obj).items():
            if attribute not in ("__dict__", "__weakref__", "__doc__", "__module__"):
                yield f"{name}.{attribute}", value
    else:
        for attribute, value in getattr(obj, "__dict__", {}).items():
            yield f"{name}.{attribute}", value
        for cls in type(obj).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if not slot.startswith("__") and hasattr(obj, slot):
                    yield f"{name}.{slot}", getattr(obj, slot)


def _failure(obj: Any) -> BaseException | None:
    try:
        pickle_value(obj)
    except Exception as error:  # whatever the user's own __reduce__ raises
        return error
    return None


def _name_of(obj: Any) -> str:
    return getattr(obj, "__qualname__", None) or short(obj, 60)
