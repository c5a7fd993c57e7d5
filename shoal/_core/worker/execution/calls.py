"""One call on its way through a worker: arguments in, function run, reply out.

A ``Call`` is made on the I/O thread when it is pushed, run on whatever thread or asyncio task the executor chooses, and replied
to on the I/O thread.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from shoal import exceptions
from shoal._base import ids
from shoal._base.runtime import TaskContext
from shoal._core.serialization import deserialize, deserialize_args, serialize, serialize_error, serialize_system_error
from shoal._core.transport import Connection
from shoal._core.wire.messages import (
    FAILED,
    INLINE,
    LOST,
    STORED,
    Address,
    Cause,
    Dep,
    ObjectRefInfo,
    ProcessExiting,
    PushTask,
    TaskDone,
    TaskTemplate,
    Value,
)

if TYPE_CHECKING:
    from .inbound import Inbound

#: The call that the current thread or asyncio task runs.
current_call: contextvars.ContextVar[Call | None] = contextvars.ContextVar("shoal_current_call", default=None)


class Caller:
    """An owner that pushes to this worker; lives as long as its connection."""

    __slots__ = ("connection", "job_id", "lease_id", "lost", "outgoing", "owner", "placement_group", "resource_ids", "templates")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.templates: dict[int, TaskTemplate] = {}
        self.owner: Address | None = None
        self.lease_id = 0
        self.job_id = b""
        self.resource_ids: dict[str, list[int]] = {}
        self.placement_group = b""
        self.lost = False
        #: [message, may be sent] of replies that wait for registrations, and of those behind them.
        self.outgoing: deque[list[Any]] = deque()


class ActorExit(BaseException):
    """Raised by ``exit_actor`` to unwind the call."""


class ArgumentLost(Exception):
    """Some arguments are not in the object store any more; the owner computes them again."""

    def __init__(self, lost: list[Dep]) -> None:
        super().__init__(lost)
        self.lost = lost


class Call:
    """One pushed task or actor call."""

    __slots__ = (
        "async_task",
        "caller",
        "cancelled",
        "error",
        "placement_group",
        "places",
        "ready",
        "resource_ids",
        "started_at",
        "stream_gate",
        "task",
        "template",
    )  # fmt: skip

    def __init__(self, caller: Caller, task: PushTask) -> None:
        self.caller = caller
        self.task = task
        self.template = caller.templates[task.template]
        self.resource_ids = caller.resource_ids
        self.placement_group = caller.placement_group
        self.cancelled = False
        self.started_at = 0.0
        #: Stored arguments: object id -> place, once ``ready`` is released. None: there are none.
        self.places: dict[bytes, Any] = {}
        self.ready: threading.Lock | None = None
        self.error: BaseException | None = None
        #: The asyncio task that runs the call, in an async actor.
        self.async_task: Any = None
        #: Streaming: what the consumer has taken.
        self.stream_gate: Any = None

    @property
    def name(self) -> str:
        return self.task.name or self.template.name


class CallRunner:
    """What all executors share: loading arguments, storing results, replying. Any thread."""

    def __init__(self, inbound: Inbound) -> None:
        self.inbound = inbound
        self.core = inbound.core
        self.runtime = inbound.runtime
        self.inline_limit = inbound.core.settings.inline_limit_bytes

    # --- in ------------------------------------------------------------------------------------------------

    def arguments(self, call: Call) -> tuple[list[Any], dict[str, Any]]:
        """Return the call's arguments; blocks until stored ones are readable here.

        Raises:
            ArgumentLost: the object store could not produce some of them.
        """
        task = call.task
        if not task.deps:
            return deserialize_args(task.args, [])
        if call.ready is not None:
            with call.ready:
                call.ready = None
            # The wait is not the task's: the arguments of those queued behind come meanwhile, so it says nothing of how many may be queued.
            # With the wait counted, each worker got one task at a time and waited for its argument, and dozens of workers were started.
            call.started_at = time.perf_counter()
            if call.error is not None:
                raise call.error
        lost = [dep for dep in task.deps if dep.value is None and call.places.get(dep.object_id) is None]
        if lost:
            self.give_back(call)
            raise ArgumentLost(lost)
        values: list[Any] = []
        blob: Any = task.args
        last = len(task.deps) - 1 if task.stored_args else -1
        for number, dep in enumerate(task.deps):
            if dep.value is not None:
                data: Any = dep.value
                if number == last:
                    blob = data
                else:
                    values.append(deserialize(data))
                continue
            view, private = self.core.store.read(dep.object_id, call.places[dep.object_id])
            if number == last:
                blob = (view, private)
            else:
                values.append(deserialize(view, private))
        self.give_back(call)
        if isinstance(blob, tuple):
            return deserialize_args(blob[0], values, blob[1])
        return deserialize_args(blob, values)

    def give_back(self, call: Call) -> None:
        """The call will not read its stored arguments."""
        places, call.places = call.places, {}
        for object_id, place in places.items():
            if place is not None:
                self.inbound.inbox.post(self.core.store.unpin, object_id)

    # --- out -----------------------------------------------------------------------------------------------

    def store_value(self, object_id: bytes, value: Any, owner: Address) -> tuple[Value, list[Any]]:
        """Serialize one result; blocks while the object store is full. Returns the value and the references inside it."""
        serialized = serialize(value)
        refs = serialized.refs
        if serialized.nbytes <= self.inline_limit:
            return Value(INLINE, serialized.to_bytes(), serialized.nbytes), refs
        is_new = self.runtime.store_object(object_id, serialized, owner)
        return Value(STORED, b"", serialized.nbytes, node_id=self.runtime.core.me.node_id, kept=not is_new), refs

    def store_results(self, call: Call, result: Any) -> tuple[list[Value], list[list[Any]]]:
        """Serialize what the function returned, by the template's ``num_returns``."""
        count = call.template.num_returns
        task_id = ids.TaskId(call.task.task_id)
        owner = call.caller.owner or self.core.me
        if count > 0 and isinstance(result, GeneratorType):
            result = _yielded(result, count, call.name)
        if count == 1:
            value, refs = self.store_value(ids.object_id(task_id, 0), result, owner)
            return [value], [refs]
        if count == 0:
            return [], []
        try:
            results = list(result)
        except TypeError:
            raise ValueError(
                f"Task {call.name} returned {type(result).__name__}, but num_returns={count} needs an iterable of {count} objects."
            ) from None
        if len(results) != count:
            raise ValueError(f"Task {call.name} returned {len(results)} objects, but num_returns={count}.")
        pairs = [self.store_value(ids.object_id(task_id, i), each, owner) for i, each in enumerate(results)]
        return [value for value, _ in pairs], [refs for _, refs in pairs]

    def error_value(self, call: Call, error: BaseException) -> Value:
        """Serialize what the function raised, with the user's traceback."""
        if isinstance(error, ArgumentLost):
            refs = [ObjectRefInfo(dep.object_id, dep.owner or self.core.me) for dep in error.lost]
            return Value(LOST, b"".join(dep.node_id for dep in error.lost), refs=refs)
        if call.cancelled and isinstance(error, (KeyboardInterrupt, *_asyncio_cancelled())):
            text = f"Task {call.name} (id {call.task.task_id.hex()}) was cancelled while it ran."
            cancelled = exceptions.TaskCancelledError(call.task.task_id.hex(), text)
            cancelled.__traceback__ = error.__traceback__
            error = cancelled
        limit = call.template.max_retries
        data = serialize_error(
            error,
            function_name=call.template.function_name or call.name,
            pid=self.inbound.pid,
            ip=self.inbound.ip,
            attempt=call.task.attempt + 1,
            max_attempts=(limit + 1 if limit >= 0 else -1) if call.template.retry_exceptions else 0,
            actor_repr=self.inbound.actor_repr,
        )
        return Value(FAILED, data)

    def may_retry(self, call: Call, error: BaseException) -> bool:
        """``retry_exceptions`` says so."""
        asked = call.template.retry_exceptions
        if not asked or call.cancelled or isinstance(error, ArgumentLost):
            return False
        if asked == b"*":
            return isinstance(error, Exception)
        return isinstance(error, deserialize(asked))

    def reply(
        self, call: Call, values: list[Value], refs: list[list[Any]], *, retry: bool = False, num_items: int = 0, exiting: bool = False
    ) -> None:
        """Send the reply, or hand it to the I/O thread."""
        duration = int((time.perf_counter() - call.started_at) * 1e6)
        done = TaskDone(call.task.task_id, values, duration, retry, num_items, exiting)
        if not (exiting or call.template.num_returns < 0 or any(refs)) and self.inbound.reply_now(call, done):
            return
        if exiting:  # before the owner returns the lease: the node agent must not lend out a process that leaves
            cause = Cause("worker_exit", f"It left after {call.name}.", pid=self.inbound.pid)
            self.inbound.inbox.post(self.core.agent.send, ProcessExiting(cause))
        self.inbound.inbox.post(self.inbound.send_reply, (call, done, refs))

    def run(self, call: Call, function: Callable[..., Any], *, exiting: bool = False) -> None:
        """Run a plain function to its reply, whatever happens. Catches everything: this is where user code ends."""
        values: list[Value]
        refs: list[list[Any]] = []
        retry = False
        call.started_at = time.perf_counter()
        token = current_call.set(call)
        try:
            args, kwargs = self.arguments(call)
            result = function(*args, **kwargs)
            args = kwargs = None  # type: ignore[assignment]
            values, refs = self.store_results(call, result)
            result = None
        except BaseException as error:
            args = kwargs = result = None  # type: ignore[assignment]
            if self.inbound.on_user_error(call, error):
                return
            retry = self.may_retry(call, error)
            values = [self.error_value(call, error)]
            refs = []
            error.__traceback__ = None
        finally:
            current_call.reset(token)
        self.reply(call, values, refs, retry=retry, exiting=exiting)

    def context(self, call: Call) -> TaskContext:
        """Describe the call to the code that runs in it."""
        shape = call.template.shape
        spec = self.inbound.actor_spec
        resources = dict((spec.shape if spec is not None else shape).resources)
        return TaskContext(
            task_id=call.task.task_id,
            job_id=call.caller.job_id or self.core.job_id,
            name=call.name,
            function_name=call.template.function_name,
            actor_id=spec.actor_id if spec is not None else b"",
            actor_name=spec.name if spec is not None else "",
            attempt=call.task.attempt,
            resources={name: amount / 10000 for name, amount in resources.items()},
            resource_ids=self.inbound.actor_resource_ids if spec is not None else call.resource_ids,
            placement_group=self.inbound.actor_placement_group if spec is not None else call.placement_group,
            capture_child_tasks=spec.capture_child_tasks if spec is not None else call.template.capture_child_tasks,
            runtime_env=shape.runtime_env,
            reconstructed=self.inbound.incarnation > 0,
        )


def _yielded(generator: GeneratorType[Any, Any, Any], count: int, name: str) -> Any:
    """Return the ``count`` values of a generator function: the value itself if it is one. ValueError if it yields more or less."""
    values = list(itertools.islice(generator, count + 1))  # one more and no further: it may be endless
    generator.close()
    if len(values) != count:
        much = f"more than {count}" if len(values) > count else str(len(values))
        raise ValueError(f"Task {name} returned {much} objects, but num_returns={count}.")
    return values[0] if count == 1 else values


def _asyncio_cancelled() -> tuple[type[BaseException], ...]:
    import asyncio

    return (asyncio.CancelledError,)


def cancelled_before_start(call: Call) -> Value:
    """The value of a call that was cancelled while it waited in this worker."""
    text = f"Task {call.name} (id {call.task.task_id.hex()}) was cancelled before it started."
    return Value(FAILED, serialize_system_error(exceptions.TaskCancelledError(call.task.task_id.hex(), text)))
