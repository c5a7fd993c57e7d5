"""Methods of an actor handle: ``handle.method.remote(...)``.

A new ActorMethod is made at each access and holds the handle: kept in the handle instead, the two would keep each other, and the
actor, alive until the next run of the cycle collector.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from shoal._base import runtime as holder
from shoal._base.runtime import Runtime
from shoal._base.suggestions import did_you_mean
from shoal._core.wire.messages import Shape, TaskTemplate
from shoal.exceptions import ActorHandleNotFoundError

from .actor_facts import ActorFacts, Method
from .options import METHOD_OPTIONS, check_options, frozen
from .signatures import CallSignature
from .templates import encode_num_returns, encode_retry_exceptions
from .wire_check import checked_record


class Handle(Protocol):
    """What a method asks of its handle."""

    _runtime: Runtime | None
    #: What was called through the handle, by method name, or by (method name, options).
    _calls: dict[Any, BoundCall]


class BoundCall:
    """All that calls of one method of one actor with the same options share."""

    __slots__ = ("facts", "high", "low", "method", "signature", "template")

    def __init__(self, facts: ActorFacts, method: Method, template: TaskTemplate) -> None:
        self.facts = facts
        self.method = method
        self.template = template
        self.signature: CallSignature = method.signature
        self.low, self.high = self.signature.low, self.signature.high


class ActorMethod:
    """One method of one actor; ``remote`` calls it."""

    __slots__ = ("_call", "_handle", "_task_name")

    def __init__(self, handle: Handle, call: BoundCall, task_name: str = "") -> None:
        self._handle = handle
        self._call = call
        self._task_name = task_name

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a call and return at once; calls of one handle run in the order of submission.

        Returns:
            As ``RemoteFunction.remote``.

        Raises:
            TypeError: the arguments do not fit the method's signature, or one cannot be pickled.
            PendingCallsLimitExceeded: the actor has ``max_pending_calls`` of this process already.
            ActorHandleNotFoundError: the handle is of an earlier session.
        """
        call = self._call
        if kwargs or not call.low <= len(args) <= call.high:
            call.signature.check(args, kwargs)
        runtime = holder._current
        if runtime is None or runtime is not self._handle._runtime:
            raise lost_handle(self._handle)
        return runtime.submit_actor_call(call.template, args, kwargs, self._task_name)

    def options(self, **method_options: Any) -> ActorMethod:
        """Return the same method with other options for the calls made through it."""
        check_options(METHOD_OPTIONS, method_options, "actor methods", at_call=True)
        task_name = method_options.pop("name", None) or self._task_name
        call, calls = self._call, self._handle._calls
        key = frozen(method_options)
        other = calls.get((call.method.facts.name, key))
        if other is None:
            other = BoundCall(call.facts, call.method, make_template(call.facts, call.method, method_options))
            if key is not None:
                calls[call.method.facts.name, key] = other
        return ActorMethod(self._handle, other, task_name)

    def _remote(self, args: Any = None, kwargs: Any = None, **method_options: Any) -> Any:
        """``remote`` with the arguments in a tuple and a dict, and options beside them."""
        method = self.options(**method_options) if method_options else self
        return method.remote(*(args or ()), **(kwargs or {}))

    @property
    def _method_name(self) -> str:
        return self._call.method.facts.name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._call.method.facts.name
        raise TypeError(f"Actor methods cannot be called directly. Instead of 'handle.{name}()', use 'handle.{name}.remote()'.")

    def __repr__(self) -> str:
        return f"<method {self._call.template.name} of {self._handle!r}>"


def make_template(facts: ActorFacts, method: Method, options: dict[str, Any]) -> TaskTemplate:
    """Build the template of a method's calls. ValueError for a concurrency group that the actor does not have."""
    own = method.facts
    group = options.get("concurrency_group") or own.concurrency_group
    if group and group not in facts.concurrency_groups:
        raise ValueError(
            f"Actor {facts.class_name} has no concurrency group {group!r}.{did_you_mean(group, facts.concurrency_groups)} "
            f"It has: {', '.join(facts.concurrency_groups) or 'none'}. Groups are given in @shoal.remote(concurrency_groups=...)."
        )
    num_returns = options.get("num_returns")
    retries = next((r for r in (options.get("max_task_retries"), own.max_task_retries) if r is not None), facts.max_task_retries)
    retry_exceptions = options.get("retry_exceptions")
    template = TaskTemplate(
        function_id=facts.class_id,
        name=f"{facts.class_name}.{own.name}",
        function_name=f"{facts.path}.{own.name}",
        shape=Shape(facts.job_id),
        num_returns=own.num_returns if num_returns is None else encode_num_returns(num_returns, is_generator=own.is_generator),
        max_retries=retries,
        retry_exceptions=own.retry_exceptions if retry_exceptions is None else encode_retry_exceptions(retry_exceptions),
        backpressure=options.get("_generator_backpressure_num_objects") or own.backpressure,
        actor_id=facts.actor_id,
        method=own.name,
        concurrency_group=group,
    )
    return checked_record(template, f"the options of {facts.class_name}.{own.name}")


def lost_handle(handle: Handle) -> ActorHandleNotFoundError:
    if holder.forked:
        return ActorHandleNotFoundError(f"{handle!r} cannot be called. {holder.FORKED}")
    return ActorHandleNotFoundError(
        f"{handle!r} belongs to a session that has ended, or was never part of this one. Make the actor again, or look it up with "
        "shoal.get_actor if it is named."
    )
