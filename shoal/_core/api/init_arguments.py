"""The arguments of ``init``: what is refused, and why."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from shoal._base.suggestions import did_you_mean
from shoal._core.scheduling.resources import parse_resources, to_floats

logger = logging.getLogger("shoal")

#: Accepted for Ray's sake.
_HIDDEN_KEYWORDS = frozenset({
    "object_spilling_directory", "_enable_object_reconstruction", "_plasma_directory", "_node_ip_address",
    "_driver_object_store_memory", "_memory", "_redis_username", "_redis_password", "_temp_dir", "_metrics_export_port",
    "_system_config", "_tracing_startup_hook", "_node_name",
})  # fmt: skip


def check_keywords(kwargs: Mapping[str, Any], valid: Iterable[str]) -> None:
    """Raise RuntimeError for a keyword that ``init`` does not have; ``valid`` are those that it has."""
    unknown = sorted(kwargs.keys() - _HIDDEN_KEYWORDS)
    if unknown:
        hint = did_you_mean(unknown[0], valid)
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}.{hint}")
    system_config = kwargs.get("_system_config")
    if system_config is None:
        return
    if not isinstance(system_config, dict):
        raise TypeError(f"_system_config must be a dict, got {type(system_config).__name__}.")
    logger.debug("Ignoring _system_config: %s", ", ".join(map(str, system_config)))


def checked_resources(resources: dict[str, float]) -> dict[str, float]:
    """Return what the node offers by custom name; amounts of CPUs and GPUs have arguments of their own."""
    if not isinstance(resources, dict):
        raise TypeError(f"resources must be a dict of name -> amount, got {type(resources).__name__}: {resources!r}.")
    for name, argument in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "_memory"), ("object_store_memory", "object_store_memory")):
        if name in resources:
            raise ValueError(f"resources cannot hold {name!r}; use the argument {argument}.")
    return to_floats(parse_resources(resources))


def check_address(address: str | None) -> None:
    """Raise ConnectionError for every address but this machine's own new session."""
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address must be a string or None, got {type(address).__name__}: {address!r}.")
    wanted, source = address, "init(address=...)"
    if address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        wanted, source = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    if wanted not in (None, "", "local"):
        raise ConnectionError(
            f"No cluster can be reached at {wanted!r} (from {source}): this version of shoal starts a session of its own in each driver "
            "and cannot attach to a running one; that comes with the command 'shoal start'. Leave the address out, or give address='local'."
        )


def configure_logger(level: int | str, text_format: str | None) -> None:
    """Give the logger "shoal" a level, and a handler if it has none."""
    logger.setLevel(level.upper() if isinstance(level, str) else level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(text_format or "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
