"""Actors on this node: from StartActor to the death of their worker.

    control store         node agent                    worker
       StartActor ──▶  lease queued, granted
                       BecomeActor ──────────────▶  __init__
       ActorStarted ◀── ActorStarted ◀───────────
       StopActor ──▶   StopProcess (graceful) or SIGKILL
       ActorWorkerDied ◀── exit of the worker

An actor's StartActor is answered exactly once: by ActorStarted, or by Failed when it must be placed anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal._core.wire.messages import ActorSpec, Cause


@dataclass(slots=True, eq=False)
class HostedActor:
    """One incarnation on this node."""

    rid: int
    spec: ActorSpec
    incarnation: int
    #: b"" until it has a worker.
    worker_id: bytes = b""
    lease_id: int = 0
    #: StartActor is answered.
    answered: bool = False
    #: Why it was told to end, if it was.
    stop: Cause | None = None


class HostedActors:
    """The actors of this node, by actor and by worker."""

    def __init__(self) -> None:
        self._by_rid: dict[int, HostedActor] = {}
        self._by_actor: dict[bytes, HostedActor] = {}
        self._by_worker: dict[bytes, HostedActor] = {}

    def add(self, actor: HostedActor) -> None:
        self._by_rid[actor.rid] = actor
        self._by_actor[actor.spec.actor_id] = actor

    def placed(self, actor: HostedActor, worker_id: bytes) -> None:
        actor.worker_id = worker_id
        self._by_worker[worker_id] = actor

    def remove(self, actor: HostedActor) -> None:
        self._by_rid.pop(actor.rid, None)
        if self._by_actor.get(actor.spec.actor_id) is actor:
            del self._by_actor[actor.spec.actor_id]
        if actor.worker_id:
            self._by_worker.pop(actor.worker_id, None)

    def by_rid(self, rid: int) -> HostedActor | None:
        return self._by_rid.get(rid)

    def by_actor(self, actor_id: bytes) -> HostedActor | None:
        return self._by_actor.get(actor_id)

    def by_worker(self, worker_id: bytes) -> HostedActor | None:
        return self._by_worker.get(worker_id)

    def of_job(self, job_id: bytes) -> list[HostedActor]:
        return [actor for actor in self._by_rid.values() if actor.spec.job_id == job_id]

    def __len__(self) -> int:
        return len(self._by_rid)

    def check(self) -> None:
        assert set(self._by_worker.values()) <= set(self._by_rid.values())
        assert set(self._by_actor.values()) <= set(self._by_rid.values())
