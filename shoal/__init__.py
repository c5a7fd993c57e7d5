# The tree, from what users touch to what they never see:
#
#   __init__, types, exceptions     the friendly API: init, remote, get, put, wait, ...; the errors; names for annotations
#   actor, remote_function, ...     thin doors: the same names under the modules where Ray's users look for them
#   util, experimental              public helpers, written on the public API alone; loaded on first touch
#   _core/api                       what stands behind the names here: options and their checks, handles, init, local mode
#   _core/worker                    the runtime in drivers and workers: ownership, submission, execution
#   _core/node_agent, control_store, object_store, process     the head: leases and workers, the cluster's truth, shared memory, forking
#   _core/control_link              how all others reach the control store, across its restarts
#   _core/transport, serialization, scheduling, wire           connections, pickling, resources, messages (the protocol)
#   _base                           identifiers, references, settings: standard library only; knows nothing of the rest
"""Run Python functions and classes on many processes, with the API of Ray.

Example:
    >>> import shoal
    >>> @shoal.remote
    ... def square(x):
    ...     return x * x
    >>> shoal.get([square.remote(i) for i in range(4)])
    [0, 1, 4, 9]
"""

from __future__ import annotations

import importlib
from enum import Enum
from typing import TYPE_CHECKING, Any

from . import exceptions
from ._base.ids import (
    ActorClassID,
    ActorID,
    FunctionID,
    JobID,
    NodeID,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
)
from ._base.log_config import LoggingConfig
from ._base.references import DynamicObjectRefGenerator, ObjectRef, ObjectRefGenerator
from ._base.version import __version__
from ._core.api.actor_facts import method
from ._core.api.context import available_resources, cluster_resources, get_gpu_ids, get_runtime_context, nodes
from ._core.api.decorator import remote
from ._core.api.lifecycle import init, is_initialized, shutdown
from ._core.api.named_actors import get_actor, kill
from ._core.api.objects import cancel, get, put, wait

if TYPE_CHECKING:
    from . import actor, cloudpickle, job_config, remote_function, runtime_context, runtime_env, types, util

ObjectID = ObjectRef

#: What a process is, as Ray's programs compare it.
SCRIPT_MODE = 0
WORKER_MODE = 1


class Language(Enum):
    """Languages of tasks and actors; shoal runs Python."""

    PYTHON = "PYTHON"
    JAVA = "JAVA"
    CPP = "CPP"


__all__ = [
    "SCRIPT_MODE",
    "WORKER_MODE",
    "ActorClassID",
    "ActorID",
    "DynamicObjectRefGenerator",
    "FunctionID",
    "JobID",
    "Language",
    "LoggingConfig",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "TaskID",
    "UniqueID",
    "WorkerID",
    "__version__",
    "actor",
    "available_resources",
    "cancel",
    "cloudpickle",
    "cluster_resources",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "job_config",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "remote_function",
    "runtime_context",
    "runtime_env",
    "shutdown",
    "types",
    "util",
    "wait",
]

#: Loaded when they are touched.
_SUBMODULES = frozenset({"actor", "cloudpickle", "job_config", "remote_function", "runtime_context", "runtime_env", "types", "util"})

#: Names of Ray's that this version does not have, and what to do without them.
_NOT_YET = {
    "dag": "Lazy graphs (.bind) do not exist yet; call .remote() and pass the references on.",
    "timeline": "Tasks are not recorded yet.",
    "data": "The library does not exist yet.",
    "train": "The library does not exist yet.",
    "tune": "The library does not exist yet.",
    "serve": "The library does not exist yet.",
    "rllib": "The library does not exist yet.",
    "client": "Sessions cannot be attached to yet; each driver starts its own with shoal.init().",
    "java_function": "Only Python is supported.",
    "java_actor_class": "Only Python is supported.",
    "cpp_function": "Only Python is supported.",
}

# Users see the path that they type, in tracebacks, pickles and documentation.
for _public in (
    ActorClassID, ActorID, DynamicObjectRefGenerator, FunctionID, JobID, LoggingConfig, NodeID, ObjectRef, ObjectRefGenerator,
    PlacementGroupID, TaskID, UniqueID, WorkerID, available_resources, cancel, cluster_resources, get, get_actor, get_gpu_ids,
    get_runtime_context, init, is_initialized, kill, method, nodes, put, remote, shutdown, wait,
):  # fmt: skip
    _public.__module__ = __name__
del _public


if not TYPE_CHECKING:  # a checker shall complain about names that do not exist

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name in _NOT_YET:
            raise AttributeError(f"shoal has no {name!r}. {_NOT_YET[name]}", name=name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    return sorted(__all__)
