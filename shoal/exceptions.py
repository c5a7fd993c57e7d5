"""Every error that shoal raises, under the names that Ray's users know.

    RayError
     |
     |-- your program -------------------------------------------------------------------------------------------
     |    RayTaskError                      user code raised; `get` raises RayTaskError(TheirError), caught by either name
     |    TaskCancelledError                shoal.cancel
     |    GetTimeoutError                   (also TimeoutError)
     |    RayActorError                     a call did not come through
     |     |-- ActorDiedError               and never will
     |     `-- ActorUnavailableError        this one; a later one may
     |    ActorAlreadyExistsError, ActorHandleNotFoundError            (also ValueError)
     |    PendingCallsLimitExceeded, AsyncioActorExit
     |    RuntimeEnvSetupError
     |    TaskUnschedulableError, ActorUnschedulableError
     |    TaskPlacementGroupRemoved, ActorPlacementGroupRemoved
     |    UserCodeException, UnserializableException, CrossLanguageError
     |    OufOfBandObjectRefSerializationException                     (sic)
     |    ObjectRefStreamEndOfStreamError, StreamingGeneratorReplayInconsistentError
     |    RayChannelError > RayChannelTimeoutError (also TimeoutError), RayCgraphCapacityExceeded, RayDirectTransportError
     |
     |-- your cluster -------------------------------------------------------------------------------------------
     |    WorkerCrashedError, NodeDiedError, LocalRayletDiedError
     |    OutOfMemoryError, OutOfDiskError, ObjectStoreFullError, PlasmaObjectNotAvailable
     |    ObjectLostError
     |     |-- ObjectFetchTimedOutError, ObjectFreedError, OwnerDiedError, ObjectReconstructionFailedError
     |    AuthenticationError, RpcError
     |
     `-- our bug ------------------------------------------------------------------------------------------------
          RaySystemError
          ReferenceCountingAssertionError   (an ObjectLostError, also AssertionError)

All of them survive pickling with their attributes, notes, cause and context, because an exception is rebuilt without calling its
constructor (see ``_Portable``). This module uses the standard library only.
"""

from __future__ import annotations

import functools
import logging
import types
from typing import Any

_logger = logging.getLogger(__name__)


class RayError(Exception):
    """Base of all errors of shoal."""

    #: What ``str`` shows when the raiser gave no text.
    _text = ""

    def __str__(self) -> str:
        return super().__str__() or self._text

    def __reduce__(self) -> Any:
        return _Portable(self).__reduce__()


# --- your program -------------------------------------------------------------------------------------------------------------


class RayTaskError(RayError):
    """User code raised in a task or actor method.

    ``get`` raises ``error.as_instanceof_cause()``: an object that is a RayTaskError and an instance of the user's class, with the
    user's attributes. Its ``cause`` is the original exception, with the chain of its own causes.

    Args:
        function_name: "module.qualname" of the task, or the actor's class and method.
        traceback_str: the user's traceback, without frames of the runtime.
        cause: the exception; None when it was not to be had.
        attempt: which try of the task this was, from 1; 0 if unknown.
        max_attempts: how many there may be; 0 if unknown, -1 for no limit.
    """

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException | None = None,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
        actor_id: str | None = None,
        *,
        attempt: int = 0,
        max_attempts: int = 0,
    ) -> None:
        super().__init__(traceback_str)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.proctitle = proctitle
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr
        self._actor_id = actor_id
        self._attempt = attempt
        self._max_attempts = max_attempts

    def __str__(self) -> str:
        where = f"    in task {self.function_name}"
        if self.actor_repr:
            where += f" of actor {self.actor_repr}"
        where += f" (pid={self.pid}, ip={self.ip})"
        if self._attempt:
            where += f", attempt {self._attempt}"
            if self._max_attempts:
                where += f" of {self._max_attempts}" if self._max_attempts > 0 else " of any number"
        return f"{(self.traceback_str or '').rstrip()}\n{where}"

    def as_instanceof_cause(self) -> RayTaskError:
        """Return an error that ``except TheirClass`` catches too; this one itself if that cannot be."""
        cause = self.cause
        if cause is None or issubclass(RayTaskError, type(cause)):
            return self
        try:
            return _dual_class(type(cause))(self)  # type: ignore[arg-type]  # a class is hashable; its __hash__ is for instances
        except Exception as problem:  # user code: metaclasses, __init_subclass__, layouts that do not mix
            _logger.warning(
                "The error of task %s can be caught as RayTaskError only, not as %s: a class of both kinds cannot be made (%s). "
                "The original exception is its attribute 'cause'.",
                self.function_name,
                type(cause).__qualname__,
                problem,
            )
            return self


