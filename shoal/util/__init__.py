"""Public helpers around the core.

Owns nothing: everything here is written on the public API, as a user's own program could be. Runs in: drivers and workers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shoal.actor import list_named_actors
from shoal.placement import get_current_placement_group, get_placement_group, placement_group_table, remove_placement_group
from shoal.serialization import deregister_serializer, inspect_serializability, register_serializer

from .placement_group import placement_group

if TYPE_CHECKING:
    from . import scheduling_strategies

__all__ = [
    "deregister_serializer",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
    "scheduling_strategies",
]

#: Names of Ray's that this version does not have.
_NOT_YET = frozenset({
    "ActorPool", "accelerators", "actor_pool", "as_completed", "client", "collective", "connect", "dask", "disconnect", "iter", "joblib",
    "map_unordered", "metrics", "multiprocessing", "queue", "rpdb", "spark", "state", "tpu", "tracing",
})  # fmt: skip


def get_node_ip_address() -> str:
    """Return the address under which this machine is known to other nodes."""
    import shoal

    own = shoal.get_runtime_context().get_node_id()
    address: str = next(node["NodeManagerAddress"] for node in shoal.nodes() if node["NodeID"] == own)
    return address


if not TYPE_CHECKING:  # a checker shall complain about names that do not exist

    def __getattr__(name: str) -> Any:
        if name == "scheduling_strategies":
            return importlib.import_module(f"{__name__}.{name}")
        if name in _NOT_YET:
            raise AttributeError(f"shoal.util has no {name!r} yet.", name=name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    return sorted(__all__)
