"""The arguments of ``init``: what is refused, and why."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from shoal._base.log_config import LoggingConfig
from shoal._base.spill_place import read_spill_place
from shoal._base.suggestions import did_you_mean
from shoal._core.scheduling.labels import check_labels
from shoal._core.scheduling.resources import parse_amount, parse_resources, to_floats

from .job import JobConfig

if TYPE_CHECKING:
    from shoal._core.process.session import SessionRecord

logger = logging.getLogger("shoal")

#: The smallest object store, in bytes; the head checks again.
STORE_LEAST_BYTES = 75 << 20

#: Accepted for Ray's sake.
_HIDDEN_KEYWORDS = frozenset({
    "object_spilling_directory", "_enable_object_reconstruction", "_plasma_directory", "_node_ip_address",
    "_driver_object_store_memory", "_memory", "_redis_username", "_redis_password", "_temp_dir", "_metrics_export_port",
    "_system_config", "_tracing_startup_hook", "_node_name",
    "_worker_entry",  # not Ray's: what workers run, for shoal.testing
})  # fmt: skip


def check_keywords(kwargs: Mapping[str, Any], valid: Iterable[str]) -> None:
    """Raise RuntimeError for a keyword that ``init`` does not have; ``valid`` are those that it has."""
    unknown = sorted(kwargs.keys() - _HIDDEN_KEYWORDS)
    if unknown:
        valid = list(valid)
        hint = did_you_mean(unknown[0], valid) or f" Valid ones: {', '.join(sorted(valid))}."
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}.{hint}")
    system_config = kwargs.get("_system_config")
    if system_config is None:
        return
    if not isinstance(system_config, dict):
        raise TypeError(f"_system_config must be a dict, got {type(system_config).__name__}.")
    logger.debug("Ignoring _system_config, but for where objects are spilled: %s", ", ".join(map(str, system_config)))


def checked_amount(argument: str, value: float | None) -> float | None:
    """Return how many CPUs or GPUs the node offers; None means those that are found. TypeError, ValueError."""
    if value is None:
        return None
    parse_amount(argument, value)
    return value


def checked_bytes(argument: str, value: float | None) -> int | None:
    """Return a number of bytes; None means that the node decides. TypeError, ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{argument} must be a number of bytes, got {type(value).__name__}: {value!r}.")
    if not 0 <= value < 1 << 62:
        raise ValueError(f"{argument} is a number of bytes and cannot be negative or above 2**62, got {value!r}.")
    return int(value)


def checked_store_bytes(value: float | None) -> int | None:
    """Return the size of the object store; ValueError below the smallest one."""
    nbytes = checked_bytes("object_store_memory", value)
    if nbytes is not None and nbytes < STORE_LEAST_BYTES:
        raise ValueError(f"object_store_memory is {nbytes} bytes; the smallest object store is {STORE_LEAST_BYTES} bytes (75 MiB).")
    return nbytes


def checked_text(argument: str, value: str | None) -> str:
    """Return the text; "" for None. TypeError for anything else, paths included: they are given as strings."""
    if not isinstance(value, str | None):
        raise TypeError(f"{argument} must be a string or None, got {type(value).__name__}: {value!r}.")
    return value or ""


def checked_spill_place(given: str | None, system_config: Mapping[str, Any] | None = None) -> str:
    """Return where the node spills objects: a path, a URL, or "" for its session's directory. TypeError, ValueError, ImportError."""
    if not isinstance(system_config, Mapping | None):
        raise TypeError(f"_system_config must be a dict, got {type(system_config).__name__}.")
    return read_spill_place(checked_text("object_spilling_directory", given), system_config, os.environ)


def checked_node_labels(labels: dict[str, str] | None) -> dict[str, str]:
    """Return the labels of the node. TypeError, ValueError."""
    if not isinstance(labels, dict | None):
        raise TypeError(f"labels must be a dict of label -> value, got {type(labels).__name__}: {labels!r}.")
    return check_labels(labels or {})


def check_kinds(job_config: object, logging_config: object, runtime_env: object) -> None:
    """Raise TypeError for something else in their places."""
    if not isinstance(job_config, JobConfig | None):
        raise TypeError(f"job_config must be a JobConfig or None, got {type(job_config).__name__}: {job_config!r}.")
    if not isinstance(logging_config, LoggingConfig | None):
        raise TypeError(f"logging_config must be a LoggingConfig or None, got {type(logging_config).__name__}: {logging_config!r}.")
    if not isinstance(runtime_env, dict | None):
        raise TypeError(f"runtime_env must be a dict, a RuntimeEnv or None, got {type(runtime_env).__name__}: {runtime_env!r}.")


def checked_resources(resources: dict[str, float]) -> dict[str, float]:
    """Return what the node offers by custom name; amounts of CPUs and GPUs have arguments of their own."""
    if not isinstance(resources, dict):
        raise TypeError(f"resources must be a dict of name -> amount, got {type(resources).__name__}: {resources!r}.")
    for name, argument in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "_memory"), ("object_store_memory", "object_store_memory")):
        if name in resources:
            raise ValueError(f"resources cannot hold {name!r}; use the argument {argument}.")
    return to_floats(parse_resources(resources))


def check_none_given(joined: SessionRecord, given: Mapping[str, Any]) -> None:
    """Raise ValueError if anything is given that describes a node: the one that is joined has what it has."""
    wrong = sorted(name for name, value in given.items() if value is not None)
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} cannot be given when init() joins a cluster (here: {joined.control_address.removeprefix('tcp:')}), whose "
            "nodes have what they were started with. Leave it out, give it to 'shoal start', or start a session of this driver's own "
            "with address='local'."
        )


def configure_logger(level: int | str, text_format: str | None) -> None:
    """Give the logger "shoal" a level, and a handler if it has none."""
    logger.setLevel(level.upper() if isinstance(level, str) else level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(text_format or "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
