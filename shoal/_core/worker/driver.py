"""Makes this process the driver of a session."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
from typing import TYPE_CHECKING

from shoal._base.settings import Settings
from shoal._core.transport import ConnectionLost, RequestFailed, Tokens
from shoal._core.wire import messages as m

from .io_thread import IoThread, JoinRequest, fresh_worker_id
from .log_output import LogOutput
from .runtime import CoreRuntime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .core import Core

#: Seconds between two looks at collapsed log lines that are due.
LOG_FLUSH_S = 0.5
#: Seconds that shutdown waits for the last log lines.
FLUSH_S = 1.0

logger = logging.getLogger("shoal")


def connect_driver(
    *,
    agent_address: str,
    control_address: str,
    session_dir: str,
    tokens: Tokens,
    job: m.JobConfigRecord,
    settings: Settings,
    entrypoint: str,
    log_to_driver: bool,
) -> CoreRuntime:
    """Join the session and register a job. Blocks for a few milliseconds.

    Raises:
        ConnectionLost, ConnectionRefusedError: nothing answers at the address, or it does not accept the token.
    """
    request = JoinRequest(fresh_worker_id(), agent_address, tokens, session_dir, True, log_to_driver, settings=settings)
    thread = IoThread(request, lambda: thread.release_memory())
    thread.start()
    core, inbox = thread.core, thread.inbox
    core.wants_logs = log_to_driver
    try:
        registered: m.JobRegistered = thread.call(_register(core, job, entrypoint))
    except BaseException:
        thread.stop()
        raise
    core.job_id = registered.job_id
    runtime = CoreRuntime(core, inbox, job_config=job, control_address=control_address, session_dir=session_dir, is_driver=True)
    thread.serve()
    if log_to_driver:
        _show_logs(runtime, settings)

    def leave(_arg: None) -> None:
        core.closing = True  # what ends from now on ends because the job does: not worth a word
        core.control_store.send(m.JobFinished(core.job_id))

    def end() -> None:
        if log_to_driver:
            thread.call(_flush_logs(runtime))
        inbox.post(leave, None)
        thread.stop()

    runtime.on_shutdown = end
    return runtime


async def _register(core: Core, job: m.JobConfigRecord, entrypoint: str) -> m.JobRegistered:
    def message() -> m.RegisterJob:
        return m.RegisterJob(0, core.me, os.getpid(), job.namespace, entrypoint, job)

    registered: m.JobRegistered = await core.control_store.request(message())
    core.control_store.greet = message  # a control store that was lost and is back hears first who asks
    return registered


async def _flush_logs(runtime: CoreRuntime) -> None:
    """Show the last words of the workers before they end. Bounded: a head that is gone has none."""
    try:
        asked = [agent.request(m.FlushLogs(0, runtime.job_id)) for agent in runtime.core.agents.all()]
        await asyncio.wait_for(asyncio.gather(*asked), FLUSH_S)
    except (TimeoutError, ConnectionLost, RequestFailed) as error:
        logger.debug("The last log lines could not be fetched: %s", error)


def _show_logs(runtime: CoreRuntime, settings: Settings) -> None:
    """Print what workers print, on this process's standard output and error."""
    loop = runtime.core.loop
    output = LogOutput(settings, loop.time)
    lock = threading.Lock()

    def write(lines: Sequence[str], is_error: bool) -> None:
        if lines:
            stream = sys.stderr if is_error else sys.stdout
            with lock:
                print("\n".join(lines), file=stream, flush=True)

    def arrived(message: m.LogLines) -> None:
        write(output.lines(message), message.is_error)

    def flush_due() -> None:
        write(output.flush_due(math.inf if runtime.core.closing else loop.time()), False)
        if not runtime.core.closing:
            loop.call_later(LOG_FLUSH_S, flush_due)

    runtime.core.on_log_lines = arrived
    loop.call_soon_threadsafe(flush_due)
