"""Makes a worker belong to a job: environment, directory, import path, logging."""

from __future__ import annotations

import os
import sys

from ...wire.messages import JobConfigRecord


def apply_job(config: JobConfigRecord) -> None:
    """Take over what the driver had at ``init``. What the worker itself needs (``SHOAL_`` marks) stays.

    The import path becomes the driver's, so that a module that the driver could import can be imported here under the same name.
    """
    kept = {name: value for name, value in os.environ.items() if name.startswith("SHOAL_")}
    for name in [name for name in os.environ if name not in config.env and name not in kept]:
        del os.environ[name]
    for name, value in {**config.env, **kept}.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    try:
        os.chdir(config.cwd)
    except OSError as error:
        print(f"The driver's working directory {config.cwd} cannot be entered here: {error}. Tasks run in {os.getcwd()}.", file=sys.stderr)
    sys.path[:] = config.sys_path + [entry for entry in sys.path if entry not in config.sys_path]
    if config.logging:
        from ...._base.log_config import LoggingConfig

        LoggingConfig.from_json(config.logging).apply()
