"""Remote functions: what ``@shoal.remote`` makes of a function.

The path of ``f.remote(...)`` without options: compare the number of arguments, compare the runtime with the one the template was made for,
``runtime.submit_task``. Everything else happens at the first call of a job and is kept.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

from shoal._base import runtime as holder
from shoal._base.references import ObjectRef
from shoal._base.runtime import Runtime
from shoal._core.wire.messages import TaskTemplate

from .exports import Export
from .lifecycle import ensure_runtime
from .options import TASK_OPTIONS, check_options
from .shapes import captured_group
from .signatures import CallSignature
from .templates import encode_num_returns, task_template

P = ParamSpec("P")
R = TypeVar("R")


class RemoteFunction(Generic[P, R]):
    """A function that runs in a worker: ``f.remote(...)`` submits a call and returns a reference to its result.

    Example:
        >>> @shoal.remote
        ... def square(x):
        ...     return x * x
        >>> shoal.get(square.remote(3))
        9
    """

    def __init__(self, function: Callable[P, R], options: Mapping[str, Any]) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ValueError(
                f"'async def' functions cannot be remote functions: {_display_name(function)}. Make it a plain function that "
                "calls asyncio.run(...), or use an actor with async methods."
            )
        check_options(TASK_OPTIONS, options, "remote functions")
        self._options: dict[str, Any] = dict(options)
        #: Travels with each call, not in the template: programs give each task a name of its own.
        self._task_name: str = options.get("name") or ""
        self._export = Export(function)
        self._signature = CallSignature.of(function, name=getattr(function, "__name__", ""))
        self._is_generator = inspect.isgeneratorfunction(function)
        self._prepared_for: Runtime | None = None
        self._template: TaskTemplate | None = None
        #: A worker's running task may hand its placement group on; a driver never does.
        self._may_inherit = False
        #: The last template for a group that was handed on, and the group.
        self._inherited: tuple[bytes, TaskTemplate] | None = None
        encode_num_returns(self._options.get("num_returns"), is_generator=self._is_generator)
        functools.update_wrapper(self, function, updated=())
        del self.__wrapped__  # type: ignore[attr-defined]  # inspect would take us for the function itself

    def remote(self, *args: Any, **kwargs: Any) -> ObjectRef[R]:
        """Submit a call and return at once.

        References among the arguments are replaced by their values before the function runs; references inside of lists or other objects
        stay references. Arguments are copied.

        Returns:
            One ObjectRef; a list of them for ``num_returns >= 2``; None for 0; an ObjectRefGenerator for generator functions.

        Raises:
            TypeError: the arguments do not fit the function's signature, or one cannot be pickled.
        """
        signature = self._signature
        if kwargs or not signature.low <= len(args) <= signature.high:
            signature.check(args, kwargs)
        runtime = holder._current
        if runtime is None or runtime is not self._prepared_for:
            runtime = self._prepare()
        if self._may_inherit and (group := captured_group(runtime)):
            return runtime.submit_task(self._inherited_template(runtime, group), args, kwargs, self._task_name)  # type: ignore[no-any-return]
        return runtime.submit_task(self._template, args, kwargs, self._task_name)  # type: ignore[no-any-return]

    def options(self, **task_options: Any) -> RemoteFunction[P, R]:
        """Return the same function with other options; ``max_calls`` can only stand in the decorator."""
        check_options(TASK_OPTIONS, task_options, "remote functions", at_call=True)
        other: RemoteFunction[P, R] = RemoteFunction.__new__(RemoteFunction)
        other.__dict__.update(self.__dict__)
        other._options = {**self._options, **task_options}
        other._prepared_for = other._template = other._inherited = None
        other._task_name = other._options.get("name") or ""
        return other

    def _remote(self, args: Any = None, kwargs: Any = None, **task_options: Any) -> Any:
        """``remote`` with the arguments in a tuple and a dict, and options beside them."""
        function = self.options(**task_options) if task_options else self
        return function.remote(*(args or ()), **(kwargs or {}))

    @property
    def _function(self) -> Callable[P, R]:
        """The plain function."""
        function: Callable[P, R] = self._export.target
        return function

    @property
    def _function_name(self) -> str:
        return _display_name(self._export.target)

    def _prepare(self) -> Runtime:
        """Make the template for this process's runtime, once per session and set of options."""
        runtime = ensure_runtime()
        options = {key: value for key, value in self._options.items() if key != "name"}
        self._template = self._export.template(runtime, options, lambda: self._make_template(runtime))
        self._inherited = None
        self._may_inherit = not runtime.is_driver and not self._names_a_place()
        self._prepared_for = runtime
        return runtime

    def _make_template(self, runtime: Runtime, inherited_group: bytes = b"") -> TaskTemplate:
        return task_template(
            runtime,
            self._export.ensure(runtime),
            self._function_name,
            self._options,
            is_generator=self._is_generator,
            inherited_group=inherited_group,
        )

    def _inherited_template(self, runtime: Runtime, group: bytes) -> TaskTemplate:
        kept = self._inherited
        if kept is None or kept[0] != group:
            kept = self._inherited = (group, self._make_template(runtime, group))
        return kept[1]

    def _names_a_place(self) -> bool:
        return self._options.get("scheduling_strategy") is not None or self._options.get("placement_group", "default") != "default"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._function_name
        raise TypeError(f"Remote functions cannot be called directly. Instead of '{name}()', use '{name}.remote()'.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared_for": None, "_template": None, "_inherited": None}

    def __repr__(self) -> str:
        return f"<remote function {self._function_name}>"


def _display_name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"
