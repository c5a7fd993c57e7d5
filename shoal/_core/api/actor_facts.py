"""What every handle of an actor knows: its methods, and the options that matter to callers. Travels as msgpack inside pickled handles."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import msgspec

from shoal._base.references import ObjectRef
from shoal._core.wire.messages import Address

from .conventions import CALL, READY, TERMINATE
from .options import METHOD_OPTIONS, check_options, value_of
from .signatures import CallSignature, Parameter
from .templates import encode_num_returns, encode_retry_exceptions

P = ParamSpec("P")
R = TypeVar("R")
C_co = TypeVar("C_co", covariant=True)

#: Where ``@method`` leaves its options on the function.
METHOD_ATTRIBUTE = "__shoal_method_options__"

_NOT_METHODS = frozenset({"__init__", "__new__", "__init_subclass__", "__class_getitem__", "__subclasshook__"})


class MethodFacts(msgspec.Struct, array_like=True, frozen=True):
    """One method: how it may be called, and what ``@method`` said."""

    name: str
    parameters: list[Parameter] | None
    is_generator: bool = False
    num_returns: int = 1  # as in TaskTemplate
    concurrency_group: str = ""
    max_task_retries: int | None = None  # None: the actor's
    retry_exceptions: bytes = b""
    backpressure: int = -1


class ActorFacts(msgspec.Struct, array_like=True):
    """One actor. ``methods`` stays encoded, so that all handles of a class share one decoded table."""

    actor_id: bytes
    job_id: bytes
    owner: Address
    class_id: bytes
    class_name: str
    path: str  # "module.qualname" of the class
    methods: msgspec.Raw
    name: str = ""
    namespace: str = ""
    detached: bool = False
    max_task_retries: int = 0
    max_pending_calls: int = -1
    out_of_order: bool = False
    concurrency_groups: list[str] = []


class Method:
    """A method as callers use it; one per class and process, shared by all handles."""

    __slots__ = ("facts", "signature")

    def __init__(self, facts: MethodFacts) -> None:
        self.facts = facts
        self.signature = CallSignature(facts.parameters, facts.name)


def encode_methods(cls: type) -> bytes:
    """Describe all methods that a handle of the class offers."""
    return msgspec.msgpack.encode([_facts(cls, name, function) for name, function in functions_of(cls)])


@lru_cache(maxsize=256)
def decode_methods(encoded: bytes) -> dict[str, Method]:
    """Return the table by name, with the methods that every actor has."""
    facts = msgspec.msgpack.decode(encoded, type=list[MethodFacts])
    return {**_BUILT_IN, **{one.name: Method(one) for one in facts}}


def functions_of(cls: type) -> list[tuple[str, Callable[..., Any]]]:
    """Return name and function of each method: own and inherited, class and static ones, without properties."""
    return [
        (name, function)
        for name, function in inspect.getmembers(cls, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
        if name not in _NOT_METHODS
    ]


def is_async_class(cls: type) -> bool:
    """True if any method is ``async def``: then all methods run on one event loop."""
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for _, f in functions_of(cls))


def _facts(cls: type, name: str, function: Callable[..., Any]) -> MethodFacts:
    is_plain = inspect.isfunction(inspect.getattr_static(cls, name))
    is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    options: Mapping[str, Any] = getattr(function, METHOD_ATTRIBUTE, {})
    return MethodFacts(
        name=name,
        parameters=CallSignature.of(function, skip_first=is_plain).parameters,
        is_generator=is_generator,
        num_returns=encode_num_returns(options.get("num_returns"), is_generator=is_generator),
        concurrency_group=options.get("concurrency_group") or "",
        max_task_retries=options.get("max_task_retries"),
        retry_exceptions=encode_retry_exceptions(options.get("retry_exceptions")),
        backpressure=value_of(METHOD_OPTIONS, options, "_generator_backpressure_num_objects") or -1,
    )


_ANYTHING = [("args", int(inspect.Parameter.VAR_POSITIONAL), False), ("kwargs", int(inspect.Parameter.VAR_KEYWORD), False)]
_BUILT_IN = {
    READY: Method(MethodFacts(READY, [])),
    TERMINATE: Method(MethodFacts(TERMINATE, [])),
    CALL: Method(MethodFacts(CALL, [("function", int(inspect.Parameter.POSITIONAL_ONLY), False), *_ANYTHING])),
}


class DeclaredMethod(Protocol[P, C_co, R]):
    """A method under ``@method`` as type checkers see it: a plain method for its own class, with ``remote`` for handles."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C_co: ...

    def remote(self, *args: Any, **kwargs: Any) -> ObjectRef[R]: ...


class _MethodDecorator(Protocol):
    """``method(num_returns=2)`` as type checkers see it."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> DeclaredMethod[P, Coroutine[Any, Any, R], R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> DeclaredMethod[P, R, R]: ...


@overload
def method(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> DeclaredMethod[P, Coroutine[Any, Any, R], R]: ...
@overload
def method(function: Callable[Concatenate[Any, P], R], /) -> DeclaredMethod[P, R, R]: ...
@overload
def method(**options: Any) -> _MethodDecorator: ...
def method(*args: Any, **options: Any) -> Any:
    """Give options to a method of an actor class: bare, or with at least one keyword.

    Example:
        >>> @shoal.remote
        ... class Pair:
        ...     @shoal.method(num_returns=2)
        ...     def both(self):
        ...         return 1, 2
    """
    if len(args) == 1 and not options and (callable(args[0]) or isinstance(args[0], classmethod | staticmethod)):
        return args[0]
    if args or any(name not in METHOD_OPTIONS for name in options):
        raise AssertionError(
            f"The @method decorator takes no arguments, or at least one keyword out of {', '.join(METHOD_OPTIONS)}; "
            "for example @method(num_returns=2)."
        )
    check_options(METHOD_OPTIONS, options, "actor methods")

    def annotate(function: Any) -> Any:
        target = function.__func__ if isinstance(function, classmethod | staticmethod) else function
        setattr(target, METHOD_ATTRIBUTE, options)
        return function

    return annotate
