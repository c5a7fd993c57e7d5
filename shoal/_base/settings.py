"""Every switch of the runtime, in one record, read from the environment in one function.

The head reads them once at its start and hands the record to every process of the session, so that all agree.
``SHOAL_<FIELD>`` sets a field; a few fields also listen to the name that Ray's users know.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


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
    #: Seconds between two looks at the memory of the node, 0 for none; Ray's name, in milliseconds: RAY_memory_monitor_refresh_ms.
    memory_monitor_s: float = 0.25
    #: Share of the node's memory in use above which the newest retriable task is killed; Ray's name: RAY_memory_usage_threshold.
    memory_usage_threshold: float = 0.95
    #: Share of the disk in use above which spilling stops with OutOfDiskError.
    disk_usage_threshold: float = 0.95
    #: Share of the memory that the object store takes unless told; Ray's name: RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION.
    store_share: float = 0.3
    #: Bytes that it takes at most unless told; Ray's name: RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES. Programs are sized for these figures.
    store_most_bytes: int = 200 * 10**9
    #: Bytes per spill file: small objects are packed until a file has this size.
    spill_file_bytes: int = 64 << 20
    #: Seconds from the death of a node until what it has spilled behind a URL is deleted, but for what other nodes have adopted by then.
    spill_sweep_s: float = 60.0
    #: Seconds a creation waits for room before ObjectStoreFullError.
    store_full_timeout_s: float = 10.0
    #: Seconds for the head to come up before ``init`` gives up with the head's own output.
    start_timeout_s: float = 30.0
    #: Seconds that a killed owner's stored objects wait for their holders to ask for them.
    adoption_grace_s: float = 5.0
    #: Seconds without a heartbeat after which a node is declared dead, and its agent looks for a new way to the control store.
    node_timeout_s: float = 10.0
    #: Seconds that a control store which was started again waits for the nodes it knew.
    node_return_s: float = 10.0
    #: Seconds that a driver's request waits for a lost control store; Ray's name: RAY_gcs_rpc_server_reconnect_timeout_s.
    control_store_timeout_s: float = 60.0
    #: Seconds after which a leading control store that does not renew its lease in etcd has lost it, and a standby takes over.
    leader_lease_s: float = 3.0
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
    #: Lines that match are never collapsed; Ray's name: RAY_DEDUP_LOGS_ALLOW_REGEX.
    dedup_logs_allow_regex: str = ""
    #: Lines that match are not shown at all; Ray's name: RAY_DEDUP_LOGS_SKIP_REGEX.
    dedup_logs_skip_regex: str = ""
    #: Level of the logger "shoal" unless ``init`` is given one; Ray's name: RAY_LOGGER_LEVEL.
    logger_level: str = "info"
    #: Start a session at the first use without ``init``; Ray's name: RAY_ENABLE_AUTO_CONNECT.
    auto_init: bool = True
    #: Hide all devices from tasks that are assigned none, which else see the machine's; Ray's: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO.
    hide_unassigned_devices: bool = False
    #: Bytes at which a worker's log file starts anew (one older file is kept); Ray's name: RAY_ROTATION_MAX_BYTES, 0 for never.
    log_rotate_bytes: int = 64 << 20
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
    "memory_monitor_s": "RAY_memory_monitor_refresh_ms",
    "store_share": "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION",
    "store_most_bytes": "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES",
    "dedup_logs_allow_regex": "RAY_DEDUP_LOGS_ALLOW_REGEX",
    "dedup_logs_skip_regex": "RAY_DEDUP_LOGS_SKIP_REGEX",
    "logger_level": "RAY_LOGGER_LEVEL",
    "log_rotate_bytes": "RAY_ROTATION_MAX_BYTES",
    "auto_init": "RAY_ENABLE_AUTO_CONNECT",
    "control_store_timeout_s": "RAY_gcs_rpc_server_reconnect_timeout_s",
    "hide_unassigned_devices": "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
}
#: Variables in another unit than their field, and what one of theirs is.
_UNITS = {"RAY_memory_monitor_refresh_ms": 0.001}
_SHARES = {"memory_usage_threshold", "disk_usage_threshold", "store_share"}
_WORDS = {"0": False, "false": False, "no": False, "off": False, "": False, "1": True, "true": True, "yes": True, "on": True}
LEVELS = ("debug", "info", "warning", "error", "critical")


def read_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Build the settings from environment variables. ValueError names the variable that cannot be understood, and what it may be."""
    environ = os.environ if environ is None else environ
    values: dict[str, int | float | bool | str] = {}
    for field in fields(Settings):
        for name in (f"SHOAL_{field.name.upper()}", _KNOWN_AS.get(field.name, "")):
            text = environ.get(name) if name else None
            if text is not None:
                values[field.name] = _parse(name, text, field.name, str(field.type))
                break
    return Settings(**values)  # type: ignore[arg-type]


def read_json(name: str, what: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON object in ``SHOAL_<name>`` or ``RAY_<name>``; {} if neither is set. ValueError for anything else."""
    for variable in (f"SHOAL_{name}", f"RAY_{name}"):
        if text := environ.get(variable):
            try:
                value = json.loads(text)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise _wrong(variable, text, f"a JSON object of {what}")
            return value
    return {}


def _parse(name: str, text: str, field: str, kind: str) -> int | float | bool | str:
    if kind == "bool":
        if text.strip().lower() not in _WORDS:
            raise _wrong(name, text, "0, false, no, off or 1, true, yes, on")
        return _WORDS[text.strip().lower()]
    if kind == "str":
        return _level(name, text) if field == "logger_level" else _pattern(name, text)
    least, most, allowed = 0.0, math.inf, f"a number ({kind}) of at least 0"
    if field in _SHARES:
        most, allowed = 1.0, "a share from 0 to 1"
    elif field == "task_max_retries":
        least, allowed = -1.0, "a whole number (int) of at least -1, which stands for no limit"
    try:
        number = int(text) if kind == "int" else float(text)
    except ValueError:
        raise _wrong(name, text, allowed) from None
    if not least <= number <= most or number == math.inf:
        raise _wrong(name, text, allowed)
    return number * _UNITS[name] if name in _UNITS else number


def _level(name: str, text: str) -> str:
    level = text.strip().lower()
    if level not in LEVELS:
        raise _wrong(name, text, f"one of {', '.join(LEVELS)}")
    return level


def _pattern(name: str, text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise _wrong(name, text, f"a regular expression ({error})") from None
    return text


def _wrong(name: str, text: str, allowed: str) -> ValueError:
    return ValueError(f"The environment variable {name} must be {allowed}, got {text!r}.")
