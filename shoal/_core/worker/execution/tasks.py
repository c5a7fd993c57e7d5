"""Runs tasks on the worker's main thread, one at a time.

The main thread is where user code expects to be: signals reach it, so a cancel is a real SIGINT that ends ``time.sleep`` and
blocking system calls, and libraries that insist on the main thread work.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import mmap
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from shoal._base import ids, references
from shoal._core.serialization import sys_exit_cause, unpickle_function
from shoal._core.wire import messages as m

from .calls import Call, CallRunner, current_call
from .environment import apply_lease_environment, apply_runtime_env
from .generators import end_of_stream, stream
from .inbound import Inbound
from .user_code import prepared

#: Functions kept unpickled per worker; the least recently defined goes first.
FUNCTION_LIMIT = 2000
#: Seconds that a process which leaves waits for registrations that its last replies need.
REPLIES_S = 2.0
#: Calls between a reference's constructor or finalizer and the deepest function that they use, and some more.
_FRAMES = 8


class MainThread:
    """The main loop of a worker, until it becomes an actor or leaves."""

    def __init__(self, inbound: Inbound, runner: CallRunner, session_dir: str, make_actor: Callable[[m.BecomeActor], Any]) -> None:
        self.inbound = inbound
        self.runner = runner
        self.core = inbound.core
        self._functions: dict[bytes, Any] = {}
        self._runs: dict[bytes, int] = {}
        self._progress = _open_progress(session_dir, self.core.me.worker_id)
        self._thread = threading.main_thread().ident or 0
        self.running: Call | None = None
        #: The call that SIGINT is meant for; cleared by the handler, so that one cancel interrupts once.
        self._interrupt: Call | None = None
        self._interruptible = False
        self._lease_id = -1
        #: The last reply is for a task that has no retry left.
        self._last_words = False
        #: A task called ``sys.exit``: the process ends now, without a reply.
        self._crash: m.Cause | None = None
        self._actor: Any = None
        self._make_actor = make_actor

    def run(self) -> None:
        """Run what is queued until the process leaves. Never returns."""
        signal.signal(signal.SIGINT, self._on_interrupt)
        queue = self.inbound.queue
        while True:
            # A SIGINT that comes after its call has ended finds nothing to interrupt.
            item = queue.get()
            if isinstance(item, Call):
                self._run_call(item)
            else:
                item()
            item = None
            if self._actor is not None:
                self._actor.run()

    # --- tasks ---------------------------------------------------------------------------------------------

    def _run_call(self, call: Call) -> None:
        if call.cancelled:
            self.runner.give_back(call)
            self.inbound.reject(call)
            return
        if self._last_words:
            # The task before may not run again: its reply must be out before this one can take the process with it.
            self._last_words = False
            self.inbound.replies_out()
        self._progress[: ids.TASK_BYTES] = call.task.task_id
        caller = call.caller
        if caller.lease_id != self._lease_id:
            self._lease_id = caller.lease_id
            self.inbound.runtime.enter_job(caller.job_id)
            self.inbound.runtime.name_process(call.name)
            apply_runtime_env(call.template.shape.runtime_env)
            apply_lease_environment(dict(call.template.shape.resources), caller.resource_ids, self.core.settings.hide_unassigned_devices)
        self.running = call
        template = call.template
        exiting = False
        if template.max_calls > 0:
            runs = self._runs[template.function_id] = self._runs.get(template.function_id, 0) + 1
            exiting = runs >= template.max_calls
        try:
            if template.num_returns < 0:
                self._run_stream(call, exiting)
            else:
                self.runner.run(call, self._interruptibly(call), exiting=exiting)
        except KeyboardInterrupt as error:
            # The interrupt came between the function's end and its reply.
            self.runner.reply(call, [self.runner.error_value(call, error)], [])
        finally:
            self.running = None
            self._interruptible = False
            self._last_words = 0 <= template.max_retries <= call.task.attempt
        if call.cancelled:
            gc.collect()  # the frames that were interrupted and their error hold each other, and the references in them
        if self._crash is not None:
            self.leave(self._crash)
        if exiting:
            self.leave(
                m.Cause("max_calls", f"max_calls={template.max_calls} of {template.name} was reached.", exit_code=0, pid=os.getpid())
            )

    def _interruptibly(self, call: Call) -> Callable[..., Any]:
        """Return the task's function, wrapped so that a cancel can interrupt it and nothing else."""

        def run(*args: Any, **kwargs: Any) -> Any:
            function = self.function(call.template.function_id)
            self._interruptible = True
            try:
                if call.cancelled:
                    raise KeyboardInterrupt
                return function(*args, **kwargs)
            finally:
                self._interruptible = False

        return run

    def _run_stream(self, call: Call, exiting: bool) -> None:
        import time

        call.started_at = time.perf_counter()
        token = current_call.set(call)
        try:
            args, kwargs = self.runner.arguments(call)
            function = self.function(call.template.function_id)
            self._interruptible = True
            if call.cancelled:
                raise KeyboardInterrupt
            count = stream(self.runner, call, iter(function(*args, **kwargs)))
            self._interruptible = False
            args = kwargs = None  # type: ignore[assignment]
            values, refs = self.runner.store_results(call, None) if call.template.num_returns > 0 else end_of_stream()
        except BaseException as error:  # the boundary of user code
            self._interruptible = False
            args = kwargs = None  # type: ignore[assignment]
            if self.on_user_error(call, error):
                return
            retry = self.runner.may_retry(call, error)
            value = self.runner.error_value(call, error)
            error.__traceback__ = None
            self.runner.reply(call, [value], [], retry=retry, exiting=exiting)
            return
        finally:
            current_call.reset(token)
        self.runner.reply(call, values, refs, num_items=count, exiting=exiting)

    def function(self, function_id: bytes) -> Any:
        """Return the function, fetching and unpickling it at its first use here."""
        function = self._functions.get(function_id)
        if function is None:
            blob = self.inbound.runtime.fetch_function(function_id)
            if len(self._functions) >= FUNCTION_LIMIT:
                self._functions.pop(next(iter(self._functions)))
            function = self._functions[function_id] = prepared(unpickle_function(blob))
        return function

    def on_user_error(self, call: Call, error: BaseException) -> bool:
        """``sys.exit`` ends the worker, as it would end a program: a crash, so the owner runs the task again or raises WorkerCrashedError.

        Rejected: hand SystemExit to the caller like other errors. Raised again by ``get``, it ends the driver without a word.
        """
        if isinstance(error, SystemExit):
            self._crash = sys_exit_cause(error, os.getpid())
            return True
        return False

    # --- cancellation --------------------------------------------------------------------------------------

    def cancel(self, call: Call) -> None:
        """I/O thread: interrupt the call if it runs, else take it out of the queue."""
        if self.running is call:
            self._interrupt = call
            signal.pthread_kill(self._thread, signal.SIGINT)
        else:
            self.inbound.hand_back()

    def _on_interrupt(self, _signum: int, frame: types.FrameType | None) -> None:
        wanted, self._interrupt = self._interrupt, None
        if wanted is None or wanted is not self.running:
            return
        if self._interruptible:
            if _counts_references(frame):
                self.inbound.inbox.post_later(self._interrupt_again, wanted)
                return
            self._interruptible = False
            raise KeyboardInterrupt
        # Between two steps of the runner; the function's wrapper looks at ``call.cancelled``.

    def _interrupt_again(self, call: Call) -> None:
        if self.running is call:
            self.cancel(call)

    # --- the other ends ------------------------------------------------------------------------------------

    def become_actor(self, message: m.BecomeActor) -> None:
        """Create the instance; from then on the process serves one actor."""
        self._actor = self._make_actor(message)

    def leave(self, cause: m.Cause) -> None:
        """End the process in good order: hand over objects, run atexit functions, leave."""
        with contextlib.suppress(Exception):  # whatever fails here, the process must still end
            self.inbound.replies_out(REPLIES_S)
            self.inbound.runtime.prepare_exit(cause)
        self._end_process(cause)

    def _end_process(self, cause: m.Cause) -> None:
        atexit._run_exitfuncs()
        for out in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                out.flush()
        os._exit(cause.exit_code or 0)


def _counts_references(frame: types.FrameType | None) -> bool:
    """Whether the code that a signal has stopped makes or drops a reference, or runs in a finalizer.

    Python swallows what is raised in ``__del__``: the cancel would be lost, and the count of a reference with it, to the end of the worker.
    """
    for _ in range(_FRAMES):
        if frame is None:
            return False
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") == references.__name__:
            return True
        frame = frame.f_back
    return False


def _open_progress(session_dir: str, worker_id: bytes) -> mmap.mmap:
    """Map the file in which the node agent finds, after our death, which task was started last."""
    directory = os.path.join(session_dir, "run")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    fd = os.open(os.path.join(directory, worker_id.hex()), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, ids.TASK_BYTES)
        return mmap.mmap(fd, ids.TASK_BYTES)
    finally:
        os.close(fd)
