"""Makes a worker belong to a job: environment, directory, import path, logging."""

from __future__ import annotations

import json
import os
import sys

from shoal._core.wire.messages import JobConfigRecord


def apply_job(config: JobConfigRecord) -> None:
    """Take over what the job asks for; the driver's own environment at ``init`` was inherited through the head.

    The import path becomes the driver's, so that a module that the driver could import can be imported here under the same name.
    """
    os.environ.update(config.env)
    sys.argv[:] = [config.main_path]  # as a program finds it; its own arguments are the driver's business
    working_dir = json.loads(config.runtime_env or "{}").get("working_dir")
    directory = working_dir or config.cwd
    try:
        os.chdir(directory)
    except OSError as error:
        print(f"The job's working directory {directory} cannot be entered here: {error}. Tasks run in {os.getcwd()}.", file=sys.stderr)
    if working_dir:
        sys.path.insert(0, working_dir)
    sys.path[:] = config.sys_path + [entry for entry in sys.path if entry not in config.sys_path]
    if config.logging:
        from shoal._base.log_config import LoggingConfig

        LoggingConfig.from_json(config.logging).apply()
