"""One task or actor call of a local session: arguments in, function run, results stored."""

from __future__ import annotations

import bdb
import contextvars
import os
import pickle
from collections.abc import Callable, Iterable
from typing import Any

from shoal._base.ids import TaskId, object_id
from shoal._base.references import DynamicObjectRefGenerator, ObjectRef, ObjectRefGenerator
from shoal._base.runtime import TaskContext
from shoal._core.api.conventions import DYNAMIC, RETRY_ALL, STREAMING
from shoal._core.scheduling.resources import to_floats
from shoal._core.serialization import (
    deserialize_args,
    serialize,
    serialize_args,
    serialize_error,
    serialize_system_error,
    sys_exit_cause,
    worker_crashed,
)
from shoal._core.wire.messages import TaskTemplate

from .objects import LocalObject
from .session import LocalSession
from .streams import LocalStream, SteppedGenerator

#: What the calling thread or asyncio task runs; None in the driver's own code.
current_task: contextvars.ContextVar[TaskContext | None] = contextvars.ContextVar("shoal_local_task", default=None)

#: These belong to the person at the keyboard, not to the task.
_FOR_THE_USER = (KeyboardInterrupt, bdb.BdbQuit)


class ActorExit(BaseException):
    """Unwinds the method that called ``exit_actor``."""


