"""Actors on this node: from StartActor to the death of their worker.

    control store         node agent                    worker
       StartActor ──▶  lease queued, granted
                       BecomeActor ──────────────▶  __init__
       ActorStarted ◀── ActorStarted ◀───────────
       StopActor ──▶   StopProcess (graceful) or SIGKILL
       ActorWorkerDied ◀── exit of the worker

A StartActor is answered by ActorStarted, or by Failed when the actor must be placed anew. It may come again, over another connection,
when the answer was lost: one incarnation is started once, and its answer is the same; also when it has ended meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from shoal._core.node_agent.peers import Peer
from shoal._core.wire.messages import ActorSpec, Address, Cause

#: Incarnations of which it is known how they ended.
ENDED_LIMIT = 10_000


class HostedActor(msgspec.Struct, eq=False):
    """One incarnation on this node."""

    #: Stands for it here, and for its lease.
    number: int
    spec: ActorSpec
    incarnation: int
    #: Who asked last for its start, and the number of that request there.
    asker: Peer
    rid: int
    #: b"" until it has a worker.
    worker_id: bytes = b""
    lease_id: int = 0
    #: It lives: the answer to StartActor.
    address: Address | None = None
    #: StartActor is answered.
    answered: bool = False
    #: Why it was told to end, if it was.
    stop: Cause | None = None


class HostedActors:
    """The actors of this node, by actor and by worker."""

    def __init__(self) -> None:
        self._by_number: dict[int, HostedActor] = {}
        self._by_actor: dict[bytes, HostedActor] = {}
        self._by_worker: dict[bytes, HostedActor] = {}
        #: (actor, incarnation) -> how it ended, oldest first.
        self._ended: OrderedDict[tuple[bytes, int], Cause] = OrderedDict()

    def add(self, actor: HostedActor) -> None:
        self._by_number[actor.number] = actor
        self._by_actor[actor.spec.actor_id] = actor

    def placed(self, actor: HostedActor, worker_id: bytes) -> None:
        actor.worker_id = worker_id
        self._by_worker[worker_id] = actor

    def ended(self, actor: HostedActor, cause: Cause) -> None:
        """Its worker is gone, or its constructor failed."""
        self.remove(actor)
        self._ended[actor.spec.actor_id, actor.incarnation] = cause
        while len(self._ended) > ENDED_LIMIT:
            self._ended.popitem(last=False)

    def how_ended(self, actor_id: bytes, incarnation: int) -> Cause | None:
        """Return how an incarnation of this node has ended; None if it has not, or never was here."""
        return self._ended.get((actor_id, incarnation))

    def remove(self, actor: HostedActor) -> None:
        self._by_number.pop(actor.number, None)
        if self._by_actor.get(actor.spec.actor_id) is actor:
            del self._by_actor[actor.spec.actor_id]
        if actor.worker_id:
            self._by_worker.pop(actor.worker_id, None)

    def by_number(self, number: int) -> HostedActor | None:
        return self._by_number.get(number)

    def by_actor(self, actor_id: bytes) -> HostedActor | None:
        return self._by_actor.get(actor_id)

    def by_worker(self, worker_id: bytes) -> HostedActor | None:
        return self._by_worker.get(worker_id)

    def of_job(self, job_id: bytes) -> list[HostedActor]:
        return [actor for actor in self._by_number.values() if actor.spec.job_id == job_id]

    def incarnations(self) -> list[tuple[bytes, int]]:
        """Return (actor, incarnation) of all that start or live here."""
        return [(actor.spec.actor_id, actor.incarnation) for actor in self._by_number.values()]

    def __len__(self) -> int:
        return len(self._by_number)

    def check(self) -> None:
        assert set(self._by_worker.values()) <= set(self._by_number.values())
        assert set(self._by_actor.values()) <= set(self._by_number.values())
