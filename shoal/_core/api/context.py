"""Where am I, and what is there: the runtime context, the nodes and their resources."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

from shoal._base import runtime as holder
from shoal._base.ids import ActorID, JobID, NodeID, PlacementGroupID, TaskID
from shoal._base.runtime import Runtime, TaskContext
from shoal._core.scheduling.resources import to_floats, total_of
from shoal._core.wire.messages import DRAIN_IDLE, GetActor, ListNodes, NodeRecord
from shoal.exceptions import RaySystemError

from .actor_handle import ActorHandle, handle_from_spec
from .lifecycle import ensure_runtime

#: Resources whose units have an index, in the order in which ``get_accelerator_ids`` lists them.
ACCELERATORS = ("GPU", "TPU", "NPU", "HPU", "neuron_cores", "RBLN", "FURIOSA")


class RuntimeContext:
    """What the code that runs now can learn about itself; ids are hexadecimal strings."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def get_job_id(self) -> str:
        """Return the id of the job that this process works for."""
        return self._runtime.job_id.hex()

    def get_node_id(self) -> str:
        """Return the id of the node that this process runs on."""
        return self._runtime.node_id.hex()

    def get_worker_id(self) -> str:
        """Return the id of this process."""
        return self._runtime.worker_id.hex()

    def get_task_id(self) -> str | None:
        """Return the id of the running task or actor call; None in a driver."""
        return _hex(self._task, "task_id")

    def get_task_name(self) -> str | None:
        """Return the name of the running task: the option ``name``, else "function" or "Class.method"; None in a driver."""
        return self._task.name if self._task is not None else None

    def get_task_function_name(self) -> str | None:
        """Return "module.function" or "module.Class.method" of the running task; None in a driver."""
        return self._task.function_name if self._task is not None else None

    def get_actor_id(self) -> str | None:
        """Return the id of this actor; None outside of actors."""
        return _hex(self._task, "actor_id")

    def get_actor_name(self) -> str | None:
        """Return the name of this actor, "" if it has none; None outside of actors."""
        return self._task.actor_name if self._task is not None and self._task.actor_id else None

    def get_placement_group_id(self) -> str | None:
        """Return the id of the placement group that the running task or actor is in, else None."""
        return _hex(self._task, "placement_group")

    def get_assigned_resources(self) -> dict[str, float]:
        """Return what the running task or actor holds; AssertionError in a driver."""
        return dict(self._in_worker("get_assigned_resources").resources)

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Return the devices of the running task by kind of accelerator."""
        assigned = self._task.resource_ids if self._task is not None else {}
        return {kind: [str(index) for index in assigned.get(kind, ())] for kind in ACCELERATORS}

    def get_node_labels(self) -> dict[str, str]:
        """Return the labels of the node that this process runs on."""
        return next((dict(node.labels) for node in _list_nodes(self._runtime, fresh=False) if node.node_id == self._runtime.node_id), {})

    def get_session_name(self) -> str:
        """Return the name of the session, which is that of its directory."""
        return os.path.basename(self._runtime.session_dir)

    def get_temp_dir(self) -> str:
        """Return the directory that holds the directories of sessions."""
        return os.path.dirname(self._runtime.session_dir)

    @property
    def namespace(self) -> str:
        """The namespace of this job's named actors."""
        return self._runtime.namespace

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The environment of the running task, or of the job in a driver."""
        return dict(json.loads(self.get_runtime_env_string()))

    def get_runtime_env_string(self) -> str:
        """Return ``runtime_env`` as JSON."""
        own = self._task.runtime_env if self._task is not None else ""
        return own or self._runtime.job_config.runtime_env or "{}"

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A handle to the actor that runs this code; does not keep it alive. RuntimeError outside of actors."""
        if self._task is None or not self._task.actor_id:
            raise RuntimeError("current_actor is only available inside an actor.")
        return handle_from_spec(self._runtime.request_control_store(GetActor(0, self._task.actor_id)).spec, keep_alive=False)

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """This actor was restarted at least once; AssertionError in a driver."""
        return self._in_worker("was_current_actor_reconstructed").reconstructed

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """What the running task starts goes into its placement group too."""
        return self._task is not None and self._task.capture_child_tasks

    @property
    def gcs_address(self) -> str:
        """The address of the control store."""
        return self._runtime.control_address

    def is_canceled(self) -> bool:
        """The caller has cancelled the running call; RuntimeError in a driver and in async actors, which get asyncio.CancelledError."""
        if self._task is None:
            raise RuntimeError("is_canceled() is only available inside a task or an actor call.")
        if _on_an_event_loop():
            raise RuntimeError("is_canceled() is not available in async actors: a cancelled call gets asyncio.CancelledError there.")
        return self._runtime.is_canceled()

    def get_resource_ids(self) -> dict[str, list[str]]:
        """Deprecated: use ``get_accelerator_ids()``."""
        _deprecated("get_resource_ids()", "get_accelerator_ids()")
        return self.get_accelerator_ids()

    @property
    def current_placement_group_id(self) -> PlacementGroupID:
        """Deprecated: use ``get_placement_group_id()``."""
        _deprecated("current_placement_group_id", "get_placement_group_id()")
        group = self._task.placement_group if self._task is not None else b""
        return PlacementGroupID(group) if group else PlacementGroupID.nil()

    def get(self) -> dict[str, Any]:
        """Return the ids that are set. Deprecated: use the single methods."""
        _deprecated("get()", "get_job_id(), get_node_id()...")
        task = self._task
        found: dict[str, Any] = {
            "job_id": JobID(self._runtime.job_id),
            "node_id": NodeID(self._runtime.node_id),
            "namespace": self.namespace,
        }
        if task is not None:
            found["task_id"] = TaskID(task.task_id)
            if task.actor_id:
                found["actor_id"] = ActorID(task.actor_id)
        return found

    @property
    def job_id(self) -> JobID:
        """Deprecated: use ``get_job_id()``."""
        _deprecated("job_id", "get_job_id()")
        return JobID(self._runtime.job_id)

    @property
    def node_id(self) -> NodeID:
        """Deprecated: use ``get_node_id()``."""
        _deprecated("node_id", "get_node_id()")
        return NodeID(self._runtime.node_id)

    @property
    def task_id(self) -> TaskID:
        """Deprecated: use ``get_task_id()``."""
        _deprecated("task_id", "get_task_id()")
        return TaskID(self._task.task_id) if self._task is not None else TaskID.nil()

    @property
    def actor_id(self) -> ActorID:
        """Deprecated: use ``get_actor_id()``."""
        _deprecated("actor_id", "get_actor_id()")
        return ActorID(self._task.actor_id) if self._task is not None and self._task.actor_id else ActorID.nil()

    @property
    def _task(self) -> TaskContext | None:
        return self._runtime.task_context()

    def _in_worker(self, name: str) -> TaskContext:
        task = self._task
        if task is None:
            raise AssertionError(f"{name} is only available inside a task or an actor.")
        return task


