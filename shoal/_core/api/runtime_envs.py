"""Runtime environments as they travel: canonical JSON, and what "own over inherited" means."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from shoal._base.runtime import Runtime
from shoal._base.suggestions import did_you_mean
from shoal.exceptions import RuntimeEnvSetupError

_BUILT = {"env_vars", "working_dir"}
_NOT_BUILT = {
    "conda", "config", "container", "excludes", "image_uri", "java_jars", "mpi", "nsight", "pip", "py_executable", "py_modules", "uv",
    "worker_process_setup_hook",
}  # fmt: skip


class RuntimeEnv(dict[str, Any]):
    """An environment as a dict whose fields are checked when it is made; a plain dict does as well.

    Args:
        fields: as ``runtime_env=`` takes them: ``env_vars``, ``working_dir``. None means not given.

    Raises:
        RuntimeEnvSetupError: a field that this version does not build.
        ValueError: an unknown field, or a ``working_dir`` that is not a local directory.
        TypeError: a value of the wrong type.
    """

    def __init__(self, *, _validate: bool = True, **fields: Any) -> None:
        super().__init__({name: value for name, value in fields.items() if value is not None})
        if _validate:
            canonical_json(self)

    def env_vars(self) -> dict[str, str]:
        """Return a copy of the environment variables."""
        return dict(self.get("env_vars", {}))

    def working_dir(self) -> str | None:
        """Return the directory in which workers start; None if it is the driver's."""
        return self.get("working_dir")

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict of the fields."""
        return dict(self)


def runtime_env_of(runtime: Runtime, own: Mapping[str, Any] | None) -> str:
    """Return the environment of a task or actor as canonical JSON: its own over its parent's over the job's; "" when it is the job's."""
    context = runtime.task_context()
    inherited = context.runtime_env if context is not None else ""
    if not own:
        return inherited
    return canonical_json(merge_runtime_envs(json.loads(inherited or runtime.job_config.runtime_env or "{}"), own))


def merge_runtime_envs(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``own`` over ``base``: ``env_vars`` merge by key, everything else replaces."""
    merged = {**base, **own}
    env_vars = {**base.get("env_vars", {}), **own.get("env_vars", {})}
    if env_vars:
        merged["env_vars"] = env_vars
    return merged


def canonical_json(runtime_env: Mapping[str, Any]) -> str:
    """Return equal text for equal environments; "" for an empty one. TypeError if it holds something that JSON cannot say."""
    if not runtime_env:
        return ""
    try:
        text = json.dumps(runtime_env, sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise TypeError(f"A runtime_env may hold strings, numbers, lists and dicts only: {error}.") from None
    _check_fields(runtime_env)
    return text


def _check_fields(runtime_env: Mapping[str, Any]) -> None:
    """Refuse what workers would silently not do."""
    for field in runtime_env:
        if field in _NOT_BUILT:
            raise RuntimeEnvSetupError(
                f"runtime_env has the field {field!r}, which this version of shoal does not build. Workers run in the driver's own "
                "environment: install what tasks need there. Built are: env_vars, working_dir (a local directory)."
            )
        if field not in _BUILT:
            raise ValueError(f"Unknown field {field!r} in runtime_env.{did_you_mean(field, _BUILT | _NOT_BUILT)}")
    working_dir = runtime_env.get("working_dir")
    if working_dir is not None and not os.path.isdir(working_dir):
        raise ValueError(f"runtime_env has working_dir={working_dir!r}, which is not a local directory.")
    for name, value in runtime_env.get("env_vars", {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"runtime_env['env_vars'] maps strings to strings, got {name!r}: {value!r}.")
