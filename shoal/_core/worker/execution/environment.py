"""The process environment of a task: visible devices and threads of numeric libraries."""

from __future__ import annotations

import os

#: Resource -> variable that tells its libraries which devices are theirs.
VISIBLE_DEVICES = {"GPU": "CUDA_VISIBLE_DEVICES", "TPU": "TPU_VISIBLE_CHIPS", "neuron_cores": "NEURON_RT_VISIBLE_CORES", "HPU": "HABANA_VISIBLE_MODULES", "NPU": "ASCEND_RT_VISIBLE_DEVICES"}  # fmt: skip
#: Set here, so ours to change; a value that came with the job's environment is the user's.
_ours: set[str] = set()


def apply_lease_environment(resources: dict[str, int], resource_ids: dict[str, list[int]]) -> None:
    """Set what the code of this lease must see. Amounts are fixed-point, 1/10000.

    ``OMP_NUM_THREADS`` becomes the number of CPUs unless the user has set it. Device variables are set to the assigned devices and left alone
    when none are assigned, so that a task without GPUs still sees what the machine offers.
    """
    if "OMP_NUM_THREADS" not in os.environ or "OMP_NUM_THREADS" in _ours:
        _ours.add("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(max(1, resources.get("CPU", 0) // 10000))
    for resource, variable in VISIBLE_DEVICES.items():
        devices = resource_ids.get(resource)
        if devices:
            _ours.add(variable)
            os.environ[variable] = ",".join(str(device) for device in devices)
        elif variable in _ours:
            _ours.discard(variable)
            os.environ.pop(variable, None)
