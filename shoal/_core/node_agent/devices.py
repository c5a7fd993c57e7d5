"""CPUs and accelerators of this machine, found without importing anything that would initialise them.

Which environment variable makes an accelerator visible to a library is a table; the runtime sets it in a worker before the first task.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal._core.node_agent.memory import cgroup_files

#: Kind of accelerator -> variable by which its libraries are told what they may see.
VISIBLE_DEVICES = {
    "nvidia": "CUDA_VISIBLE_DEVICES",
    "amd": "HIP_VISIBLE_DEVICES",
    "intel": "ONEAPI_DEVICE_SELECTOR",
    "tpu": "TPU_VISIBLE_CHIPS",
    "neuron": "NEURON_RT_VISIBLE_CORES",
    "gaudi": "HABANA_VISIBLE_MODULES",
    "ascend": "ASCEND_RT_VISIBLE_DEVICES",
}


@dataclass(frozen=True)
class Accelerators:
    """Accelerators of one kind. ``ids`` are the names that the libraries use: index 0 of the resource is ``ids[0]``."""

    kind: str = "nvidia"
    ids: tuple[str, ...] = ()
    model: str = ""

    def environment(self, indices: Iterable[int]) -> dict[str, str]:
        """Return the variables that show exactly these devices, none for none."""
        names = [self.ids[index] if index < len(self.ids) else str(index) for index in indices]
        return {VISIBLE_DEVICES[self.kind]: ",".join(names)}


def cpu_count(root: str = "/") -> int:
    """Return the CPUs that this process may use: affinity and cgroup quota, rounded up, at least 1."""
    count = len(os.sched_getaffinity(0))
    for quota in _cpu_quotas(root):
        count = min(count, max(1, math.ceil(quota)))
    return count


def find_gpus(environ: Mapping[str, str] | None = None, root: str = "/") -> Accelerators:
    """Return the GPUs that a process started like this one would see."""
    environ = os.environ if environ is None else environ
    for kind, found, model in (("nvidia", _nvidia(root), _nvidia_model(root)), ("amd", _amd(root), "")):
        visible = environ.get(VISIBLE_DEVICES[kind])
        if visible is None:
            if found:
                return Accelerators(kind, tuple(found), model)
        elif found:
            return Accelerators(kind, _visible(visible), model)
    return Accelerators()


def _visible(text: str) -> tuple[str, ...]:
    """Read a list of visible devices as CUDA does: up to the first invalid entry."""
    names = []
    for name in (part.strip() for part in text.split(",")):
        if not name or name in ("-1", "NoDevFiles", "none", "void"):
            break
        names.append(name)
    return tuple(names)


def _nvidia(root: str) -> list[str]:
    nodes = [entry.name for entry in _entries(Path(root, "dev")) if re.fullmatch(r"nvidia\d+", entry.name)]
    count = len(nodes) or len(list(_entries(Path(root, "proc/driver/nvidia/gpus"))))
    return [str(index) for index in range(count)]


def _nvidia_model(root: str) -> str:
    """Return a short name such as H200, from "NVIDIA H200" or "Tesla V100-SXM2-16GB"."""
    for gpu in _entries(Path(root, "proc/driver/nvidia/gpus")):
        try:
            text = (gpu / "information").read_text()
        except OSError:
            continue
        found = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
        if found:
            words = re.sub(r"NVIDIA|Tesla|GeForce|Quadro", "", found.group(1)).replace("-", " ").split()
            return words[0] if words else ""
    return ""


def _amd(root: str) -> list[str]:
    gpus = 0
    for node in _entries(Path(root, "sys/class/kfd/kfd/topology/nodes")):
        try:
            gpus += (node / "gpu_id").read_text().strip() not in ("", "0")
        except OSError:
            continue
    return [str(index) for index in range(gpus)]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _cpu_quotas(root: str) -> Iterable[float]:
    """CPUs that each cgroup on the way to the top allows."""
    for text in cgroup_files("cpu", "cpu.max", root):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            yield int(quota) / int(period)
    periods = list(cgroup_files("cpu", "cpu.cfs_period_us", root))
    for quota, period in zip(cgroup_files("cpu", "cpu.cfs_quota_us", root), periods, strict=False):
        if quota.strip().isdigit() and int(period) > 0:
            yield int(quota) / int(period)
