"""Node labels and the selectors that ask for them.

A selector maps a label to one condition, and a node matches when all conditions hold:

    "v"            the label has the value v
    "!v"           it has another value, or is absent
    "in(a, b)"     it has one of the values
    "!in(a, b)"    it has none of them, or is absent
    "*", "!*"      it is there, it is absent (made by NodeLabelSchedulingStrategy; users cannot write them)

Keys and values follow the rules of Kubernetes labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

#: Labels that the runtime sets itself, under the prefix that Ray's users know.
RESERVED_PREFIX = "ray.io/"
NODE_ID_LABEL = "ray.io/node-id"

EXISTS, ABSENT = "*", "!*"

Selector = tuple[tuple[str, str], ...]

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_SET = re.compile(r"in\((.*)\)")
_RULE = "at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"


def check_key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"A label key must be a string, got {key!r}.")
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _DOMAIN.fullmatch(prefix)):
        raise ValueError(f"The prefix of label key {key!r} must be a domain name of at most 253 characters.")
    if not _NAME.fullmatch(name):
        raise ValueError(f"Label key {key!r} is not valid: the name has {_RULE}.")
    return key


def check_value(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"The value of label {key!r} must be a string, got {value!r}.")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"Value {value!r} of label {key!r} is not valid: a value has {_RULE}.")
    return value


def check_labels(labels: Mapping[str, str], *, allow_reserved: bool = False) -> dict[str, str]:
    """Check the labels that a user gives a node; ``ray.io/`` is for the runtime."""
    for key, value in labels.items():
        check_value(check_key(key), value)
        if key.startswith(RESERVED_PREFIX) and not allow_reserved:
            raise ValueError(f"Label key {key!r} is reserved: keys that begin with {RESERVED_PREFIX!r} are set by the runtime.")
    return dict(labels)


def parse_selector(selector: Mapping[str, str] | None) -> Selector:
    """Check a user's label selector and return the form that stands in ``Shape.label_selector``.

    Raises:
        TypeError: not a mapping of strings to strings.
        ValueError: a key, operator or value is malformed; the message names it.
    """
    if selector is None:
        return ()
    if not isinstance(selector, Mapping):
        raise TypeError(f"label_selector must be a dict of label -> condition, got {type(selector).__name__}.")
    for key, condition in selector.items():
        check_key(key)
        if not isinstance(condition, str):
            raise TypeError(f"The condition for label {key!r} must be a string, got {condition!r}.")
        _, values = _parse_condition(condition)
        if not values:
            raise ValueError(f"Condition {condition!r} for label {key!r} names no value.")
        for value in values:
            if not value and condition:
                raise ValueError(f"Condition {condition!r} for label {key!r} has an empty value.")
            check_value(key, value)
    return tuple(sorted(selector.items()))


def matches(selector: Iterable[tuple[str, str]], labels: Mapping[str, str]) -> bool:
    """Do ``labels`` meet every condition of the selector?"""
    return not selector or all(_holds(condition, labels.get(key)) for key, condition in selector)


def describe(selector: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key}={condition}" for key, condition in selector)


def _holds(condition: str, value: str | None) -> bool:
    if condition == EXISTS:
        return value is not None
    if condition == ABSENT:
        return value is None
    negated, values = _parse_condition(condition)
    return (value in values) != negated


@lru_cache(maxsize=1024)
def _parse_condition(condition: str) -> tuple[bool, tuple[str, ...]]:
    """Return (negated, values)."""
    negated = condition.startswith("!")
    text = condition[1:] if negated else condition
    found = _SET.fullmatch(text.strip())
    if found is None:
        return negated, (text,)
    inside = found.group(1)
    return negated, tuple(part.strip() for part in inside.split(",")) if inside.strip() else ()
