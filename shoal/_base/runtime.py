"""The one late binding: how references and handles find the runtime of their process.

A value that is unpickled anywhere (a reference, an actor handle) must find the process's runtime. ``worker`` (or local mode) fills the
holder when it starts and empties it when it ends; nothing else in shoal may use this trick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .settings import Settings

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from .references import ObjectRef, ObjectRefGenerator


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What the code that runs now may know about itself."""

    task_id: bytes
    job_id: bytes
    name: str = ""
    function_name: str = ""
    actor_id: bytes = b""
    actor_name: str = ""
    attempt: int = 0
    resources: dict[str, float] = field(default_factory=dict)
    resource_ids: dict[str, list[int]] = field(default_factory=dict)
    placement_group: bytes = b""
    capture_child_tasks: bool = False
    runtime_env: str = ""
    #: The actor was restarted at least once.
    reconstructed: bool = False


class Runtime(Protocol):
    """What the public API asks of the process it runs in. Methods may be called from any user thread unless they say otherwise.

    ``template``, ``spec`` and ``message`` are records of ``_core.wire.messages``; this module cannot name them.
    """

    job_id: bytes
    worker_id: bytes
    node_id: bytes
    namespace: str
    session_dir: str
    is_driver: bool
    #: The wire ``Address`` of this process, which owns what it creates.
    address: Any
    #: The transport address of the control store.
    control_address: str
    #: The wire ``JobConfigRecord`` of the job that this process works for.
    job_config: Any
    settings: Settings

    # references: called by ObjectRef, never block
    def ref_added(self, object_id: bytes, owner: Any) -> None:
        """One more ObjectRef of this process holds the object."""

    def ref_dropped(self, object_id: bytes) -> None:
        """One ObjectRef less; called from ``__del__``, possibly inside a lock."""

    def ref_pickled(self, ref: ObjectRef[Any]) -> None:
        """A reference is being pickled: record it in the value that is being serialized, or pin it for good."""

    def object_future(self, ref: ObjectRef[Any]) -> Future[Any]:
        """Return a future that gets the object's value or its error."""

    def asyncio_future(self, ref: ObjectRef[Any]) -> asyncio.Future[Any]:
        """Return a future of the value, bound to the running loop; the value is unpickled on that loop's thread."""

    # tasks and objects
    def export(self, pickled: bytes, function_id: bytes | None = None) -> bytes:
        """Store a pickled function or class for the job; return its content address (FunctionId). Does not block.

        ``function_id`` is given for a function that mentions itself: its bytes contain the id, so they cannot be hashed again.
        """

    def submit_task(self, template: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        """Submit; return ObjectRef (num_returns 1), list (0: None; >= 2), or ObjectRefGenerator (streaming). Does not block."""

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value owned by this process. Blocks while the object store is full."""

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """Return the values in order; raise the first error that is ready in list order, or GetTimeoutError."""

    def wait(
        self, refs: Sequence[ObjectRef[Any] | ObjectRefGenerator[Any]], num_returns: int, timeout_s: float | None, fetch_local: bool
    ) -> tuple[list[Any], list[Any]]:
        """Return (ready, rest), both in input order."""

    def cancel(self, task_id: bytes, force: bool, recursive: bool) -> None:
        """Cancel the task (by the task id of one of its references). ValueError for force on an actor task."""

    # generators: the consumer side
    def generator_next(self, task_id: bytes, index: int, timeout_s: float | None) -> ObjectRef[Any] | None:
        """Return the reference of item ``index``, waiting for it; None when the stream ended before it."""

    def generator_next_future(self, task_id: bytes, index: int) -> Future[ObjectRef[Any] | None]:
        """The same, without blocking."""

    def generator_ready(self, task_id: bytes, index: int) -> bool:
        """Item ``index`` is there, or the stream has ended before it."""

    def generator_consumed(self, task_id: bytes, count: int) -> None:
        """The consumer has taken ``count`` items; called by next."""

    def generator_dropped(self, task_id: bytes) -> None:
        """The generator object is gone: free what it did not take. Called from ``__del__``."""

    # actors
    def create_actor(self, spec: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Register the actor described by ``spec`` (args and deps are filled in here). Blocks only for named actors.

        Raises:
            ActorAlreadyExistsError: the name is taken.
        """

    def actor_token(self, actor_id: bytes, owner: Any) -> ObjectRef[Any]:
        """Return the counted reference that keeps an actor alive; every handle of a non-detached actor holds one."""

    def submit_actor_call(self, template: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        """As submit_task; raises PendingCallsLimitExceeded at once when the actor's ``max_pending_calls`` is reached."""

    def know_actor(self, actor_id: bytes, *, out_of_order: bool, max_pending_calls: int) -> Any:
        """A handle of the actor appeared in this process; called before its first call. Idempotent. Does not block.

        The handle keeps what is returned: the runtime forgets the actor's limit with the last of its handles and calls.
        """

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        """Kill the actor's process now."""

    # everything else
    def request_control_store(self, message: Any, timeout_s: float | None = None) -> Any:
        """Send one request to the control store and block for its reply; ``Failed`` is raised as the exception it names."""

    def promise(self, message: Any, value: Any) -> ObjectRef[Any]:
        """Return an owned object that becomes ``value`` when the control store acks ``message``, or its error. Does not block."""

    def request_node_agent(self, message: Any, timeout_s: float | None = None) -> Any:
        """The same for this node's agent."""

    def task_context(self) -> TaskContext | None:
        """The task that the calling thread (or asyncio task) runs; None in a driver outside of tasks."""

    def is_canceled(self) -> bool:
        """The running actor call was cancelled by its caller."""

    def exit_actor(self) -> None:
        """End the current actor after this call; raises to unwind it."""

    def shutdown(self) -> None:
        """End this process's part: flush, disconnect, join the I/O thread. Idempotent."""

    def abandon(self) -> None:
        """In a forked child: this copy, whose threads do not exist, sends nothing and refuses calls. Does not block."""


_current: Runtime | None = None
#: This process was forked from one that belonged to a session.
forked = False
#: What a forked child is told when it uses what it inherited.
FORKED = (
    "This process was forked from one that belongs to a shoal session, and the session stays with that one: its references, actors and "
    "connections cannot be used here. Use shoal in the parent, or call shoal.init() here first, for a session of this process's own."
)


def current() -> Runtime:
    """Return the process's runtime; RuntimeError if there is none."""
    if _current is None:
        raise RuntimeError("shoal is not running in this process. Call shoal.init() first.")
    return _current


def current_or_none() -> Runtime | None:
    return _current


def install(runtime: Runtime | None) -> None:
    """Fill or empty the holder."""
    global _current
    _current = runtime
