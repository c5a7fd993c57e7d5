"""By which names and owners actors are found. Kept apart from ``actors.py`` so that the transitions stay readable."""

from __future__ import annotations

from collections import Counter

from shoal._core.wire.messages import ActorSpec


class ActorIndex:
    def __init__(self) -> None:
        #: (namespace, name) of all and only live actors that are not ending.
        self.names: dict[tuple[str, str], bytes] = {}
        #: All actors that are remembered, the dead ones too.
        self.by_job: dict[bytes, set[bytes]] = {}
        #: Owner's worker id -> live actors that are not detached.
        self.by_owner: dict[bytes, set[bytes]] = {}
        #: Placement group -> live actors.
        self.by_group: dict[bytes, set[bytes]] = {}
        #: Node -> actors that start or live there.
        self.by_node: dict[bytes, set[bytes]] = {}
        #: Job -> number of live detached actors.
        self.detached: Counter[bytes] = Counter()

    def add(self, spec: ActorSpec) -> None:
        actor_id = spec.actor_id
        if spec.name:
            self.names[spec.namespace, spec.name] = actor_id
        self.by_job.setdefault(spec.job_id, set()).add(actor_id)
        if spec.detached:
            self.detached[spec.job_id] += 1
        else:
            self.by_owner.setdefault(spec.owner.worker_id, set()).add(actor_id)
        if spec.shape.placement_group:
            self.by_group.setdefault(spec.shape.placement_group, set()).add(actor_id)

    def free_name(self, spec: ActorSpec) -> None:
        if spec.name and self.names.get((spec.namespace, spec.name)) == spec.actor_id:
            del self.names[spec.namespace, spec.name]

    def bury(self, spec: ActorSpec) -> None:
        """The actor is dead: only its job still knows it."""
        self.free_name(spec)
        if spec.detached:
            self.detached[spec.job_id] -= 1
            if not self.detached[spec.job_id]:
                del self.detached[spec.job_id]
        else:
            _discard(self.by_owner, spec.owner.worker_id, spec.actor_id)
        _discard(self.by_group, spec.shape.placement_group, spec.actor_id)

    def drop(self, spec: ActorSpec) -> None:
        """The dead actor is forgotten."""
        _discard(self.by_job, spec.job_id, spec.actor_id)

    def leave_node(self, actor_id: bytes, node_id: bytes) -> None:
        _discard(self.by_node, node_id, actor_id)

    def check(self, live: dict[bytes, ActorSpec]) -> None:
        assert all(actor_id in live for actor_id in self.names.values())
        for groups in (self.by_owner, self.by_group):
            assert all(members and members <= live.keys() for members in groups.values())
        assert all(self.by_job.values())
        assert all(self.by_node.values())
        assert sum(self.detached.values()) == sum(spec.detached for spec in live.values())
        assert all(spec.actor_id in self.by_job[spec.job_id] for spec in live.values())


def _discard(groups: dict[bytes, set[bytes]], key: bytes, member: bytes) -> None:
    members = groups.get(key)
    if members is not None:
        members.discard(member)
        if not members:
            del groups[key]
