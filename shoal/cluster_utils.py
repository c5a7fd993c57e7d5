"""Clusters of several nodes on this machine, for tests: real processes that this process starts, kills and ends.

Example:
    >>> from shoal.cluster_utils import Cluster
    >>> cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    >>> node = cluster.add_node(num_cpus=2, resources={"fast": 1})
    >>> cluster.connect()
    >>> len(shoal.nodes())
    2
    >>> shoal.shutdown()
    >>> cluster.shutdown()
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import time
from collections.abc import Mapping
from typing import Any

from shoal._base.settings import read_environment
from shoal._base.suggestions import did_you_mean
from shoal._core.api.init_arguments import (
    checked_amount,
    checked_bytes,
    checked_node_labels,
    checked_resources,
    checked_spill_place,
    checked_store_bytes,
    checked_text,
)
from shoal._core.api.lifecycle import init, is_initialized
from shoal._core.api.ray_context import RayContext
from shoal._core.process.asking import ask
from shoal._core.process.discovery import spell
from shoal._core.process.options import ControlOptions, HeadOptions
from shoal._core.process.start import HeadProcess, start_first_node, start_head
from shoal._core.transport.trust import Tokens
from shoal._core.wire.messages import DRAIN_PREEMPTION, Ack, DrainNode, ListNodes, NodeList, NodeRecord

__all__ = ["Cluster", "ClusterNode"]

#: Bytes of a node's object store unless it is told: tests start many nodes on one machine.
STORE_BYTES = 150 << 20
#: Seconds that a node gets to end in good order.
_GRACE_S = 5.0
#: Seconds that a node which is removed has for what runs there.
_DRAIN_S = 5.0
_STEP_S = 0.005

#: Arguments that Ray's tests give to nodes, and that ask for nothing that could differ here.
_WITHOUT_MEANING = frozenset({
    "dashboard_agent_listen_port", "dashboard_host", "dashboard_port", "enable_object_reconstruction", "include_dashboard",
    "include_log_monitor", "max_worker_port", "min_worker_port", "no_monitor", "node_manager_port", "object_manager_port",
    "plasma_directory", "ray_client_server_port", "redirect_output", "ulimit_n",
})  # fmt: skip
_ARGUMENTS = frozenset({
    "env_vars", "labels", "memory", "node_ip_address", "node_name", "num_cpus", "num_gpus", "object_spilling_directory",
    "object_store_memory", "resources", "temp_dir", "_system_config",
})  # fmt: skip


class ClusterNode:
    """One node of a ``Cluster``: a process of its own, with its workers and its object store."""

    def __init__(self, process: HeadProcess, *, head: bool) -> None:
        self._process = process
        #: Whether it is the node that was added first.
        self.head = head
        self.node_id: str = process.ready.node_id
        #: Where the other nodes reach it, HOST:PORT.
        self.address: str = spell(process.ready.endpoint)

    @property
    def unique_id(self) -> str:
        """The node's id, as ``node_id``."""
        return self.node_id

    @property
    def pid(self) -> int:
        """The pid of the node's process, the parent of its workers' template."""
        return self._process.pid

    @property
    def session_dir(self) -> str:
        """The directory of the node's sockets, logs and spilled objects."""
        return self._process.ready.session_dir

    def is_head(self) -> bool:
        return self.head

    def is_alive(self) -> bool:
        """Tell whether its process runs."""
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL the node's process; its workers end with it, by themselves. Does not wait."""
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)

    def __repr__(self) -> str:
        return f"ClusterNode({self.node_id[:12]}, address={self.address!r}, head={self.head}, alive={self.is_alive()})"


