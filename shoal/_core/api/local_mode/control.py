"""What the control store would answer, in a session that has one process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from shoal._core.scheduling.resources import ResourceSet, fits, parse_resources, total_of
from shoal._core.wire import messages as m
from shoal.exceptions import TaskPlacementGroupRemoved

from .session import LocalSession


class LocalControl:
    """Names, placement groups, nodes and key-values."""

    def __init__(self, runtime: LocalSession, node: Mapping[str, Any]) -> None:
        self._runtime = runtime
        self._labels = dict(node["labels"])
        self._node_name: str = node["node_name"]
        self._total = _resources(node)
        self._groups: dict[bytes, m.PlacementGroupRecord] = {}
        #: Who waits for a group that does not fit: called with the error when it is removed.
        self._waiting: dict[bytes, list[Callable[[Exception | None], None]]] = {}
        self._values: dict[tuple[str, bytes], bytes] = {}
        self._answers: dict[type, Callable[[Any], Any]] = {
            m.GetNamedActor: self._get_named_actor,
            m.GetActor: self._get_actor,
            m.ListNamedActors: self._list_named_actors,
            m.ListNodes: self._list_nodes,
            m.CreatePlacementGroup: self._create_group,
            m.RemovePlacementGroup: self._remove_group,
            m.WaitPlacementGroup: self._wait_group,
            m.GetPlacementGroup: self._get_group,
            m.ListPlacementGroups: lambda message: m.PlacementGroupList(0, list(self._groups.values())),
            m.KvPut: self._kv_put,
            m.KvGet: lambda message: m.KvValue(0, self._values.get((message.namespace, message.key))),
            m.KvDelete: self._kv_delete,
            m.KvKeys: self._kv_keys,
        }

    def answer(self, message: Any) -> Any:
        """Return the reply, or raise what the message fails with."""
        return self._answers[type(message)](message)

    def when_acked(self, message: m.WaitPlacementGroup, done: Callable[[Exception | None], None]) -> None:
        """Call ``done`` when the group is there, or with the error when it never will be."""
        record = self._groups.get(message.placement_group_id)
        if record is not None and record.state == "PENDING":
            self._waiting.setdefault(message.placement_group_id, []).append(done)
            return
        done(None if record is not None and record.state == "CREATED" else TaskPlacementGroupRemoved())

    # --- actors -------------------------------------------------------------------------------------------------------------------

    def _get_named_actor(self, message: m.GetNamedActor) -> m.NamedActor:
        actor = self._runtime.names.get((message.namespace, message.name))
        if actor is None:
            raise ValueError(f"There is no live actor {message.name!r} in namespace {message.namespace!r}.")
        return m.NamedActor(0, actor.spec)

    def _get_actor(self, message: m.GetActor) -> m.NamedActor:
        actor = self._runtime.actors.get(message.actor_id)
        if actor is None:
            raise ValueError(f"There is no actor {message.actor_id.hex()}.")
        return m.NamedActor(0, actor.spec)

    def _list_named_actors(self, message: m.ListNamedActors) -> m.NamedActorList:
        names = sorted(self._runtime.names)
        return m.NamedActorList(0, [name for name in names if message.all_namespaces or name[0] == message.namespace])

    # --- nodes --------------------------------------------------------------------------------------------------------------------

    def _list_nodes(self, message: m.ListNodes) -> m.NodeList:
        runtime = self._runtime
        node = m.NodeRecord(
            node_id=runtime.node_id,
            address=runtime.address.address,
            hostname=socket.gethostname(),
            ip=runtime.node_ip,
            total=dict(self._total),
            available=dict(self._total),
            labels={"ray.io/node-id": runtime.node_id.hex(), **self._labels},
            name=self._node_name,
        )
        return m.NodeList(0, [node])

    # --- placement groups ---------------------------------------------------------------------------------------------------------

    def _create_group(self, message: m.CreatePlacementGroup) -> m.Ack:
        spec = message.spec
        spread_over_one = spec.strategy == "STRICT_SPREAD" and len(spec.bundles) > 1
        there = fits(total_of(spec.bundles), self._total) and not spread_over_one
        self._groups[spec.placement_group_id] = m.PlacementGroupRecord(
            spec=spec,
            state="CREATED" if there else "PENDING",
            nodes=[self._runtime.node_id if there else b""] * len(spec.bundles),
            created_at=time.time(),
        )
        return m.Ack(0)

    def _remove_group(self, message: m.RemovePlacementGroup) -> m.Ack:
        record = self._groups.get(message.placement_group_id)
        if record is not None:
            record.state = "REMOVED"
            for done in self._waiting.pop(message.placement_group_id, []):
                done(TaskPlacementGroupRemoved())
        return m.Ack(0)

    def _wait_group(self, message: m.WaitPlacementGroup) -> m.Ack:
        errors: list[Exception | None] = []
        self.when_acked(message, errors.append)
        if not errors:
            raise TimeoutError("The placement group does not fit; local mode has one node and will not get another.")
        if errors[0] is not None:
            raise errors[0]
        return m.Ack(0)

    def _get_group(self, message: m.GetPlacementGroup) -> m.PlacementGroupList:
        found = [record for record in self._groups.values() if self._is_wanted(record, message)]
        return m.PlacementGroupList(0, found)

    @staticmethod
    def _is_wanted(record: m.PlacementGroupRecord, message: m.GetPlacementGroup) -> bool:
        if message.placement_group_id:
            return record.spec.placement_group_id == message.placement_group_id
        same = record.spec.name == message.name and record.spec.namespace == message.namespace
        return same and record.state != "REMOVED"

    # --- key-values ---------------------------------------------------------------------------------------------------------------

    def _kv_put(self, message: m.KvPut) -> m.KvValue:
        key = (message.namespace, message.key)
        added = key not in self._values
        if added or message.overwrite:
            self._values[key] = message.value
        return m.KvValue(0, b"1" if added else b"")

    def _kv_delete(self, message: m.KvDelete) -> m.KvValue:
        return m.KvValue(0, b"" if self._values.pop((message.namespace, message.key), None) is None else b"1")

    def _kv_keys(self, message: m.KvKeys) -> m.KvKeyList:
        return m.KvKeyList(0, [key for space, key in self._values if space == message.namespace and key.startswith(message.prefix)])


def _resources(node: Mapping[str, Any]) -> ResourceSet:
    """Return what the one node claims to have."""
    cpus = node["num_cpus"]
    return parse_resources({
        "CPU": (os.cpu_count() or 1) if cpus is None else cpus,
        "GPU": node["num_gpus"] or 0,
        "memory": node["memory_bytes"] or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "object_store_memory": node["object_store_bytes"] or 0,
        f"node:{node['node_ip']}": 1,
        "node:__internal_head__": 1,
        **node["resources"],
    })  # fmt: skip
