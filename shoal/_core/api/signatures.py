"""Which arguments a remote callable takes, so that a wrong call fails at the caller and at once.

The check costs a comparison for calls without keywords (the usual case); the exact ``inspect.Signature.bind`` runs only for the others
and for those that fail, so the errors are Python's own, with the callable's name before and its signature behind.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

#: (name, kind of inspect.Parameter as a number, may be left out)
Parameter = tuple[str, int, bool]

_POSITIONAL = (int(inspect.Parameter.POSITIONAL_ONLY), int(inspect.Parameter.POSITIONAL_OR_KEYWORD))
_VAR_POSITIONAL = int(inspect.Parameter.VAR_POSITIONAL)
_KEYWORD_ONLY = int(inspect.Parameter.KEYWORD_ONLY)
#: Characters of a default that an error shows.
_DEFAULT_CHARS = 40


class CallSignature:
    """The parameters of a callable, small enough to travel with every actor handle.

    Calls of ``remote`` test ``low <= len(args) <= high`` themselves and call ``check`` when that fails or when there are keywords.
    """

    __slots__ = ("_defaults", "_exact", "high", "low", "name", "parameters")

    def __init__(self, parameters: list[Parameter] | None, name: str = "") -> None:
        #: None: unknown (a builtin without a signature), so nothing is checked here.
        self.parameters = parameters
        #: Of the callable, for errors.
        self.name = name
        #: The defaults by parameter, where they are at hand: they do not travel.
        self._defaults: dict[str, Any] = {}
        self._exact: inspect.Signature | None = None
        self.low, self.high = _positional_range(parameters)

    @classmethod
    def of(cls, function: Callable[..., Any], *, skip_first: bool = False, name: str = "") -> CallSignature:
        """Read the signature of ``function``; ``skip_first`` leaves out ``self``. ``name`` is what errors call it."""
        try:
            found = list(inspect.signature(function).parameters.values())
        except (ValueError, TypeError):
            return cls(None, name)
        if skip_first and found and found[0].kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            found = found[1:]
        signature = cls([(p.name, int(p.kind), p.default is not p.empty) for p in found], name)
        signature._defaults = {p.name: p.default for p in found if p.default is not p.empty}
        return signature

    def __reduce__(self) -> tuple[Any, ...]:
        return CallSignature, (self.parameters, self.name)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise the TypeError that a direct call would raise, with the signature in its text. O(arguments)."""
        if self.parameters is None:
            return
        if self._exact is None:
            self._exact = inspect.Signature([
                inspect.Parameter(name, _KINDS[kind], default=_Shown(self._shown(name)) if optional else inspect.Parameter.empty)
                for name, kind, optional in self.parameters
            ])  # fmt: skip
        try:
            self._exact.bind(*args, **kwargs)
        except TypeError as error:
            if not self.name:
                raise
            raise TypeError(f"{self.name}() {error}. Its signature is {self.name}{self._exact}.") from None

    def _shown(self, name: str) -> str:
        if name not in self._defaults:
            return "..."
        try:
            text = repr(self._defaults[name])
        except Exception:  # user code: its text is a help, no more
            return "..."
        return text if len(text) <= _DEFAULT_CHARS and "\n" not in text else "..."


class _Shown:
    """Stands for a default in the text of a signature."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


_KINDS = {int(kind): kind for kind in (
    inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD,
)}  # fmt: skip


def _positional_range(parameters: list[Parameter] | None) -> tuple[int, int]:
    """Return how many positional arguments are right when there are no keywords; (1, 0) if keywords are needed."""
    if parameters is None:
        return 0, sys.maxsize
    if any(kind == _KEYWORD_ONLY and not optional for _, kind, optional in parameters):
        return 1, 0
    positional = [optional for _, kind, optional in parameters if kind in _POSITIONAL]
    unlimited = any(kind == _VAR_POSITIONAL for _, kind, _ in parameters)
    return positional.count(False), sys.maxsize if unlimited else len(positional)
