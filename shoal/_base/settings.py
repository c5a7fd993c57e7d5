"""Every switch of the runtime, in one record, read from the environment in one function.

The head reads them once at its start and hands the record to every process of the session, so that all agree.
``SHOAL_<FIELD>`` sets a field; a few fields also listen to the name that Ray's users know.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Settings:
    #: Bytes. Values up to this size travel inside messages; 100 KiB is where one copy into the arena gets cheaper than two in sockets.
    inline_limit_bytes: int = 100 * 1024
    #: Seconds of work that an owner keeps queued on a leased worker: hides the round trip without queueing behind long tasks.
    pipeline_s: float = 0.002
    #: Tasks queued on one worker at most, whatever their duration.
    pipeline_limit: int = 1000
    #: Seconds an idle lease is kept for the next task: spans the gap between one-at-a-time calls; returned at once when others wait.
    lease_linger_s: float = 0.02
    #: Seconds between a cancel and the end of a task that cannot be interrupted (one long C call): then its worker is killed.
    cancel_grace_s: float = 3.0
    #: Seconds that a worker without work is kept beyond the prestarted ones.
    idle_worker_s: float = 2.0
    #: Bytes of lineage an owner keeps; beyond it the oldest objects can no longer be rebuilt.
    lineage_limit_bytes: int = 1 << 30
    #: Seconds between two looks at the memory of the node.
    memory_monitor_s: float = 0.25
    #: Share of the node's memory in use above which the newest retriable task is killed.
    memory_usage_threshold: float = 0.95
    #: Share of the disk in use above which spilling stops with OutOfDiskError.
    disk_usage_threshold: float = 0.95
    #: Bytes per spill file: small objects are packed until a file has this size.
    spill_file_bytes: int = 64 << 20
    #: Seconds a creation waits for room before ObjectStoreFullError.
    store_full_timeout_s: float = 10.0
    #: Seconds for the head to come up before ``init`` gives up with the head's own output.
    start_timeout_s: float = 30.0
    #: Seconds that a killed owner's stored objects wait for their holders to ask for them.
    adoption_grace_s: float = 5.0
    #: Finished jobs and dead actors remembered for error messages and listings.
    history_limit: int = 1000
    #: Default of ``max_retries``; Ray's name: RAY_TASK_MAX_RETRIES.
    task_max_retries: int = 3
    #: Forward worker output to the driver; Ray's name: RAY_LOG_TO_DRIVER.
    log_to_driver: bool = True
    #: Collapse identical lines of many workers; Ray's name: RAY_DEDUP_LOGS.
    dedup_logs: bool = True
    #: Seconds over which identical lines are collapsed; Ray's name: RAY_DEDUP_LOGS_AGG_WINDOW_S.
    dedup_logs_window_s: float = 5.0
    #: Print errors of tasks whose references were dropped unread unless set; Ray's name: RAY_IGNORE_UNHANDLED_ERRORS.
    ignore_unhandled_errors: bool = False
    #: Warn once about a blocking get inside an async actor; Ray's name: RAY_WARN_BLOCKING_GET_INSIDE_ASYNC.
    warn_blocking_get_inside_async: bool = True
    #: Allow references to be pickled outside of shoal; Ray's name: RAY_allow_out_of_band_object_ref_serialization.
    allow_out_of_band_refs: bool = True
    #: Call ``check()`` of every state object after each event. For tests: slow.
    debug: bool = False


#: Field -> the other name under which its variable is known.
_KNOWN_AS = {
    "task_max_retries": "RAY_TASK_MAX_RETRIES",
    "log_to_driver": "RAY_LOG_TO_DRIVER",
    "dedup_logs": "RAY_DEDUP_LOGS",
    "dedup_logs_window_s": "RAY_DEDUP_LOGS_AGG_WINDOW_S",
    "ignore_unhandled_errors": "RAY_IGNORE_UNHANDLED_ERRORS",
    "warn_blocking_get_inside_async": "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC",
    "allow_out_of_band_refs": "RAY_allow_out_of_band_object_ref_serialization",
    "memory_usage_threshold": "RAY_memory_usage_threshold",
}
_FALSE = {"0", "false", "no", "off", ""}


def read_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Build the settings from environment variables. ValueError names the variable that cannot be understood."""
    environ = os.environ if environ is None else environ
    values: dict[str, int | float | bool] = {}
    for field in fields(Settings):
        for name in (f"SHOAL_{field.name.upper()}", _KNOWN_AS.get(field.name, "")):
            text = environ.get(name) if name else None
            if text is not None:
                values[field.name] = _parse(name, text, str(field.type))
                break
    return Settings(**values)  # type: ignore[arg-type]


def _parse(name: str, text: str, kind: str) -> int | float | bool:
    if kind == "bool":
        return text.strip().lower() not in _FALSE
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise ValueError(f"The environment variable {name} must be a number ({kind}), got {text!r}.") from None
