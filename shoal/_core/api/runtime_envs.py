"""Runtime environments as they travel: canonical JSON, and what "own over inherited" means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shoal._base.runtime import Runtime


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
        return json.dumps(runtime_env, sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise TypeError(f"A runtime_env may hold strings, numbers, lists and dicts only: {error}.") from None
