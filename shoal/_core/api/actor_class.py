"""Actor classes: what ``@shoal.remote`` makes of a class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import msgspec

from shoal._base import ids
from shoal._base import runtime as holder
from shoal._base.runtime import Runtime
from shoal._core.wire.messages import ActorSpec
from shoal.exceptions import ActorAlreadyExistsError

from .actor_facts import ActorFacts, encode_methods, is_async_class
from .actor_handle import ActorHandle, encode_facts
from .exports import Export
from .lifecycle import ensure_runtime
from .named_actors import get_actor
from .options import ACTOR_OPTIONS, check_options, value_of
from .shapes import actor_shape, captured_group
from .signatures import CallSignature
from .wire_check import checked_record

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Calls that an async actor runs at once unless ``max_concurrency`` says otherwise.
ASYNC_CONCURRENCY = 1000
#: Rounds of "look it up, else make it" before ``get_if_exists`` gives up: each needs the actor to die or to be born in between.
GET_OR_CREATE_ROUNDS = 10


class ActorClassInheritanceException(TypeError):
    """A class was derived from an actor class."""


class ActorClass(Generic[T]):
    """A class whose instances are actors: ``A.remote(...)`` starts one in a worker of its own and returns a handle.

    Example:
        >>> @shoal.remote
        ... class Counter:
        ...     def __init__(self):
        ...         self.n = 0
        ...     def add(self, k=1):
        ...         self.n += k
        ...         return self.n
        >>> counter = Counter.remote()
        >>> shoal.get([counter.add.remote(), counter.add.remote(2)])
        [1, 3]
    """

    def __init__(self, cls: type[T], options: Mapping[str, Any]) -> None:
        check_options(ACTOR_OPTIONS, options, "actors")
        self._options: dict[str, Any] = dict(options)
        self._export = Export(cls)
        self._methods = encode_methods(cls)
        self._is_async = is_async_class(cls)
        self._signature = _init_signature(cls)
        self._prepared_for: Runtime | None = None
        self._prototype: ActorSpec | None = None
        self.__name__, self.__qualname__ = cls.__name__, cls.__qualname__
        self.__module__, self.__doc__ = cls.__module__, cls.__doc__

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Start an actor and return its handle at once; calls wait until ``__init__`` is done.

        Raises:
            TypeError: the arguments do not fit ``__init__``.
            ActorAlreadyExistsError: a live actor of the namespace has the name.
            ValueError: options that contradict each other.
        """
        signature = self._signature
        if kwargs or not signature.low <= len(args) <= signature.high:
            signature.check(args, kwargs)
        runtime = holder._current
        if runtime is None or runtime is not self._prepared_for:
            runtime = self._prepare()
        if value_of(ACTOR_OPTIONS, self._options, "get_if_exists"):
            return self._get_or_create(runtime, args, kwargs)
        return self._create(runtime, args, kwargs)

    def options(self, **actor_options: Any) -> ActorClass[T]:
        """Return the same class with other options; ``concurrency_groups`` can only stand in the decorator."""
        check_options(ACTOR_OPTIONS, actor_options, "actors", at_call=True)
        other: ActorClass[T] = ActorClass.__new__(ActorClass)
        other.__dict__.update(self.__dict__)
        other._options = {**self._options, **actor_options}
        other._prepared_for = other._prototype = None
        return other

    def _remote(self, args: Any = None, kwargs: Any = None, **actor_options: Any) -> ActorHandle[T]:
        """``remote`` with the arguments in a tuple and a dict, and options beside them."""
        actor_class = self.options(**actor_options) if actor_options else self
        return actor_class.remote(*(args or ()), **(kwargs or {}))

    @property
    def __ray_actor_class__(self) -> type[T]:
        """The plain class."""
        cls: type[T] = self._export.target
        return cls

    def _prepare(self) -> Runtime:
        """Make what all actors with these options share, once per session."""
        runtime = ensure_runtime()
        self._prototype = self._make_prototype(runtime)
        self._prepared_for = runtime
        return runtime

    def _get_or_create(self, runtime: Runtime, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle[T]:
        """Two processes that do this at once get the same actor: the control store lets one of them create."""
        for _ in range(GET_OR_CREATE_ROUNDS):
            try:
                return get_actor(self._options["name"], self._options.get("namespace"))
            except ValueError:  # there is none
                pass
            try:
                return self._create(runtime, args, kwargs)
            except ActorAlreadyExistsError as error:
                taken = error
        raise taken

    def _create(self, runtime: Runtime, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle[T]:
        prototype = self._prototype
        inherited = b"" if runtime.is_driver else captured_group(runtime)
        if prototype is None or inherited:
            prototype = self._make_prototype(runtime, inherited)
        spec: ActorSpec = msgspec.structs.replace(prototype, actor_id=ids.random_actor_id(ids.JobId(runtime.job_id)))
        facts = self._facts(spec)
        spec.handle = encode_facts(facts)
        runtime.create_actor(spec, args, kwargs)
        return ActorHandle(facts, None if spec.detached else runtime.actor_token(spec.actor_id, spec.owner))

    def _make_prototype(self, runtime: Runtime, inherited_group: bytes = b"") -> ActorSpec:
        """Build a spec without actor id, arguments and handle."""
        options = self._options
        _check_together(options)
        concurrency = options.get("max_concurrency") or (ASYNC_CONCURRENCY if self._is_async else 1)
        concurrent = self._is_async or concurrency > 1
        out_of_order = options.get("allow_out_of_order_execution")
        if out_of_order is False and concurrent:
            raise ValueError(
                "An async actor, or one with max_concurrency > 1, cannot run its calls in order: leave allow_out_of_order_execution out."
            )
        shape, capture = actor_shape(runtime, options, self.__name__, inherited_group)
        lifetime = options.get("lifetime") or runtime.job_config.default_actor_lifetime
        spec = ActorSpec(
            actor_id=b"",
            job_id=runtime.job_id,
            owner=runtime.address,
            class_id=self._export.ensure(runtime),
            class_name=self.__name__,
            args=b"",
            deps=[],
            shape=shape,
            name=options.get("name") or "",
            namespace=options.get("namespace") or runtime.namespace,
            detached=lifetime == "detached",
            max_restarts=value_of(ACTOR_OPTIONS, options, "max_restarts"),
            max_task_retries=value_of(ACTOR_OPTIONS, options, "max_task_retries"),
            max_concurrency=concurrency,
            max_pending_calls=value_of(ACTOR_OPTIONS, options, "max_pending_calls"),
            is_async=self._is_async,
            concurrency_groups=dict(options.get("concurrency_groups") or {}),
            out_of_order=concurrent if out_of_order is None else out_of_order,
            capture_child_tasks=capture,
        )
        return checked_record(spec, f"the options of {self.__name__}")

    def _facts(self, spec: ActorSpec) -> ActorFacts:
        return ActorFacts(
            actor_id=spec.actor_id,
            job_id=spec.job_id,
            owner=spec.owner,
            class_id=spec.class_id,
            class_name=spec.class_name,
            path=f"{self.__module__}.{self.__qualname__}",
            methods=msgspec.Raw(self._methods),
            name=spec.name,
            namespace=spec.namespace,
            detached=spec.detached,
            max_task_retries=spec.max_task_retries,
            max_pending_calls=spec.max_pending_calls,
            out_of_order=spec.out_of_order,
            concurrency_groups=list(spec.concurrency_groups),
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"Actors cannot be instantiated directly. Instead of '{self.__name__}()', use '{self.__name__}.remote()'.")

    def __getattr__(self, name: str) -> Any:
        """Class attributes, static and class methods of the plain class: they need no actor."""
        export = self.__dict__.get("_export")  # absent while an instance is being unpickled
        if export is None or (name.startswith("__") and name.endswith("__")) or not hasattr(export.target, name):
            raise AttributeError(
                f"{type(self).__name__} {self.__dict__.get('__qualname__', '')} has no attribute {name!r}", name=name, obj=self
            )
        return getattr(export.target, name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"An actor class cannot be a base class: {self.__qualname__}. Derive from the plain class and decorate the derived one with "
            "@shoal.remote."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared_for": None, "_prototype": None}

    def __repr__(self) -> str:
        return f"<actor class {self.__module__}.{self.__qualname__}>"


def _init_signature(cls: type) -> CallSignature:
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return CallSignature([], cls.__name__)
    init: Callable[..., Any] = cls.__init__  # type: ignore[misc]
    return CallSignature.of(init, skip_first=True, name=cls.__name__)


def _check_together(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that contradict each other."""
    if value_of(ACTOR_OPTIONS, options, "get_if_exists") and not options.get("name"):
        raise ValueError("The actor name must be specified to use get_if_exists=True.")
    if options.get("object_store_memory") is not None:
        warnings.warn("The option 'object_store_memory' of actors has no effect.", DeprecationWarning, stacklevel=5)
