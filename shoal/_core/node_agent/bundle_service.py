"""Placement groups between this node and the control store: its requests performed here, and where bundles lie on other nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal._core.node_agent.leases import refusal_of
from shoal._core.node_agent.peers import Peer
from shoal._core.node_agent.services import AgentServices
from shoal._core.scheduling.resources import format_amount, lacking, total_of
from shoal._core.wire.messages import Ack, Cause, ClusterChanged, CommitBundles, GroupChanged, PrepareBundles, ReleaseBundles, WatchGroup


class BundleService:
    """Prepare, commit, release. A release is answered when the last worker inside has ended."""

    def __init__(self, agent: AgentServices) -> None:
        self._agent = agent
        #: Groups whose workers are being killed: the releases to answer.
        self._releasing: dict[bytes, list[tuple[Peer, int]]] = {}
        #: The group that was told last that its room has come free.
        self._announced = b""

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {
            PrepareBundles: self._on_prepare, CommitBundles: self._on_commit, ReleaseBundles: self._on_release,
            GroupChanged: self._on_changed,
        }  # fmt: skip

    def watch(self, group: bytes) -> None:
        """Have the control store tell where the group's bundles lie."""
        if self._agent.control is not None:
            self._agent.control.send(WatchGroup(group))

    def settle(self) -> None:
        """After each change: finish releases, and tell the control store when a group that waits would fit."""
        leases = self._agent.leases
        for group in list(self._releasing):
            if not leases.leases_of_group(group):
                leases.drop_group(group)
                for connection, rid in self._releasing.pop(group):
                    connection.send(Ack(rid))
                self._agent.reschedule()
        group = leases.group_waits()
        if group and group != self._announced and self._agent.control is not None:
            self._announced = group
            self._agent.control.send(ClusterChanged(self._agent.node.node_id))

    def _on_prepare(self, connection: Peer, message: PrepareBundles) -> None:
        leases = self._agent.leases
        group = message.placement_group_id
        if group not in self._releasing and leases.prepare(group, message.bundles, self._agent.loop.time()):
            connection.send(Ack(message.rid))
        else:
            missing = lacking(total_of(message.bundles.values()), leases.available())
            what = ", ".join(f"{format_amount(amount)} {name}" for name, amount in missing.items()) or "room beside what is set aside"
            self._agent.reports.wanted = True
            connection.fail(message.rid, "RuntimeError", f"The bundles do not fit on this node now; it lacks {what}.")
        self._announced = b""
        self._agent.reschedule()

    def _on_commit(self, connection: Peer, message: CommitBundles) -> None:
        if self._agent.leases.commit(message.placement_group_id):
            connection.send(Ack(message.rid))
            self._agent.reschedule()
        else:
            connection.fail(message.rid, "RuntimeError", "The bundles were not prepared on this node.")

    def _on_release(self, connection: Peer, message: ReleaseBundles) -> None:
        group = message.placement_group_id
        refused, inside = self._agent.leases.release_group(group, removed=message.removed)
        self._releasing.setdefault(group, []).append((connection, message.rid))
        why = "Its placement group was removed." if message.removed else "Its bundle was given back, and is placed anew."
        for lease in inside:
            if self._agent.withdraw_lease(lease.lease_id, Cause("placement_group_removed", why)):
                continue
            # Its worker was still starting: its owner waits for the answer.
            refused += [refusal_of(lease.request)] if message.removed else self._agent.leases.add(lease.request)
        self._agent.perform_leases(refused)
        self.settle()
        self._agent.reschedule()

    def _on_changed(self, connection: Peer, message: GroupChanged) -> None:
        self._agent.perform_leases(self._agent.leases.group_changed(message, self._agent.loop.time()))
        self._agent.reschedule()