def _on_an_event_loop() -> bool:
    """The calling code runs on an asyncio loop, as all methods of async actors do."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # it says so when there is none
        return False
    return True


def get_runtime_context() -> RuntimeContext:
    """Return the context of the code that runs now."""
    return RuntimeContext(ensure_runtime())


def get_gpu_ids() -> list[int] | list[str]:
    """Return the GPUs assigned to the running task or actor, as they stand in CUDA_VISIBLE_DEVICES; [] in a driver."""
    task = ensure_runtime().task_context()
    indices = list(task.resource_ids.get("GPU", ())) if task is not None else []
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if indices and len(visible) == len(indices):
        return [int(part) for part in visible] if all(part.isdigit() for part in visible) else visible
    return indices


def nodes() -> list[dict[str, Any]]:
    """Return one dict per node of the cluster, dead ones included. RaySystemError before ``init``."""
    return [_describe(node) for node in _list_nodes(_running("nodes"), fresh=False)]


def cluster_resources() -> dict[str, float]:
    """Return the resources of all live nodes together. RaySystemError before ``init``."""
    return to_floats(total_of(node.total for node in _list_nodes(_running("cluster_resources"), fresh=False) if node.alive))


def available_resources() -> dict[str, float]:
    """Return what of ``cluster_resources`` is free now; resources of which nothing is free are left out. RaySystemError before ``init``.

    Blocks until every node has answered; one that does not within 2 s counts with what it said last.
    """
    return to_floats(total_of(node.available for node in _list_nodes(_running("available_resources"), fresh=True) if node.alive))


def _running(name: str) -> Runtime:
    runtime = holder._current
    if runtime is None:
        raise RaySystemError(f"shoal.{name}() needs a running session. Call shoal.init() first.")
    return runtime


def _list_nodes(runtime: Runtime, *, fresh: bool) -> list[NodeRecord]:
    """``fresh``: what is free on each node is asked there; needed for nothing else."""
    found: list[NodeRecord] = runtime.request_control_store(ListNodes(0, fresh)).nodes
    return found


def _describe(node: NodeRecord) -> dict[str, Any]:
    port = int(node.endpoint.rpartition(":")[2] or 0)  # one for everything; a session of one node has none
    return {
        "NodeID": node.node_id.hex(),
        "Alive": node.alive,
        "NodeManagerAddress": node.ip,
        "NodeManagerHostname": node.hostname,
        "NodeManagerPort": port,
        "ObjectManagerPort": port,
        "ObjectStoreSocketName": node.address,
        "RayletSocketName": node.address,
        "MetricsExportPort": 0,
        "MetricsAgentPort": 0,
        "DashboardAgentListenPort": 0,
        "RuntimeEnvAgentPort": 0,
        "NodeName": node.name or node.ip,
        "Draining": node.alive and bool(node.draining),
        "DeathReason": _death_reason(node),
        "DeathReasonMessage": node.death_reason,
        "alive": node.alive,
        "Resources": to_floats(node.total) if node.alive else {},
        "Labels": dict(node.labels),
    }


def _death_reason(node: NodeRecord) -> int:
    """Return Ray's number: 0 it lives, 1 it ended, 3 it was drained as its machine was taken away, 4 as it was idle."""
    if node.alive or not node.draining:
        return int(not node.alive)
    return 4 if node.draining.startswith(DRAIN_IDLE) else 3


def _hex(task: TaskContext | None, field: str) -> str | None:
    value: bytes = getattr(task, field) if task is not None else b""
    return value.hex() or None


def _deprecated(name: str, instead: str) -> None:
    warnings.warn(f"RuntimeContext.{name} is deprecated. Use {instead}.", DeprecationWarning, stacklevel=3)