class LocalCall:
    """One call. ``result`` is what the caller gets."""

    def __init__(self, runtime: LocalSession, template: TaskTemplate, name: str = "", actor_name: str = "") -> None:
        self.runtime = runtime
        self.template = template
        self.task_id = runtime.ids.next()
        self.attempt = 0
        self.actor_repr = ""
        self.stream: LocalStream | None = None
        self.context = TaskContext(
            task_id=self.task_id,
            job_id=runtime.job_id,
            name=name or template.name,
            function_name=template.function_name,
            actor_id=template.actor_id,
            actor_name=actor_name,
            resources=to_floats(dict(template.shape.resources)),
            placement_group=template.shape.placement_group,
            runtime_env=template.shape.runtime_env,
        )
        count = max(template.num_returns, 1) if template.num_returns < 0 else template.num_returns
        self.returns = [runtime.objects.create(object_id(TaskId(self.task_id), i)) for i in range(count)]
        refs: list[ObjectRef[Any]] = [ObjectRef(entry.object_id, _runtime=runtime) for entry in self.returns]
        self.result: Any = refs if count > 1 else refs[0] if refs else None
        if template.num_returns == STREAMING:
            self.stream = runtime.streams[self.task_id] = LocalStream(self.task_id, template.backpressure)
            self.result = ObjectRefGenerator(self.task_id, refs[0], runtime)

    # --- in -----------------------------------------------------------------------------------------------------------------------

    def load(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], tuple[list[Any], dict[str, Any]]] | None:
        """Wait for references among the arguments; return a function that makes fresh copies, None if a dependency has failed.

        Raises:
            TypeError: an argument cannot be pickled.
        """
        serialized = serialize_args(args, kwargs, self.template.function_name)
        data = serialized.data if isinstance(serialized.data, bytes) else serialized.data.to_bytes()
        dependencies = [self.runtime.entry_of(ref) for ref in serialized.deps]
        self.runtime.objects.wait_for(lambda: all(entry.done for entry in dependencies), None, "the arguments of a call")
        failed = next((entry for entry in dependencies if entry.error is not None), None)
        if failed is not None:
            assert failed.error is not None
            self.fail(failed.error)
            return None
        return lambda: deserialize_args(data, [entry.read() for entry in dependencies])

    # --- run ----------------------------------------------------------------------------------------------------------------------

    def run(self, function: Callable[..., Any], load: Callable[[], tuple[list[Any], dict[str, Any]]]) -> None:
        """Run a plain function on this thread, again if its error is to be retried, and store what it returns."""
        token = current_task.set(self.context)
        try:
            while True:
                try:
                    args, kwargs = load()
                    self.store(function(*args, **kwargs))
                    return
                except BaseException as error:  # the boundary of user code
                    if not self.retries(error):
                        self.fail_with(error)
                        return
        finally:
            current_task.reset(token)

    def retries(self, error: BaseException) -> bool:
        """Count one attempt more if the error is to be retried and tries are left."""
        limit, wanted = self.template.max_retries, self.template.retry_exceptions
        if isinstance(error, SystemExit) and not self.template.actor_id:  # on a cluster it ends the worker, and lost workers need no asking
            if 0 <= limit <= self.attempt:
                return False
            self.attempt += 1
            return True
        if not wanted or not isinstance(error, Exception) or (0 <= limit <= self.attempt):
            return False
        if wanted != RETRY_ALL and not isinstance(error, pickle.loads(wanted)):
            return False
        self.attempt += 1
        return True

    # --- out ----------------------------------------------------------------------------------------------------------------------

    def store(self, value: Any) -> None:
        """Store the result; a generator is run, now or as the consumer goes on."""
        count = self.template.num_returns
        if count == STREAMING:
            self._stream(value)
        elif count == DYNAMIC:
            refs = [self.runtime.store(item) for item in value]
            self.runtime.objects.complete(self.returns[0], serialize(DynamicObjectRefGenerator(refs)))
        elif count == 1:
            self.runtime.objects.complete(self.returns[0], serialize(value))
        elif count > 1:
            for entry, item in zip(self.returns, self._unpacked(value, count), strict=True):
                self.runtime.objects.complete(entry, serialize(item))

    def _unpacked(self, value: Any, count: int) -> list[Any]:
        if not isinstance(value, Iterable):
            raise ValueError(f"Task {self.context.name} returned {type(value).__name__}, but num_returns={count} needs {count} objects.")
        items = list(value)
        if len(items) != count:
            raise ValueError(f"Task returned {len(items)} objects, but num_returns={count}.")
        return items

    def _stream(self, items: Any) -> None:
        assert self.stream is not None
        stepped = SteppedGenerator(self.stream, iter(items), self.deliver, self.end)
        self.stream.resume = stepped.advance
        self.stream.close = stepped.close
        stepped.advance()

    def deliver(self, value: Any) -> None:
        """Add one item to the stream."""
        assert self.stream is not None
        self._add_item(lambda entry: self.runtime.objects.complete(entry, serialize(value)))

    def end(self, error: BaseException | None) -> None:
        """End the stream; an error is its last item."""
        assert self.stream is not None
        if error is not None:
            self.fail_with(error)
            return
        self.stream.finished = True
        self.runtime.objects.complete(self.returns[0], serialize(None))

    def _add_item(self, fill: Callable[[LocalObject], None]) -> None:
        assert self.stream is not None
        entry = self.runtime.objects.create(self.stream.next_id())
        ref: ObjectRef[Any] = ObjectRef(entry.object_id, _runtime=self.runtime)
        fill(entry)
        with self.runtime.objects.changed:
            self.stream.items.append(ref)
            self.runtime.objects.changed.notify_all()

    def fail_with(self, error: BaseException) -> None:
        """Store what user code raised as the result; what the user at the keyboard raised goes on.

        Raises ActorExit where ``exit_actor`` or ``sys.exit`` ends the actor, whose affair the rest is.
        """
        if isinstance(error, ActorExit):
            raise error
        if isinstance(error, SystemExit):
            if self.template.actor_id:
                raise ActorExit from error
            cause, tries = sys_exit_cause(error, os.getpid()), self.attempt + 1
            crashed = worker_crashed(cause, task_name=self.context.name, attempt=tries, max_attempts=tries)
            self.fail(serialize_system_error(crashed))
            return
        limit = self.template.max_retries
        self.fail(
            serialize_error(
                error,
                function_name=self.template.function_name,
                pid=os.getpid(),
                ip=self.runtime.node_ip,
                attempt=self.attempt + 1,
                max_attempts=(limit + 1 if limit >= 0 else -1) if self.template.retry_exceptions else 0,
                actor_repr=self.actor_repr,
            )
        )
        if isinstance(error, _FOR_THE_USER):
            raise error

    def fail(self, error: bytes) -> None:
        """Store an error in the place of every result that is not there."""
        if self.stream is not None and not self.stream.finished:
            self._add_item(lambda entry: self.runtime.objects.fail(entry, error))
            self.stream.finished = True
        for entry in self.returns:
            if not entry.done:
                self.runtime.objects.fail(entry, error)