class TaskCancelledError(RayError):
    """The task was cancelled."""

    def __init__(self, task_id: Any = None, error_message: str | None = None) -> None:
        if not error_message:
            which = f"Task {task_id} was cancelled" if task_id is not None else "This task or its dependency was cancelled"
            error_message = f"{which}, by shoal.cancel() or because the task that started it was cancelled. It has no result."
        super().__init__(error_message)
        self.task_id = task_id


class GetTimeoutError(RayError, TimeoutError):
    """``get`` did not have its values within ``timeout``. The tasks go on; get them again later."""

    _text = "get() timed out: some values are not ready yet. Their tasks go on; call get() again, or with a longer timeout."


class RayActorError(RayError):
    """A call to an actor did not come through.

    Attributes:
        actor_id: hexadecimal.
        actor_init_failed: the actor's ``__init__`` raised.
        preempted: its node was taken away by the cloud provider.
    """

    _text = "The actor failed before it finished this call."

    def __init__(
        self, actor_id: str | None = None, error_msg: str | None = None, actor_init_failed: bool = False, preempted: bool = False
    ) -> None:
        self.error_msg = error_msg or type(self)._text
        super().__init__(self.error_msg)
        self.actor_id = actor_id
        self.actor_init_failed = actor_init_failed
        self.preempted = preempted


