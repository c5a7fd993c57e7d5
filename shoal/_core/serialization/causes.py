"""From the facts of a death (``messages.Cause``) to the error that the user reads: what happened, why, what to do."""

from __future__ import annotations

import builtins
import signal
import sys
import traceback

from shoal import exceptions
from shoal._core.wire.messages import DRAINED, Cause
from shoal.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from .errors import deserialize_error, is_runtime_file

#: Lines of the dead process's log that a message shows.
LOG_LINES = 20
_SIGNAL_HINTS = {
    "SIGKILL": "Something killed it: the kernel when memory ran out (see dmesg), a person, or shoal.kill.",
    "SIGSEGV": "Native code crashed: suspect an extension module. PYTHONFAULTHANDLER=1 shows where.",
    "SIGABRT": "Native code gave up: suspect an extension module; its log says more.",
    "SIGBUS": "Memory behind a mapping vanished: a file was cut short, or /dev/shm is full.",
    "SIGTERM": "Something asked it to end, such as a cluster manager.",
}


def describe_cause(cause: Cause) -> str:
    """Return sentences and log lines: why the process died, as far as known."""
    who = f"Its process (pid {cause.pid})" if cause.pid else "Its process"
    parts = [f"{cause.message.rstrip('.')}."] if cause.message else []
    if cause.signal:
        name = _signal_name(cause.signal)
        parts.append(f"{who} was ended by signal {cause.signal} ({name}). {_SIGNAL_HINTS.get(name, '')}".rstrip())
    elif cause.kind == "sys_exit":
        parts.append(f"{who} ended with exit code {cause.exit_code}.")
    elif cause.exit_code is not None:
        how = "left without an error" if cause.exit_code == 0 else "called sys.exit or os._exit, or failed in native code"
        parts.append(f"{who} ended with exit code {cause.exit_code}: it {how}.")
    elif not parts:
        parts.append(f"{who} ended; nobody saw how ({cause.kind}).")
    if cause.node_id and cause.kind == "node_died":
        parts.append(f"Node {cause.node_id.hex()}.")
    text = " ".join(parts)
    if cause.log_tail:
        lines = "\n".join(f"    {line}" for line in cause.log_tail[-LOG_LINES:])
        text += f"\nThe last lines of its log:\n{lines}"
    return text


def worker_crashed(cause: Cause, *, task_name: str, attempt: int = 0, max_attempts: int = 0) -> RayError:
    """Return the error of a task whose process, or whose node, died and that is not tried again."""
    tries = f", attempt {attempt} of {max_attempts}" if attempt and max_attempts > 0 else ""
    text = f"The worker died while it ran task {task_name}{tries}. {describe_cause(cause)}"
    if cause.kind == "oom":
        return OutOfMemoryError(f"{text}\nUse less memory per task, or let fewer run at once (num_cpus, memory).")
    if cause.kind == "node_died":
        return NodeDiedError(f"{text}\nRaise max_retries to have it run on another node.")
    if cause.kind == "sys_exit":
        return WorkerCrashedError(
            f"{text}\nsys.exit() ends the worker, which counts as a crash: let the task return or raise an error instead."
        )
    return WorkerCrashedError(f"{text}\nRaise max_retries if the task may run again.")


def sys_exit_cause(error: SystemExit, pid: int) -> Cause:
    """Return the cause of a death by ``sys.exit`` in a task; a code that is no number is printed, as the interpreter does."""
    code = error.code
    shown = repr(code) if code is None or type(code) in (int, str) else f"<{type(code).__qualname__}>"
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr, flush=True)
    status = 0 if code is None else code & 0xFF if isinstance(code, int) else 1
    text = f"sys.exit({'' if code is None else shown}) was called"
    places = [
        (frame.f_code.co_name, frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not is_runtime_file(frame.f_code.co_filename) and "_sitebuiltins" not in frame.f_code.co_filename  # exit() and quit()
    ]
    if places:
        name, filename, line = places[-1]
        text += f" in function {name} at {filename}:{line}"
    return Cause("sys_exit", f"{text}.", exit_code=status, pid=pid)


def actor_died(cause: Cause, *, actor_id: str, class_name: str = "", name: str = "", namespace: str = "", ip: str = "") -> RayError:
    """Return the error of calls to an actor that is dead for good: ActorUnschedulableError if it never had a place, else ActorDiedError."""
    if cause.kind == "unschedulable":
        return exceptions.ActorUnschedulableError(f"{cause.message.rstrip('.')}. (actor {actor_id})")
    facts = {"class_name": class_name, "actor_id": actor_id, "pid": cause.pid, "name": name, "namespace": namespace, "ip": ip}
    listed = "".join(f"\n\t{key}: {value}" for key, value in facts.items() if value)
    if cause.error:
        error = deserialize_error(cause.error)
        if isinstance(error, RayTaskError):
            died = ActorDiedError(error, actor_id=actor_id)
            died.add_note(f"The actor:{listed}")
            return died
        why = f"{type(error).__name__}: {error}"
    else:
        why = _actor_reason(cause)
    return ActorDiedError(
        f"The actor died before it finished this call.{listed}\n{why}",
        actor_id=actor_id,
        actor_init_failed=cause.kind == "init_failed",
        preempted=cause.kind == DRAINED,
    )


def error_named(kind: str, message: str, object_id: str = "") -> BaseException:
    """Return the exception that a ``Failed`` message names: a class of ``shoal.exceptions`` or a built-in one."""
    cls = getattr(exceptions, kind, None) or getattr(builtins, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        return exceptions.RaySystemError(f"{kind}: {message}")
    if issubclass(cls, exceptions.ObjectLostError):
        return cls(object_id, message=message)
    if issubclass(cls, exceptions.TaskCancelledError):
        return cls(error_message=message)
    if issubclass(cls, exceptions.RayActorError) and not issubclass(cls, (ActorDiedError, exceptions.ActorUnavailableError)):
        return cls(error_msg=message)
    return cls(message)


def _actor_reason(cause: Cause) -> str:
    known = {
        "killed": "It was killed by shoal.kill().",
        "exit_actor": "It ended itself with exit_actor().",
        "out_of_scope": "The last handle to it was dropped. Keep a handle as long as you need the actor, or make it detached.",
        "owner_died": "The process that created it has died. Use lifetime='detached' for an actor that must outlive its creator.",
        "job_over": "The job that it belonged to is over.",
    }
    text = known.get(cause.kind)
    if text:
        return f"{text} {cause.message}".rstrip()
    if cause.kind == "placement_group_removed":
        return f"{cause.message} Create the group again and start the actor there."
    return f"{describe_cause(cause)}\nSet max_restarts to have it started again."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
