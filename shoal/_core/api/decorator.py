"""``@shoal.remote``: the door from plain functions and classes to remote ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from shoal._base.references import ObjectRefGenerator

from .actor_class import ActorClass
from .options import ACTOR_OPTIONS, TASK_OPTIONS
from .remote_function import RemoteFunction

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


class RemoteGeneratorFunction(Protocol[P, R]):
    """A remote generator function as type checkers see it: ``remote`` returns a stream of references."""

    def remote(self, *args: Any, **kwargs: Any) -> ObjectRefGenerator[R]: ...

    def options(self, **task_options: Any) -> RemoteGeneratorFunction[P, R]: ...


class _Decorator(Protocol):
    """``remote(num_cpus=2)`` as type checkers see it."""

    @overload
    def __call__(self, target: type[C], /) -> ActorClass[C]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, target: Callable[P, Iterator[R]], /) -> RemoteGeneratorFunction[P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, target: Callable[P, R], /) -> RemoteFunction[P, R]: ...


@overload
def remote(target: type[C], /) -> ActorClass[C]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[P, Iterator[R]], /) -> RemoteGeneratorFunction[P, R]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**options: Any) -> _Decorator: ...
def remote(*args: Any, **options: Any) -> Any:
    """Make a function run in workers, or a class an actor class.

    Use it bare (``@shoal.remote``), with at least one option (``@shoal.remote(num_cpus=2)``), or as a call (``shoal.remote(f)``).

    Raises:
        AssertionError: used with parentheses and nothing inside, or with something else inside.
        TypeError: the target is neither a function nor a class; or an option has the wrong type.
        ValueError: an unknown option or a bad value; an ``async def`` function.
    """
    if len(args) == 1 and not options and (callable(args[0]) or _is_remote(args[0])):
        return _make(args[0], {})
    if args or not options:
        names = ", ".join(dict.fromkeys([*TASK_OPTIONS, *ACTOR_OPTIONS]))
        raise AssertionError(
            "The @shoal.remote decorator is applied without parentheses, as '@shoal.remote', or with some of these options as keywords, as "
            f"'@shoal.remote(num_cpus=2)': {names}."
        )
    return lambda target: _make(target, options)


def _make(target: Any, options: dict[str, Any]) -> Any:
    if inspect.isclass(target):
        return ActorClass(target, options)
    if inspect.isfunction(target) or inspect.isbuiltin(target) or type(target).__name__ == "cython_function_or_method":
        return RemoteFunction(target, options)
    what = "is remote already" if _is_remote(target) else f"is of type {type(target).__name__}"
    raise TypeError(f"The @shoal.remote decorator must be applied to either a function or a class, but {target!r} {what}.")


def _is_remote(target: object) -> bool:
    return isinstance(target, RemoteFunction | ActorClass)
