"""Messages about actors.

caller --CreateActor--> [create, place, commit] --Ack--> caller
                                +--StartActor--> node agent --ActorStarted--> [started] --ActorUpdate--> subscribers
node agent --ActorWorkerDied--> [restart: StartActor again, or dead] --ActorUpdate--> subscribers
"""

from __future__ import annotations

import msgspec

from shoal._base.ids import JOB_BYTES
from shoal._core.scheduling.strategies import freeze
from shoal._core.transport.connection import Connection
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import (
    ACTOR_DEAD,
    ACTOR_PENDING,
    Ack,
    ActorOutOfScope,
    ActorSpec,
    ActorStarted,
    ActorUpdate,
    ActorWorkerDied,
    CancelActorStart,
    Cause,
    CreateActor,
    GetActor,
    GetNamedActor,
    KillActor,
    LeaseInfeasible,
    ListNamedActors,
    Message,
    NamedActor,
    NamedActorList,
    StartActor,
    StopActor,
    SubscribeActor,
    UnsubscribeActor,
)

from .actor_records import NameTaken
from .core import Core, Handler, Session
from .instructions import AnnounceActor, CancelStart, ForgetPlacement, PlaceActor, StartOn, StopOn
from .job_service import JobService
from .placement import Chosen, Hopeless
from .rows import encode
from .scheduling_service import SchedulingService

#: Kinds of refusal that would come again wherever and whenever the actor is started.
PERMANENT_FAILURES = frozenset({"ActorUnschedulableError", "RuntimeEnvSetupError", "ValueError", "TypeError"})


