"""What the node of a head offers: CPUs, GPUs, memory, object store; asked for or found out."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from shoal._core.node_agent.devices import cpu_count, find_gpus
from shoal._core.node_agent.memory import read_capacity
from shoal._core.process.options import HeadOptions

#: The smallest object store, in bytes.
STORE_LEAST_BYTES = 75 << 20
#: Resource amounts are fixed-point everywhere inside.
UNITS = 10_000
_PAGE = 4096


@dataclass(frozen=True)
class NodePlan:
    #: Fixed-point, 1/10000.
    resources: dict[str, int]
    labels: dict[str, str]
    object_store_bytes: int
    hostname: str


def plan(options: HeadOptions) -> NodePlan:
    """Settle what the node offers.

    Raises:
        ValueError: more object store was asked for than there is memory, or less than the smallest one.
    """
    memory = read_capacity()
    store, settings = options.object_store_bytes, options.settings
    if store is None:
        store = max(STORE_LEAST_BYTES, min(int(memory.total_bytes * settings.store_share), settings.store_most_bytes))
    elif store < STORE_LEAST_BYTES:
        raise ValueError(f"object_store_memory is {store} bytes; the smallest object store is {STORE_LEAST_BYTES} bytes (75 MiB).")
    elif store > memory.total_bytes:
        raise ValueError(f"object_store_memory is {store} bytes; all of the memory that this node may use is {memory.total_bytes} bytes.")
    store -= store % _PAGE
    rest = options.memory_bytes if options.memory_bytes is not None else max(memory.total_bytes - memory.used_bytes - store, 0)
    gpus = options.num_gpus if options.num_gpus is not None else float(len(find_gpus().ids))
    amounts: dict[str, float] = {
        "CPU": options.num_cpus if options.num_cpus is not None else float(cpu_count()),
        "GPU": gpus,
        "memory": float(rest),
        "object_store_memory": float(store),
        f"node:{options.node_ip}": 1.0,
        "node:__internal_head__": 1.0 if options.is_head else 0.0,
        **options.resources,
    }
    if gpus and (model := find_gpus().model):
        amounts.setdefault(f"accelerator_type:{model}", 1.0)
    fixed = {name: round(amount * UNITS) for name, amount in amounts.items() if amount > 0}
    return NodePlan(fixed, dict(options.labels), store, socket.gethostname())
