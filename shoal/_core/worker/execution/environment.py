"""The process environment of a task: visible devices and threads of numeric libraries."""

from __future__ import annotations

import json
import os
import sys

#: Resource -> variable that tells its libraries which devices are theirs.
VISIBLE_DEVICES = {
    "GPU": "CUDA_VISIBLE_DEVICES",
    "TPU": "TPU_VISIBLE_CHIPS",
    "neuron_cores": "NEURON_RT_VISIBLE_CORES",
    "HPU": "HABANA_VISIBLE_MODULES",
    "NPU": "ASCEND_RT_VISIBLE_DEVICES",
}
#: Set here, so ours to change; a value that came with the job's environment is the user's.
_ours: set[str] = set()
_applied_env = ""


def apply_runtime_env(runtime_env: str) -> None:
    """Set what a task's or actor's own runtime_env asks for, over the job's. A worker serves one environment, so this happens once."""
    global _applied_env
    if runtime_env == _applied_env:
        return
    _applied_env = runtime_env
    wanted = json.loads(runtime_env or "{}")
    for name, value in wanted.get("env_vars", {}).items():
        os.environ[name] = value
    if wanted.get("working_dir"):
        os.chdir(wanted["working_dir"])
        sys.path.insert(0, wanted["working_dir"])


def _visible(variable: str, devices: list[int]) -> str:
    """Name the assigned devices as their libraries know them: the head itself may have been given only some of the machine's."""
    if variable not in _ours:
        _offered[variable] = [part.strip() for part in os.environ.get(variable, "").split(",") if part.strip()]
    offered = _offered[variable]
    return ",".join(offered[device] if device < len(offered) else str(device) for device in devices)


#: Variable -> the devices that it named before we first set it.
_offered: dict[str, list[str]] = {}


def apply_lease_environment(resources: dict[str, int], resource_ids: dict[str, list[int]], hide_unassigned: bool = False) -> None:
    """Set what the code of this lease must see. Amounts are fixed-point, 1/10000.

    ``OMP_NUM_THREADS`` becomes the number of CPUs unless the user has set it. Device variables are set to the assigned devices and
    left alone when none are assigned, so that a task without GPUs still sees what the machine offers; ``hide_unassigned``: set to "".
    """
    if "OMP_NUM_THREADS" not in os.environ or "OMP_NUM_THREADS" in _ours:
        _ours.add("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(max(1, resources.get("CPU", 0) // 10000))
    for resource, variable in VISIBLE_DEVICES.items():
        devices = resource_ids.get(resource)
        if devices or hide_unassigned:
            value = _visible(variable, devices or [])
            _ours.add(variable)
            os.environ[variable] = value
        elif variable in _ours:
            _ours.discard(variable)
            if offered := _offered.pop(variable):
                os.environ[variable] = ",".join(offered)
            else:
                os.environ.pop(variable, None)
