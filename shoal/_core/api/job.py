"""What a job is made of: the driver's paths, environment, namespace and defaults, as every worker of the job needs them."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from shoal._base.log_config import LoggingConfig
from shoal._base.settings import read_json
from shoal._core.wire.messages import JobConfigRecord

from .runtime_envs import canonical_json, merge_runtime_envs
from .wire_check import checked_record

LIFETIMES = ("detached", "non_detached")


class JobConfig:
    """Settings of one job, given as ``init(job_config=...)``.

    Args:
        code_search_path: folders that are put on ``sys.path`` of the job's workers.
        runtime_env: environment of the job's tasks and actors.
        metadata: free strings, shown with the job.
        ray_namespace: namespace of the job's named actors.
        default_actor_lifetime: "detached" makes actors detached unless they say otherwise.
        jvm_options: kept for Java workers; Python workers do not look at them.
    """

    def __init__(
        self,
        jvm_options: list[str] | None = None,
        code_search_path: list[str] | None = None,
        runtime_env: dict[str, Any] | None = None,
        metadata: dict[str, str] | None = None,
        ray_namespace: str | None = None,
        default_actor_lifetime: str = "non_detached",
    ) -> None:
        self.jvm_options = list(jvm_options or [])
        self.code_search_path = list(code_search_path or [])
        if any(not isinstance(folder, str) for folder in self.code_search_path):
            raise TypeError(f"code_search_path is a list of folders, got {code_search_path!r}.")
        self.runtime_env = dict(runtime_env or {})
        self.metadata = dict(metadata or {})
        self.ray_namespace = ray_namespace
        self.default_actor_lifetime = default_actor_lifetime
        self.set_default_actor_lifetime(default_actor_lifetime)

    def set_metadata(self, key: str, value: str) -> None:
        """Set one string that is shown with the job."""
        self.metadata[key] = value

    def set_runtime_env(self, runtime_env: dict[str, Any] | None, validate: bool = False) -> None:
        """Replace the environment of the job's tasks and actors; ``validate`` checks it now, not in ``init``."""
        if validate:
            canonical_json(runtime_env or {})
        self.runtime_env = dict(runtime_env or {})

    def set_ray_namespace(self, ray_namespace: str) -> None:
        """Set the namespace of the job's named actors."""
        self.ray_namespace = ray_namespace

    def set_default_actor_lifetime(self, default_actor_lifetime: str) -> None:
        """Set what ``lifetime`` of the job's actors is unless they say otherwise: "detached" or "non_detached"; else ValueError."""
        if default_actor_lifetime not in LIFETIMES:
            raise ValueError(f"Default actor lifetime must be one of {', '.join(LIFETIMES)}, got {default_actor_lifetime!r}.")
        self.default_actor_lifetime = default_actor_lifetime

    @classmethod
    def from_json(cls, job_config_json: Mapping[str, Any]) -> JobConfig:
        """Build from a dict with the names of the arguments; other names are ignored."""
        names = ("jvm_options", "code_search_path", "runtime_env", "metadata", "ray_namespace", "default_actor_lifetime")
        return cls(**{name: job_config_json[name] for name in names if name in job_config_json})


def job_record(
    *,
    job_config: JobConfig | None,
    namespace: str | None,
    runtime_env: Mapping[str, Any] | None,
    logging_config: LoggingConfig | None,
    environ: Mapping[str, str],
) -> JobConfigRecord:
    """Gather what workers need. ValueError when the runtime_env given here contradicts that of the submitted job."""
    config = job_config or JobConfig()
    if namespace == "" or config.ray_namespace == "":
        raise ValueError('"" is not a valid namespace. Leave it out to get one of its own for this job.')
    own = merge_runtime_envs(config.runtime_env, runtime_env or {})
    if not own and runtime_env is None:
        own = read_json("RUNTIME_ENV", "the fields of a runtime_env", environ)
    merged = _job_runtime_env(own, environ)
    record = JobConfigRecord(
        env=dict(merged.get("env_vars", {})),
        cwd=os.getcwd(),
        sys_path=[*map(os.path.abspath, config.code_search_path), *_driver_path()],
        namespace=namespace or config.ray_namespace or environ.get("RAY_NAMESPACE") or str(uuid.uuid4()),
        runtime_env=canonical_json(merged),
        logging=logging_config.to_json() if logging_config is not None else "",
        metadata={str(key): str(value) for key, value in config.metadata.items()},
        default_actor_lifetime=config.default_actor_lifetime,
        main_path=_main_path(),
    )
    return checked_record(record, "the settings of the job")


def _job_runtime_env(own: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Merge with the environment that a job submission gave to the whole program."""
    submitted: dict[str, Any] = json.loads(environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    if not submitted or environ.get("RAY_OVERRIDE_JOB_RUNTIME_ENV") == "1":
        return merge_runtime_envs(submitted, own)
    conflicts = sorted({key for key in own.keys() & submitted.keys() if key != "env_vars" and own[key] != submitted[key]})
    own_vars, submitted_vars = own.get("env_vars", {}), submitted.get("env_vars", {})
    conflicts += sorted(key for key in own_vars.keys() & submitted_vars.keys() if own_vars[key] != submitted_vars[key])
    if conflicts:
        raise ValueError(
            f"The runtime_env of init() and that of the submitted job differ in {', '.join(conflicts)}. Give each in one place, or set "
            "RAY_OVERRIDE_JOB_RUNTIME_ENV=1 to let init() win."
        )
    return merge_runtime_envs(submitted, own)


def _driver_path() -> list[str]:
    """Return the driver's ``sys.path`` with the script's folder and the current one, so that workers import what it imports."""
    main = _main_path()
    first = [os.path.dirname(main)] if main else []
    return list(dict.fromkeys([*first, *(os.path.abspath(entry) for entry in sys.path), os.getcwd()]))


def _main_path() -> str:
    """Return the path of the driver's script; "" for an interpreter, a notebook or ``-c``."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.abspath(path) if path else ""


def entrypoint() -> str:
    """Return the driver's command line as users wrote it."""
    return " ".join(sys.argv) if sys.argv and sys.argv[0] else os.path.basename(sys.executable)