class ActorDiedError(RayActorError):
    """The actor is dead and will not come back.

    Args:
        cause: the RayTaskError of its ``__init__``, or the text to show, or None.
    """

    _text = "The actor died before it finished this call. See the log files of its session for why."

    def __init__(
        self,
        cause: BaseException | str | None = None,
        *,
        actor_id: str | None = None,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        text = cause if isinstance(cause, str) else None
        if isinstance(cause, RayTaskError):
            actor_id, actor_init_failed = actor_id or vars(cause).get("_actor_id"), True
            advice = "Correct __init__ or its arguments, and make a new one:"
            text = f"The actor died because its __init__ raised, so it has no methods to call. {advice}\n{cause}"
        elif isinstance(cause, BaseException):
            text = f"{self._text}\n{type(cause).__name__}: {cause}"
        super().__init__(actor_id, text, actor_init_failed, preempted)

    @staticmethod
    def from_task_error(task_error: RayTaskError) -> ActorDiedError:
        return ActorDiedError(task_error)


class ActorUnavailableError(RayActorError):
    """The actor cannot be reached now (it restarts, or the network is down); the call may or may not have run."""

    def __init__(self, error_message: str = "it cannot be reached", actor_id: bytes | str | None = None) -> None:
        actor_id = actor_id.hex() if isinstance(actor_id, bytes) else actor_id
        which = f"The actor {actor_id}" if actor_id else "The actor"
        super().__init__(
            actor_id,
            f"{which} is unavailable: {error_message}. The call may or may not have run. Call again later, "
            "or set max_task_retries to have this done for you.",
        )


class ActorAlreadyExistsError(ValueError, RayError):
    """An actor of this name lives in the namespace."""


class ActorHandleNotFoundError(ValueError, RayError):
    """The handle belongs to another session, whose actors are gone."""


class PendingCallsLimitExceeded(RayError):
    """``max_pending_calls`` calls of this handle are not done yet."""

    _text = "The handle has max_pending_calls calls that are not done. Wait for some of them, or raise max_pending_calls."


class AsyncioActorExit(RayError):
    """Unwinds an async actor's method after ``exit_actor``."""


class RuntimeEnvSetupError(RayError):
    """The runtime environment could not be made on the node."""

    def __init__(self, error_message: str | None = None) -> None:
        super().__init__(f"Failed to set up runtime environment.\n{error_message}" if error_message else "")
        self.error_message = error_message

    _text = "Failed to set up runtime environment."


class _Unschedulable(RayError):
    def __init__(self, error_message: str = "") -> None:
        super().__init__(f"{self._text} {error_message}".rstrip())
        self.error_message = error_message


class TaskUnschedulableError(_Unschedulable):
    """No node can ever run the task."""

    _text = "The task is not schedulable:"


class ActorUnschedulableError(_Unschedulable):
    """No node can ever host the actor."""

    _text = "The actor is not schedulable:"


class TaskPlacementGroupRemoved(RayError):
    """The task's placement group was removed before it ran."""

    _text = "The placement group of this task has been removed, so the task cannot run. Create the group again and submit it there."


class ActorPlacementGroupRemoved(RayError):
    """The actor's placement group was removed before it started."""

    _text = "The placement group of this actor has been removed, so the actor cannot run. Create the group again and start it there."


class UserCodeException(RayError):
    """Wraps an exception of user code; ``retry_exceptions`` looks at what it wraps."""


class UnserializableException(RayError):
    """An exception could not be rebuilt in this process. shoal itself never raises it; the name is kept for programs that catch it."""


class CrossLanguageError(RayError):
    """Code in another language raised."""


class OufOfBandObjectRefSerializationException(RayError):
    """A reference was pickled outside of shoal while that is forbidden."""

    _text = (
        "An ObjectRef was pickled outside of shoal, where nobody counts it, and allow_out_of_band_refs is off. "
        "Pass references in arguments and results of tasks, or inside shoal.put()."
    )


class ObjectRefStreamEndOfStreamError(RayError):
    """A streaming task has no more items."""


class StreamingGeneratorReplayInconsistentError(RayError):
    """A generator that ran again, to rebuild a lost item, yielded other items than the first time."""


class RayChannelError(RayError):
    """A channel of a compiled graph failed or was closed."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """A channel was not readable or writable in time."""


class RayCgraphCapacityExceeded(RayError):
    """More executions of a compiled graph are in flight than it has buffers for."""


class RayDirectTransportError(RayError):
    """A direct transfer between accelerators failed."""


# --- your cluster -------------------------------------------------------------------------------------------------------------


class WorkerCrashedError(RayError):
    """The process that ran the task died, and there are no retries left."""

    _text = "The worker died unexpectedly while executing this task. See its log in the session directory, or raise max_retries."


class LocalRayletDiedError(RayError):
    """The agent of this node died (Ray calls it raylet)."""

    _text = "The node agent of this node died, and its tasks with it. See the log of the head process in the session directory."


class _Message(RayError):
    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message or self._text


class NodeDiedError(_Message):
    """The node is dead or cut off."""

    _text = "The node died or cannot be reached."


class OutOfMemoryError(_Message):
    """The process was killed so that the node does not run out of memory."""

    _text = "The node ran low on memory, and the process was killed. Use less memory per task, or fewer tasks at once (num_cpus, memory)."


class OutOfDiskError(RayError):
    """Objects must be spilled and the disk is full."""

    _text = "The object store is full and so is the disk that it spills to. Free disk space, or point spilling at a larger disk."


class ObjectStoreFullError(RayError):
    """The object store is full of objects that are in use."""

    _text = "The object store is full of objects that are in use. Drop references that you no longer need, or raise object_store_memory."


class PlasmaObjectNotAvailable(RayError):
    """The object is not in this node's store."""


class ObjectLostError(RayError):
    """An object cannot be had any more.

    Args:
        object_ref_hex: the object's id.
        owner_address: the owner's address; a string here is taken as ``message``.
        call_site: where the reference was made.
        message: what happened, why, and what to do; the class's own text if empty.
    """

    _text = "All copies of it have been lost, because the nodes or processes that held them are gone."

    def __init__(self, object_ref_hex: str, owner_address: Any = None, call_site: str = "", message: str = "") -> None:
        if isinstance(owner_address, str):
            owner_address, message = None, owner_address or message
        text = f"Failed to retrieve object {object_ref_hex}. {message or self._text}"
        super().__init__(f"{text}\nThe ObjectRef was created at: {call_site}" if call_site else text)
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site


class ObjectFetchTimedOutError(ObjectLostError):
    """No node that has the object could be found in time."""

    _text = "No node that has a copy answered in time. The network may be down; try again, or submit the task again."


class ObjectFreedError(ObjectLostError):
    """The program freed the object by hand."""

    _text = "It was freed by the program with free(). Free only what nobody needs any more."


class OwnerDiedError(ObjectLostError):
    """The process that created the reference, and alone knew the value, is gone."""

    _text = (
        "Its owner, the process that called .remote() or put(), has died. Keep the creating process alive while others use the "
        "reference, or create it in the driver or in a detached actor."
    )


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and cannot be computed again; ``reason`` is a short word for why, ``reason_message`` says it."""

    _text = "All copies are lost and it cannot be computed again."

    def __init__(
        self,
        object_ref_hex: str,
        reason: Any = "",
        reason_message: str = "",
        owner_address: Any = None,
        call_site: str = "",
        *,
        message: str = "",
    ) -> None:
        words = reason_message or message or (reason if isinstance(reason, str) else "")
        super().__init__(object_ref_hex, owner_address, call_site, f"{self._text} {words}".rstrip())
        self.reason = reason
        self.reason_message = words


class AuthenticationError(_Message):
    """The other side does not know the cluster's token."""

    _text = "The cluster's token was not accepted. Use the token file of the cluster that you connect to."


class RpcError(RayError):
    """A request between processes failed."""

    def __init__(self, message: str = "", rpc_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.rpc_code = rpc_code


# --- our bug ------------------------------------------------------------------------------------------------------------------


class RaySystemError(RayError):
    """Something in shoal failed that should not. Please report it."""

    def __init__(self, client_exc: Any = "", traceback_str: str | None = None) -> None:
        super().__init__(f"System error: {client_exc}" + (f"\ntraceback: {traceback_str}" if traceback_str else ""))
        self.client_exc = client_exc
        self.traceback_str = traceback_str


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """An object was freed while a reference to it lived."""

    _text = "It was freed while a reference to it was alive. This is a bug in shoal; please report it."


# --- how an exception crosses a process border ----------------------------------------------------------------------------------


class _Portable:
    """Pickles in place of an exception; what is unpickled is the exception itself, rebuilt without its constructor.

    The default way calls ``cls(*args)``, which fails for every class whose constructor takes other arguments than it hands to
    ``super().__init__``, and drops cause and context. Here the nearest built-in base makes the object, then attributes, slots and the
    chain are put back. A class with its own ``__reduce__`` is asked first. Cycles are fine: the chain is state, saved after the object.
    """

    __slots__ = ("error", "seen")

    def __init__(self, error: BaseException, seen: dict[int, _Portable] | None = None) -> None:
        self.error = error
        #: One wrapper per exception of the tree, so that the pickler sees shared and circular ones as such.
        self.seen = {} if seen is None else seen
        self.seen[id(error)] = self

    def wrap(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return self.seen.get(id(value)) or _Portable(value, self.seen)
        if type(value) in (list, tuple) and any(isinstance(item, BaseException) for item in value):
            return type(value)(self.wrap(item) for item in value)
        return value

    def __reduce__(self) -> Any:
        error = self.error
        cls = type(error)
        chain = (self.wrap(error.__cause__), self.wrap(error.__context__), error.__suppress_context__)
        if isinstance(error, _DualError):
            return _rebuild_dual, (self.wrap(error.__dict__["_task_error"]),), (None, {}, *chain), None, None, _set_state
        base = _builtin_base(cls)
        args, extra = _constructor_args(error, base)
        portable_args = tuple(self.wrap(value) for value in args)
        if cls.__reduce__ not in (base.__reduce__, RayError.__reduce__) or cls.__reduce_ex__ is not object.__reduce_ex__:
            own = error.__reduce_ex__(4)
            if isinstance(own, tuple) and own[1] is not None:
                attributes = {"__notes__": error.__notes__} if hasattr(error, "__notes__") else {}
                state = (own[2] if len(own) > 2 else None, attributes, *chain)
                return _rebuild_own, (cls, portable_args, own[0], own[1]), state, None, None, _set_state
        attributes = {name: self.wrap(value) for name, value in {**extra, **_slots(error), **vars(error)}.items()}
        return _rebuild, (cls, portable_args), (None, attributes, *chain), None, None, _set_state


def _builtin_base(cls: type[BaseException]) -> type[BaseException]:
    """Return the built-in class that decides the layout: of Exception and KeyboardInterrupt, the latter."""
    bases = [base for base in cls.__mro__ if base.__module__ == "builtins" and issubclass(base, BaseException)]
    return next((base for base in bases if base not in (Exception, BaseException)), bases[0])


def _constructor_args(error: BaseException, base: type[BaseException]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what the built-in base's constructor wants, and attributes it keeps outside of ``__dict__``."""
    reduced = base.__reduce__(error)
    assert isinstance(reduced, tuple)
    extra = reduced[2] if len(reduced) > 2 and isinstance(reduced[2], dict) else {}
    if isinstance(error, (NameError, AttributeError)) and getattr(error, "name", None):
        extra = {**extra, "name": error.name}
    return reduced[1], {name: value for name, value in extra.items() if name not in vars(error) and name != "obj"}


def _slots(error: BaseException) -> dict[str, Any]:
    values = {}
    for cls in type(error).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{cls.__name__.lstrip('_')}{name}"
            if name not in ("__dict__", "__weakref__") and hasattr(error, name):
                values[name] = getattr(error, name)
    return values


def _rebuild(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    base = _builtin_base(cls)
    error = base.__new__(cls, *args)
    try:
        base.__init__(error, *args)
    except Exception:  # user values in the arguments; the object is there, and keeps what __new__ has set
        object.__setattr__(error, "args", args)
    return error


def _rebuild_own(cls: type[BaseException], args: tuple[Any, ...], function: Any, function_args: tuple[Any, ...]) -> Any:
    try:
        return function(*function_args)
    except Exception:  # user code: its __reduce__ names arguments that its constructor refuses
        return _rebuild(cls, args)


def _rebuild_dual(task_error: RayTaskError) -> RayTaskError:
    return task_error.as_instanceof_cause()


def _set_state(error: BaseException, state: tuple[Any, dict[str, Any], Any, Any, bool]) -> None:
    own, attributes, cause, context, suppress = state
    if own is not None:
        if hasattr(error, "__setstate__"):
            error.__setstate__(own)
        else:
            vars(error).update(own)
    for name, value in attributes.items():
        try:
            object.__setattr__(error, name, value)  # not setattr: frozen dataclasses and properties may refuse
        except (AttributeError, TypeError):
            error.__dict__[name] = value
    for name, value in (("__cause__", cause), ("__context__", context), ("__suppress_context__", suppress)):
        object.__setattr__(error, name, value)


class _DualError(RayTaskError):
    """The first base of every ``RayTaskError(TheirClass)``; the second is their class."""

    def __new__(cls, task_error: RayTaskError) -> _DualError:
        cause = task_error.cause
        assert cause is not None
        base = _builtin_base(type(cause))
        args, _ = _constructor_args(cause, base)
        return base.__new__(cls, *_as_exceptions(args, cause))

    def __init__(self, task_error: RayTaskError) -> None:
        cause = task_error.cause
        assert cause is not None
        base = _builtin_base(type(cause))
        args, extra = _constructor_args(cause, base)
        base.__init__(self, *args)
        # Not plain assignment: frozen dataclasses refuse it.
        for name, value in {**extra, "args": (cause,)}.items():
            object.__setattr__(self, name, value)
        # A copy, since a default of the class would hide what only __getattr__ can find.
        self.__dict__.update({name: value for name, value in vars(cause).items() if not name.startswith("__")})
        self.__dict__["_task_error"] = task_error

    @property
    def cause(self) -> BaseException | None:  # type: ignore[override]
        error: RayTaskError = self.__dict__["_task_error"]
        return error.cause

    def __str__(self) -> str:
        return str(self.__dict__["_task_error"])

    def __getattr__(self, name: str) -> Any:
        task_error = self.__dict__.get("_task_error")
        if task_error is not None and not (name.startswith("__") and name.endswith("__")):
            if hasattr(task_error.cause, name):
                return getattr(task_error.cause, name)
            if name in vars(task_error):
                return vars(task_error)[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def as_instanceof_cause(self) -> RayTaskError:
        return self


@functools.lru_cache(maxsize=256)  # bounded: classes made in a loop must not pile up
def _dual_class(cause_cls: type[BaseException]) -> type[_DualError]:
    name = f"RayTaskError({cause_cls.__name__})"
    dual: Any = types.new_class(name, (_DualError, cause_cls), exec_body=lambda body: body.update(__module__=__name__, __qualname__=name))
    return dual  # type: ignore[no-any-return]


def _as_exceptions(args: tuple[Any, ...], cause: BaseException) -> tuple[Any, ...]:
    """For groups: the dual is an Exception, so a KeyboardInterrupt among its members must be one too."""
    if not isinstance(cause, BaseExceptionGroup) or isinstance(cause, Exception):
        return args
    members = [
        member if isinstance(member, Exception) else RayTaskError("", "".join(map(str, member.args)), member).as_instanceof_cause()
        for member in cause.exceptions
    ]
    return (cause.message, members)


RAY_EXCEPTION_TYPES: list[type[RayError]] = [
    value for value in list(globals().values()) if isinstance(value, type) and issubclass(value, RayError) and value.__name__[0] != "_"
]
__all__ = ["RAY_EXCEPTION_TYPES", *(cls.__name__ for cls in RAY_EXCEPTION_TYPES)]