class ActorService:
    def __init__(self, core: Core, jobs: JobService, scheduling: SchedulingService) -> None:
        self._core = core
        self._jobs = jobs
        self._scheduling = scheduling
        #: Actor -> connections that are told about it, in order of subscription. Entries end with the actor.
        self._subscribers: dict[bytes, dict[Connection, None]] = {}
        core.performs(PlaceActor, self._place)
        core.performs(ForgetPlacement, lambda forget: core.placement.remove(forget.actor_id))
        core.performs(StartOn, self._start)
        core.performs(CancelStart, self._cancel_start)
        core.performs(StopOn, self._stop)
        core.performs(AnnounceActor, self._announce)
        scheduling.on_placed = self._placed
        jobs.on_finished = self.job_finished
        #: Job -> actors that somebody asked about before they were created: the creation waits for their arguments, or is on its way.
        self._expected: dict[bytes, set[bytes]] = {}

    def handlers(self) -> dict[type[Message], Handler]:
        return {
            CreateActor: self._create, KillActor: self._kill, ActorOutOfScope: self._out_of_scope,
            SubscribeActor: self._subscribe, UnsubscribeActor: self._unsubscribe,
            GetActor: self._get, GetNamedActor: self._get_named, ListNamedActors: self._list_named,
            ActorWorkerDied: self._worker_died,
        }  # fmt: skip

    def disconnected(self, session: Session) -> None:
        for actor_id in list(session.actors):
            self._drop_subscriber(session, actor_id)

    # --- requests

    def _create(self, session: Session, message: CreateActor) -> None:
        spec, outbox = message.spec, self._core.outbox
        if not self._jobs.accepts(spec.job_id):
            text = f"Job {spec.job_id.hex()} has ended; it can create no more actors."
            outbox.fail(session.connection, message.rid, "RuntimeError", text)
            return
        try:
            instructions = self._core.actors.create(spec, message.failed)
        except NameTaken:
            text = f"The name {spec.name!r} is already taken in namespace {spec.namespace!r}. Use get_if_exists=True or another name."
            outbox.fail(session.connection, message.rid, "ActorAlreadyExistsError", text)
            return
        expected = self._expected.get(spec.job_id)
        if expected is not None:
            expected.discard(spec.actor_id)
        outbox.send(session.connection, Ack(message.rid))
        self._core.perform(instructions)
        why = self._core.placement.why_infeasible(freeze(spec.shape))
        if why and not self._core.nodes.missing():
            outbox.send(session.connection, LeaseInfeasible(0, why))

    def _kill(self, session: Session, message: KillActor) -> None:
        self._core.perform(self._core.actors.kill(message.actor_id, no_restart=message.no_restart))
        self._core.answer(session, message, Ack(message.rid))

    def _out_of_scope(self, session: Session, message: ActorOutOfScope) -> None:
        self._core.perform(self._core.actors.out_of_scope(message.actor_id))

    def _get(self, session: Session, message: GetActor) -> None:
        actor = self._core.actors.get(message.actor_id)
        if actor is None:
            self._core.outbox.fail(session.connection, message.rid, "ValueError", f"Actor {message.actor_id.hex()} is not known.")
        else:
            self._core.outbox.send(session.connection, NamedActor(message.rid, _for_handles(actor.spec)))

    def _get_named(self, session: Session, message: GetNamedActor) -> None:
        actor = self._core.actors.named(message.namespace, message.name)
        if actor is None:
            text = (
                f"There is no live actor named {message.name!r} in namespace {message.namespace!r}. "
                "It has died or was never created; list_named_actors(all_namespaces=True) shows what there is."
            )
            self._core.outbox.fail(session.connection, message.rid, "ValueError", text)
        else:
            self._core.outbox.send(session.connection, NamedActor(message.rid, _for_handles(actor.spec)))

    def _list_named(self, session: Session, message: ListNamedActors) -> None:
        names = self._core.actors.names(None if message.all_namespaces else message.namespace)
        self._core.outbox.send(session.connection, NamedActorList(message.rid, names))

    # --- subscriptions

    def _subscribe(self, session: Session, message: SubscribeActor) -> None:
        actor_id = message.actor_id
        actor = self._core.actors.get(actor_id)
        if actor is not None:
            update = actor.update()
        elif self._jobs.accepts(actor_id[-JOB_BYTES:]) and not self._core.actors.was_known(actor_id):
            update = ActorUpdate(actor_id, ACTOR_PENDING)
            self._expected.setdefault(actor_id[-JOB_BYTES:], set()).add(actor_id)
        else:
            update = _unknown(actor_id)
        if update.state != ACTOR_DEAD:
            self._subscribers.setdefault(actor_id, {})[session.connection] = None
            session.actors.add(actor_id)
        self._core.outbox.send(session.connection, update)

    def _unsubscribe(self, session: Session, message: UnsubscribeActor) -> None:
        self._drop_subscriber(session, message.actor_id)

    def _drop_subscriber(self, session: Session, actor_id: bytes) -> None:
        session.actors.discard(actor_id)
        subscribers = self._subscribers.get(actor_id)
        if subscribers is not None:
            subscribers.pop(session.connection, None)
            if not subscribers:
                del self._subscribers[actor_id]

    def job_finished(self, job_id: bytes) -> None:
        """Nobody will create any more what has not been created."""
        for actor_id in sorted(self._expected.pop(job_id, ())):
            if self._core.actors.get(actor_id) is None:
                self._tell_subscribers(_unknown(actor_id))

    def _announce(self, announcement: AnnounceActor) -> None:
        update = announcement.update
        self._tell_subscribers(update)
        cause = update.cause and msgspec.structs.replace(update.cause, error=b"", log_tail=[])
        self._core.publish("actors", update.actor_id, encode(msgspec.structs.replace(update, cause=cause)))

    def _tell_subscribers(self, update: ActorUpdate) -> None:
        over = update.state == ACTOR_DEAD
        subscribers = self._subscribers.pop(update.actor_id, {}) if over else self._subscribers.get(update.actor_id, {})
        for connection in subscribers:
            self._core.outbox.send(connection, update)
            if over and isinstance(connection.tag, Session):
                connection.tag.actors.discard(update.actor_id)

    # --- node agents

    def _place(self, request: PlaceActor) -> None:
        actor = self._core.actors.get(request.actor_id)
        if actor is not None:
            spec = actor.spec
            self._scheduling.add_actor(spec.actor_id, spec.shape, f"Actor {spec.class_name}", later=request.later)

    def _placed(self, result: Chosen | Hopeless) -> None:
        if isinstance(result, Chosen):
            self._core.perform(self._core.actors.place(result.actor_id, result.node_id, movable=result.movable))
        else:
            self._core.perform(self._core.actors.unschedulable(result.actor_id, result.message))

    def _start(self, start: StartOn) -> None:
        actor = self._core.actors.get(start.actor_id)
        if actor is None:
            return

        def answered(reply: ActorStarted | None, error: BaseException | None) -> None:
            self._start_answered(start, reply, error)

        if not self._core.tell_node(start.node_id, StartActor(0, actor.spec, start.incarnation, start.movable), answered):
            self._core.placement.settled(start.actor_id)
            self._core.perform(self._core.actors.start_failed(start.actor_id, start.incarnation, start.node_id))

    def _start_answered(self, start: StartOn, reply: ActorStarted | None, error: BaseException | None) -> None:
        core = self._core
        if reply is not None:
            core.placement.settled(start.actor_id)
            core.perform(core.actors.started(start.actor_id, start.incarnation, start.node_id, reply.address, reply.cause))
        elif isinstance(error, RequestFailed):
            core.placement.settled(start.actor_id)
            actor = core.actors.get(start.actor_id)
            if error.kind == "NoRoom" and actor is not None:
                core.placement.refused(start.node_id, actor.spec.shape)
            if error.kind in PERMANENT_FAILURES:
                core.perform(core.actors.unschedulable(start.actor_id, error.message))
            core.perform(core.actors.start_failed(start.actor_id, start.incarnation, start.node_id))
        # A lost connection settles nothing: the node comes back and is asked again, or is declared dead.
        self._scheduling.retry_actors()

    def _cancel_start(self, cancel: CancelStart) -> None:
        self._core.tell_node(cancel.node_id, CancelActorStart(cancel.actor_id))

    def _stop(self, stop: StopOn) -> None:
        self._core.tell_node(stop.node_id, StopActor(stop.actor_id, stop.graceful, stop.cause))

    def _worker_died(self, session: Session, message: ActorWorkerDied) -> None:
        actor = self._core.actors.get(message.actor_id)
        self._core.perform(self._core.actors.worker_died(message.actor_id, message.incarnation, message.cause))
        if actor is not None and actor.spec.shape.placement_group:
            self._core.placement.actor_left(actor.spec.shape.placement_group)
            self._scheduling.retry_group(actor.spec.shape.placement_group)


def _for_handles(spec: ActorSpec) -> ActorSpec:
    """Whoever wants a handle does not need the constructor's arguments."""
    return msgspec.structs.replace(spec, args=b"", deps=[])


def _unknown(actor_id: bytes) -> ActorUpdate:
    cause = Cause("unknown", "The control store does not know it: it died long ago, or was never created.")
    return ActorUpdate(actor_id, ACTOR_DEAD, cause=cause)