class Cluster:
    """Starts nodes on this machine and joins them to one cluster, which ends with this process, however that ends.

    Args:
        initialize_head: start the control store and a first node at once.
        connect: join the cluster as a driver, too, as ``connect()`` does.
        head_node_args: arguments of ``add_node`` for the first node.
        shutdown_at_exit: end the cluster in good order when the interpreter exits.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        self.head_node: ClusterNode | None = None
        self.worker_nodes: list[ClusterNode] = []
        self._control_store: HeadProcess | None = None
        self._token = secrets.token_bytes(32)
        self._settings = read_environment()
        if not initialize_head and connect:
            raise RuntimeError("connect=True needs a cluster to connect to: give initialize_head=True as well.")
        if not initialize_head and head_node_args:
            raise ValueError("head_node_args are of the first node, which initialize_head=True starts.")
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        if initialize_head:
            self.add_node(**head_node_args or {})
            if connect:
                self.connect()

    # --- addresses -------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """HOST:PORT of the control store, for ``shoal.init(address=...)``. RuntimeError before the first node."""
        return spell(self._control_address)

    @property
    def gcs_address(self) -> str:
        """The same as ``address``."""
        return self.address

    @property
    def _control_address(self) -> str:
        if self._control_store is None:
            raise RuntimeError("The cluster has no node yet, and so no address. Call add_node() first, or give initialize_head=True.")
        return self._control_store.ready.control_address

    def connect(self, namespace: str | None = None) -> RayContext:
        """Join the cluster as a driver, on its first node; return the context of ``shoal.init``."""
        return init(address=self.address, namespace=namespace)

    # --- nodes -----------------------------------------------------------------------------------------------

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Start a node and return it when the control store lists it. The first one is the head, and starts the control store before.

        Args:
            wait: of no meaning: it always does.
            node_args: num_cpus (default 1), num_gpus (0), resources, labels, memory, object_store_memory (150 MiB), node_name,
                node_ip_address, object_spilling_directory, temp_dir, env_vars (added to the environment of the node and its workers).

        Raises:
            TypeError: an argument that nodes do not have, or of the wrong type.
            ValueError: a bad value.
            shoal._core.process.start.HeadStartError: a RuntimeError; the node did not come up, and why.
        """
        options, env_vars = self._options(node_args)
        options.is_head = self.head_node is None
        if self._control_store is None:
            control = ControlOptions(listen=f"tcp:{options.node_ip}:0", temp_dir=options.temp_dir, settings=self._settings)
            self._control_store, process = start_first_node(control, options, self._token, env_vars=env_vars)
        else:
            options.control_address = self._control_address
            if options.is_head:
                options.control_session_dir = self._control_store.ready.session_dir
            process = start_head(options, self._token, env_vars=env_vars)
        node = ClusterNode(process, head=options.is_head)
        if node.head:
            self.head_node = node
        else:
            self.worker_nodes.append(node)
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node; its tasks, actors and objects go on elsewhere as far as they can. Blocks until the control store counts it dead.

        Args:
            allow_graceful: let it leave in good order, as by ``shoal drain-node``, within 5 s (the only node has nobody to leave its work
                to, and ends at once); otherwise it is killed, as when its machine is lost.

        Raises:
            ValueError: this process is a driver on that node, or the node is none of this cluster.
        """
        if node is not self.head_node and node not in self.worker_nodes:
            raise ValueError(f"{node!r} is not a node of this cluster, or was removed already.")
        if is_initialized() and _own_node_id() == node.node_id:
            raise ValueError(
                f"This process is a driver on {node!r}: without it, the driver has no way to the cluster. Call shoal.shutdown() first, or "
                "remove another node."
            )
        if allow_graceful and node.is_alive():
            self._drain(node)
        self._end(node, graceful=allow_graceful)
        if self._control_store is not None and self._control_store.is_alive():
            self._wait_until(lambda alive: node.node_id not in alive, 30.0, f"the death of the node {node.node_id[:12]} to be known")

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Block until the control store lists all nodes of this cluster that run, and no others. TimeoutError after ``timeout`` seconds."""
        self._wait_until(
            lambda alive: alive == {node.node_id for node in self.list_all_nodes() if node.is_alive()}, timeout, "all nodes to be listed"
        )

    def list_all_nodes(self) -> list[ClusterNode]:
        """Return the nodes that were added and not removed, the head first."""
        return [*([self.head_node] if self.head_node is not None else []), *self.worker_nodes]

    def remaining_processes_alive(self) -> bool:
        """Tell whether the control store and all nodes run."""
        control = self._control_store
        return control is not None and control.is_alive() and all(node.is_alive() for node in self.list_all_nodes())

    def shutdown(self) -> None:
        """End all nodes and the control store. Idempotent. A driver of the cluster calls ``shoal.shutdown()`` before."""
        atexit.unregister(self.shutdown)
        for node in reversed(self.list_all_nodes()):
            self._end(node, graceful=True)
        control, self._control_store = self._control_store, None
        if control is not None:
            control.stop()

    # --- inside ----------------------------------------------------------------------------------------------

    def _end(self, node: ClusterNode, *, graceful: bool) -> None:
        if not graceful:
            node.kill()
        node._process.stop(_GRACE_S)
        if node is self.head_node:
            self.head_node = None
        else:
            self.worker_nodes.remove(node)

    def _drain(self, node: ClusterNode) -> None:
        """Have the node leave in good order, and wait until it has."""
        if not any(record.takes_work for record in self._list_records() if record.node_id.hex() != node.node_id):
            return
        drain = DrainNode(0, bytes.fromhex(node.node_id), DRAIN_PREEMPTION, "it is removed from the cluster", _DRAIN_S)
        ask(self._control_address, Tokens(self._token), drain, Ack)
        deadline = time.monotonic() + _DRAIN_S + _GRACE_S
        while node.is_alive() and time.monotonic() < deadline:
            time.sleep(_STEP_S)

    def _wait_until(self, condition: Any, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            alive = {record.node_id.hex() for record in self._list_records() if record.alive}
            if condition(alive):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"Waited {timeout_s:g} s for {what}. The control store lists {len(alive)} living nodes: {sorted(alive)}; this cluster "
                    f"has {self.list_all_nodes()}."
                )
            time.sleep(_STEP_S)

    def _list_records(self) -> list[NodeRecord]:
        return ask(self._control_address, Tokens(self._token), ListNodes(0, fresh=False), NodeList).nodes

    def _options(self, given: Mapping[str, Any]) -> tuple[HeadOptions, dict[str, str]]:
        unknown = sorted(given.keys() - _ARGUMENTS - _WITHOUT_MEANING)
        if unknown:
            raise TypeError(f"Nodes have no argument {unknown[0]!r}.{did_you_mean(unknown[0], sorted(_ARGUMENTS))}")
        env_vars = given.get("env_vars") or {}
        if not isinstance(env_vars, Mapping) or not all(isinstance(text, str) for pair in env_vars.items() for text in pair):
            raise TypeError(f"env_vars must be a dict of str -> str, got {env_vars!r}.")
        ip = checked_text("node_ip_address", given.get("node_ip_address")) or "127.0.0.1"
        options = HeadOptions(
            num_cpus=checked_amount("num_cpus", given.get("num_cpus", 1)),
            num_gpus=checked_amount("num_gpus", given.get("num_gpus", 0)),
            resources=checked_resources(given.get("resources") or {}),
            labels=checked_node_labels(given.get("labels")),
            memory_bytes=checked_bytes("memory", given.get("memory")),
            object_store_bytes=checked_store_bytes(given.get("object_store_memory", STORE_BYTES)),
            node_name=checked_text("node_name", given.get("node_name")),
            node_ip=ip,
            temp_dir=checked_text("temp_dir", given.get("temp_dir")),
            spill_dir=checked_spill_place(given.get("object_spilling_directory"), given.get("_system_config")),
            listen=f"tcp:[{ip}]:0" if ":" in ip else f"tcp:{ip}:0",
            settings=self._settings,
        )
        return options, dict(env_vars)


def _own_node_id() -> str:
    from shoal._base import runtime

    return runtime.current().node_id.hex()
