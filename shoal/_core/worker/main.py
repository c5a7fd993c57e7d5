"""The life of a worker process, from the fork to its end."""

from __future__ import annotations

import os
import sys

from shoal._base import runtime as holder
from shoal._core.wire.messages import JobConfigRecord

from .execution.execution import Execution
from .io_thread import IoThread, JoinRequest
from .runtime import CoreRuntime
from .worker_start import WorkerStart

#: Seconds the interpreter lets one thread run before another may: the I/O thread must get its turn while a task computes.
SWITCH_INTERVAL_S = 0.002


def run_worker(start: WorkerStart) -> int:
    """Join the session and run what owners push. Does not return: the process leaves by ``MainThread.leave``, or is killed."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    request = JoinRequest(start.worker_id, start.agent_address, start.tokens, start.session_dir, False, arena_fd=start.arena_fd)
    thread = IoThread(request, _session_over)
    thread.start()
    runtime = CoreRuntime(
        thread.core,
        thread.inbox,
        job_config=JobConfigRecord({}, "", []),
        control_address=thread.control_address,
        session_dir=start.session_dir,
        is_driver=False,
    )
    runtime.execution = execution = Execution(thread.core, runtime, thread.inbox, session_dir=start.session_dir, ip="127.0.0.1")
    holder.install(runtime)
    thread.serve()
    execution.main.run()
    return 0


def _session_over() -> None:
    """The node agent is gone, and with it the session: nothing is left to do here, and nobody to tell."""
    os._exit(1)
