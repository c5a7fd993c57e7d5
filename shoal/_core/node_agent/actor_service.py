"""The control store's requests about actors, performed on this node (the shell around ``hosted_actors.py``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shoal._core.node_agent.hosted_actors import HostedActor, HostedActors
from shoal._core.node_agent.lease_records import Lease
from shoal._core.node_agent.peers import Peer, Process
from shoal._core.node_agent.services import AgentServices
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling import strategies
from shoal._core.transport.errors import ConnectionLost, RequestFailed
from shoal._core.wire.messages import (
    ActorStarted,
    ActorWorkerDied,
    Address,
    BecomeActor,
    CancelActorStart,
    Cause,
    StartActor,
    StopActor,
)

#: Owner number of the leases of actors: the control store.
CONTROL = 0


class ActorService:
    """Starts, stops and reports the actors of this node."""

    def __init__(self, agent: AgentServices) -> None:
        self._agent = agent
        self._actors = HostedActors()
        self._last_number = 0

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {StartActor: self._on_start, StopActor: self._on_stop, CancelActorStart: self._on_cancel}

    def worker_found(self, lease: Lease, process: Process) -> None:
        """The actor's lease has its worker: make it the actor."""
        actor = self._actors.by_number(lease.request.rid)
        if actor is None:
            self._agent.kill_worker(process.address.worker_id, Cause("killed", "Its actor is not wanted any more."))
            return
        actor.lease_id = lease.lease_id
        self._actors.placed(actor, process.address.worker_id)
        process.name = actor.spec.class_name
        message = BecomeActor(0, actor.spec, actor.incarnation, lease.allocation.ids(), lease.shape.placement_group, lease.bundle_index)
        process.connection.request(message).add_done_callback(lambda reply: self._became(actor, reply))

    def worker_died(self, worker_id: bytes, cause: Cause) -> None:
        """A worker has ended; if it was an actor's, the control store hears why."""
        actor = self._actors.by_worker(worker_id)
        if actor is None:
            return
        self._actors.ended(actor, cause)
        if not actor.answered:
            self._answer(actor, None, cause)
        elif self._agent.control is not None:
            self._agent.control.send(ActorWorkerDied(actor.spec.actor_id, actor.incarnation, cause))

    def refused(self, request: LeaseRequest, kind: str, message: str) -> None:
        """The lease was refused: the control store places the actor anew, or gives it up."""
        actor = self._actors.by_number(request.rid)
        if actor is not None:
            self._fail(actor, kind, message)

    def start_failed(self, lease: Lease, cause: Cause) -> None:
        actor = self._actors.by_number(lease.request.rid)
        if actor is not None:
            self._actors.ended(actor, cause)
            self._answer(actor, None, cause)

    def cancel_job(self, job_id: bytes) -> None:
        """Give up the job's starts that have no worker yet; detached actors stay."""
        for actor in self._actors.of_job(job_id):
            if not actor.worker_id and not actor.spec.detached:
                self._cancel(actor)

    def detached_workers(self, job_id: bytes) -> set[bytes]:
        return {actor.worker_id for actor in self._actors.of_job(job_id) if actor.spec.detached and actor.worker_id}

    def owner_of(self, worker_id: bytes) -> bytes:
        """Return the worker id of the process that created the actor in this worker; b"" when it holds no actor."""
        actor = self._actors.by_worker(worker_id)
        return actor.spec.owner.worker_id if actor is not None else b""

    def incarnations(self) -> list[tuple[bytes, int]]:
        """Return (actor, incarnation) of all that start or live here."""
        return self._actors.incarnations()

    def check(self) -> None:
        self._actors.check()

    def _on_start(self, connection: Peer, message: StartActor) -> None:
        spec = message.spec
        there = self._actors.by_actor(spec.actor_id)
        if there is not None and there.incarnation == message.incarnation:  # asked again, as the answer was lost or is to come
            there.asker, there.rid = connection, message.rid
            if there.answered:
                self._answer(there, there.address, None)
            return
        cause = self._actors.how_ended(spec.actor_id, message.incarnation)
        if cause is not None:
            connection.send(ActorStarted(message.rid, None, cause))
            return
        self._agent.learn_job(spec.owner.worker_id, spec.job_id)
        self._last_number += 1
        self._actors.add(HostedActor(self._last_number, spec, message.incarnation, connection, message.rid))
        request = LeaseRequest(
            CONTROL, self._last_number, strategies.freeze(spec.shape), self._agent.loop.time(), False, spec.class_name, spec.actor_id,
            movable=message.movable,
        )  # fmt: skip
        self._agent.queue(request)

    def _on_stop(self, connection: Peer, message: StopActor) -> None:
        actor = self._actors.by_actor(message.actor_id)
        if actor is None:
            return
        actor.stop = message.cause
        if not actor.worker_id:
            self._cancel(actor)
        elif message.graceful:
            # It finishes the calls it has, however long they take; only a later StopActor without grace kills it.
            self._agent.stop_worker(actor.worker_id, message.cause)
        else:
            self._agent.kill_worker(actor.worker_id, message.cause)

    def _on_cancel(self, connection: Peer, message: CancelActorStart) -> None:
        actor = self._actors.by_actor(message.actor_id)
        if actor is None or actor.answered:
            return
        if actor.worker_id:
            self._agent.kill_worker(actor.worker_id, Cause("killed", "The actor was not wanted any more while it started."))
        else:
            self._cancel(actor)

    def _cancel(self, actor: HostedActor) -> None:
        """End a start that has no worker yet."""
        leases = self._agent.leases
        if not leases.cancel(CONTROL, actor.number):
            granted = [one for one in leases.leases.values() if one.owner == CONTROL and one.request.rid == actor.number]
            for lease in granted:
                self._agent.withdraw_lease(lease.lease_id, Cause("killed", "The actor was not wanted any more while it started."))
        self._fail(actor, "Cancelled", "The start was cancelled.")
        self._agent.reschedule()

    def _became(self, actor: HostedActor, reply: asyncio.Future[Any]) -> None:
        if reply.cancelled() or actor.answered:
            return
        error = reply.exception()
        if error is None:
            started: ActorStarted = reply.result()
            actor.address = started.address
            self._answer(actor, started.address, started.cause)
            if started.cause is not None:
                self._end_failed(actor, started.cause)
        elif isinstance(error, RequestFailed):
            cause = Cause("init_failed", f"{error.kind}: {error.message}", node_id=self._agent.node.node_id, error=error.detail)
            self._answer(actor, None, cause)
            self._end_failed(actor, cause)
        elif not isinstance(error, ConnectionLost):
            raise error
        # ConnectionLost: the worker is dying; its exit status makes the answer.

    def _end_failed(self, actor: HostedActor, cause: Cause) -> None:
        """Its start is answered with the failure: its death is no news to the control store."""
        self._actors.ended(actor, cause)
        self._agent.dismiss(actor.worker_id, cause)

    def _answer(self, actor: HostedActor, address: Address | None, cause: Cause | None) -> None:
        """On the connection that asked; if it is lost, the control store asks again."""
        actor.answered = True
        actor.asker.send(ActorStarted(actor.rid, address, cause))

    def _fail(self, actor: HostedActor, kind: str, message: str) -> None:
        self._actors.remove(actor)
        actor.answered = True
        actor.asker.fail(actor.rid, kind, message)
