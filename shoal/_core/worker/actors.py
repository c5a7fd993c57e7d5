"""Actors as a caller's I/O thread sees them: creation, subscription, calls, handles.

Decides nothing about order and retries (``actor_calls.py``). The control store places and restarts actors; calls go straight to
the actor's process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal import exceptions
from shoal._base.ids import ACTOR_BYTES, OBJECT_BYTES
from shoal._core.serialization import actor_died, describe_cause, serialize_dependent_error, serialize_system_error
from shoal._core.transport import ConnectionLost, RequestFailed
from shoal._core.wire.messages import (
    ACTOR_ALIVE,
    ACTOR_DEAD,
    FAILED,
    INLINE,
    ActorOutOfScope,
    ActorSpec,
    ActorUpdate,
    Address,
    AskHandBack,
    BeginLease,
    CancelTask,
    Cause,
    CreateActor,
    HandBack,
    SubscribeActor,
    TaskDone,
    UnsubscribeActor,
)

from .actor_calls import ActorCalls, CallLimit
from .cancellation import cancelled_error
from .entries import Entry, dep_of
from .express import REFUSED, SENT, UNUSED
from .objects import TAKE_OVER_S
from .peers import Peer
from .records import FINISHED, PUSHED, TaskRecord

if TYPE_CHECKING:
    from .core import Core

#: Seconds until an actor is created again for which the control store's disk had no room.
NO_ROOM_S = 0.5
#: Seconds between attempts to reach an actor whose connection is lost and that the control store believes alive.
RECONNECT_S = 0.2


class ActorToken(Entry):
    """Stands for the actor itself in the ownership table: when nobody holds it, the actor may end."""

    __slots__ = ("spec",)

    def __init__(self, object_id: bytes, spec: ActorSpec) -> None:
        super().__init__(object_id, 0)
        self.kind = INLINE
        self.data = b""
        self.spec = spec


def token_id(actor_id: bytes) -> bytes:
    """Return the object id under which handles of the actor are counted."""
    return actor_id + _TOKEN_SUFFIX


_TOKEN_SUFFIX = b"\xff" * (OBJECT_BYTES - ACTOR_BYTES)


class Actors:
    """The shell around actor calls. I/O thread only."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.calls: dict[bytes, ActorCalls] = {}
        self._names: dict[bytes, str] = {}
        self._dirty: dict[bytes, ActorCalls] = {}
        #: Actors created here -> entries of their constructor arguments, pinned for restarts until the actor is dead.
        self._creation_args: dict[bytes, list[Entry]] = {}
        self._out_of_order: set[bytes] = set()

    # --- creation ------------------------------------------------------------------------------------------

    def create(self, submitted: tuple[ActorSpec, list[bytes], list[bytes], Any]) -> None:
        """``(spec, ids of top-level references, ids of nested ones, future or None)``: register once the arguments are there."""
        spec, dep_ids, held_ids, future = submitted
        own = self.core.objects.own
        entries = [own.lookup(object_id, None) for object_id in (*dep_ids, *held_ids)]
        for entry in entries:
            entry.count += 1
        self._creation_args[spec.actor_id] = entries
        self._names[spec.actor_id] = spec.class_name
        self.subscribe(spec.actor_id, out_of_order=spec.out_of_order, now=False)
        if not spec.detached:
            token = own.entries.get(token_id(spec.actor_id))
            if token is None:
                own.entries[token_id(spec.actor_id)] = token = ActorToken(token_id(spec.actor_id), spec)
        deps = entries[: len(dep_ids)]
        waiting = [entry for entry in deps if entry.kind < 0]
        left = [len(waiting)]

        def dep_done(_entry: Entry, _arg: Any) -> None:
            left[0] -= 1
            if not left[0]:
                self._register(spec, deps, future)

        if not waiting:
            self._register(spec, deps, future)
        for entry in waiting:
            self.core.objects.when_done(entry, dep_done, None)

    def _register(self, spec: ActorSpec, deps: list[Entry], future: Any) -> None:
        for entry in deps:
            if entry.kind == FAILED:
                entry.seen = True
                cause = Cause("init_failed", "An argument of its constructor could not be computed.", error=entry.data)
                self._announce(CreateActor(0, spec, cause), future)
                self._on_update(ActorUpdate(spec.actor_id, ACTOR_DEAD, cause=cause))
                return
        spec.deps = [dep_of(entry, self.core.me) for entry in deps]
        self._announce(CreateActor(0, spec), future)
        self.core.control_store.send(SubscribeActor(spec.actor_id))

    def _announce(self, message: CreateActor, future: Any) -> None:
        """Ask the control store; ``future`` gets its answer."""
        spec = message.spec
        request = self.core.control_store.request(message)

        def answered(done: Any) -> None:
            error = None if done.cancelled() else done.exception()
            if isinstance(error, ConnectionLost):
                error = self.core.head_ended()
            if isinstance(error, RequestFailed) and error.kind == "OutOfDiskError" and future is None and not self.core.closing:
                # Nobody waits for the answer, but others may have its handle, and would wait for it for ever: it is created later.
                self.core.loop.call_later(NO_ROOM_S, self._announce, message, None)
                return
            if future is not None:
                future.set_exception(error) if error is not None else future.set_result(None)
            if error is not None:
                self._on_update(ActorUpdate(spec.actor_id, ACTOR_DEAD, cause=Cause("creation_failed", str(error))))
                self.core.flush()

        request.add_done_callback(answered)

    def subscribe(self, actor_id: bytes, *, out_of_order: bool = False, now: bool = True) -> ActorCalls:
        """Return the calls of the actor, asking the control store for its state if it is new."""
        calls = self.calls.get(actor_id)
        if calls is None:
            out_of_order = out_of_order or actor_id in self._out_of_order
            calls = self.calls[actor_id] = ActorCalls(actor_id, self, out_of_order=out_of_order)
            if now:
                self.core.control_store.send(SubscribeActor(actor_id))
        return calls

    def runs_out_of_order(self, actor_id: bytes) -> None:
        """The actor is async or threaded: a call need not wait for the arguments of earlier ones."""
        self._out_of_order.add(actor_id)
        if actor_id in self.calls:
            self.calls[actor_id].out_of_order = True

    def token_released(self, token: ActorToken) -> None:
        """No handle is left anywhere."""
        actor_id = token.spec.actor_id
        if not self.core.closing:
            self.core.control_store.send(ActorOutOfScope(actor_id))
        calls = self.calls.get(actor_id)
        if calls is not None:
            self._forget_if_over(calls)

    # --- calls ---------------------------------------------------------------------------------------------

    def submit(self, submitted: tuple[TaskRecord, list[bytes], list[bytes], CallLimit | None]) -> None:
        """``(record, ids of top-level references, ids of nested ones, max_pending_calls)``."""
        record, dep_ids, held_ids, limit = submitted
        calls = self.subscribe(record.template.actor_id)
        calls.limit = limit
        self._withdraw(calls)
        token = self.core.objects.own.entries.get(token_id(record.template.actor_id))
        if self.core.lost:
            self.core.tasks.fail(record, self.core.lost)
            return
        if dep_ids or held_ids or record.parent:
            self.core.tasks.hold_arguments(record, dep_ids, held_ids)
        if token is not None:
            token.count += 1
            record.held = [*record.held, token]
        calls.submit(record)
        if record.state != FINISHED:
            self._fail_on_argument(record)
        self._dirty[calls.actor_id] = calls

    def _withdraw(self, calls: ActorCalls) -> None:
        """A call goes the usual way: those behind it must not overtake it."""
        offer = calls.offer
        if offer is not None and self.core.express.withdraw(offer):
            calls.offer = None

    def _told(self, offered: ActorCalls, peer: Peer, record: TaskRecord, fate: str) -> None:
        """What becomes of the offer of an idle actor to user threads."""
        if fate in (SENT, UNUSED):
            offered.offer = None
        actor_id = record.template.actor_id
        if fate == SENT:
            calls = self.subscribe(actor_id)
            token = self.core.objects.own.entries.get(token_id(actor_id))
            if token is not None:
                token.count += 1
                record.held = [token]
            self.core.cancellation.started(record)
            if self.core.lost:
                self.core.tasks.fail(record, self.core.lost)
            else:
                calls.sent(record, peer)
                self._dirty[actor_id] = calls
        elif fate == UNUSED or actor_id not in self.calls or self.calls[actor_id].finished(record.task_id) is None:
            return  # nothing is under way, or it was answered or lost meanwhile
        elif fate == REFUSED:
            self.send_again(record)
        else:
            record.returns[0].seen = True  # nobody has the reference
            self.core.tasks.fail(record, cancelled_error(record))

    def _fail_on_argument(self, record: TaskRecord) -> bool:
        for entry in record.deps:
            if entry.kind == FAILED:
                entry.seen = True
                self._remove(self.calls[record.template.actor_id], record)
                self.core.tasks.fail(record, serialize_dependent_error(entry.data, record.display_name))
                return True
        return False

    def _remove(self, calls: ActorCalls, record: TaskRecord) -> bool:
        """Take out a call that was not sent; those behind it need not wait for it any more."""
        self._dirty[calls.actor_id] = calls
        return calls.remove(record)

    def ready(self, record: TaskRecord) -> None:
        """The arguments of a waiting call are there."""
        if not self._fail_on_argument(record):
            calls = self.calls[record.template.actor_id]
            self._dirty[calls.actor_id] = calls

    def retry(self, record: TaskRecord) -> None:
        """The call raised, and may run again: behind the others."""
        if record.retries > 0:
            record.retries -= 1
        record.next_attempt()
        self.send_again(record)

    def send_again(self, record: TaskRecord) -> None:
        """The call goes behind the others, when its arguments are there."""
        calls = self.calls[record.template.actor_id]
        self._withdraw(calls)
        calls.submit(record)
        if record.state != FINISHED:
            self._fail_on_argument(record)
        self._dirty[calls.actor_id] = calls

    # --- results that may be lost --------------------------------------------------------------------------

    def let_go(self, record: TaskRecord) -> None:
        """The call is over and kept as lineage, which keeps no actor alive."""
        tokens = [entry for entry in record.held if isinstance(entry, ActorToken)]
        record.held = [entry for entry in record.held if not isinstance(entry, ActorToken)]
        for token in tokens:
            self.core.objects.own.unpin(token)

    def may_recover(self, record: TaskRecord) -> bool:
        """Whether the actor is there to run the call again."""
        calls = self.calls.get(record.template.actor_id)
        return calls is not None and calls.state != ACTOR_DEAD

    def hold(self, record: TaskRecord) -> None:
        """The call runs again, as its result was lost: it keeps the actor alive, and counts as pending."""
        calls = self.calls[record.template.actor_id]
        if calls.limit is not None:
            calls.limit.answered -= 1
        token = self.core.objects.own.entries.get(token_id(record.template.actor_id))
        if token is not None:
            token.count += 1
            record.held = [*record.held, token]

    def flush(self) -> None:
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            for calls in dirty.values():
                if calls.pump():
                    self._pump_later(calls)

    def _pump_later(self, calls: ActorCalls) -> None:
        """In the next turn of the loop."""
        if not self._dirty:
            self.core.loop.call_soon(self.core.flush)
        self._dirty[calls.actor_id] = calls

    def on_task_done(self, peer: Peer, message: TaskDone) -> None:
        calls: ActorCalls = peer.calls
        if message.task_id not in calls.in_flight and calls.offer is not None:
            self.core.drain_inbox()  # a user thread has sent it, and its word of that is still there
        record = calls.finished(message.task_id)
        if calls.offer is None and calls.channel is peer and calls.may_offer() and calls.limit is None:
            calls.offer = self.core.express.offer(calls.actor_id, peer, lambda record, fate: self._told(calls, peer, record, fate))
        if record is not None:
            self.core.tasks.finish(record, message, peer.address.worker_id)
        else:
            self.core.tasks.discard(message, peer.address.worker_id)
        self._forget_if_over(calls)

    def on_hand_back(self, peer: Peer, message: HandBack) -> None:
        """The actor moves to another node: what it has not started, and what comes, waits for it there."""
        self.core.drain_inbox()  # calls that user threads have sent
        calls: ActorCalls = peer.calls
        if calls.channel is peer:
            self._withdraw(calls)
        cancelled = [record for task_id in message.task_ids if (record := calls.in_flight.get(task_id)) is not None and record.cancelled]
        calls.handed_back(message.task_ids)
        for record in cancelled:
            if self._remove(calls, record):
                self.core.tasks.fail(record, cancelled_error(record))
        if message.moves:
            peer.takes_calls = False  # a thread that has taken an offer may not have sent its call yet, and the actor waits for none
            peer.send(AskHandBack(0))

    def call_over(self, actor_id: bytes) -> None:
        """A call has its value or its error."""
        calls = self.calls.get(actor_id)
        if calls is not None and calls.limit is not None:
            calls.limit.answered += 1

    def cancel(self, record: TaskRecord, recursive: bool) -> None:
        """A waiting call never runs; a running one is told."""
        calls = self.calls.get(record.template.actor_id)
        if calls is None:
            return
        if record.state != PUSHED and self._remove(calls, record):
            text = f"Actor call {record.display_name} (id {record.task_id.hex()}) was cancelled before it was sent."
            self.core.tasks.fail(record, serialize_system_error(exceptions.TaskCancelledError(record.task_id.hex(), text)))
        elif isinstance(calls.channel, Peer):
            calls.channel.send(CancelTask(record.task_id, False, recursive))

    # --- effects of actor calls ----------------------------------------------------------------------------

    def connect_actor(self, calls: ActorCalls, address: Address) -> None:
        if self.core.wants_logs:
            self.core.agents.get(address.node_id)  # which sends them to those who are registered with it
        peer = self.core.peers.get(address)
        peer.calls = calls
        calls.channel = peer
        peer.send(BeginLease(0, self.core.me, self.core.job_id))
        calls.connected()  # the peer queues what is sent before its connection stands
        self._pump_later(calls)

    def send_calls(self, calls: ActorCalls, records: list[TaskRecord]) -> None:
        peer: Any = calls.channel
        for record in records:
            peer.send(self.core.tasks.wire_task(peer, record))

    def fail_call(self, record: TaskRecord, error: str, cause: Cause | None) -> None:
        self.core.tasks.fail(record, self.death_error(record.template.actor_id, error, cause, record.display_name))

    def death_error(self, actor_id: bytes, error: str, cause: Cause | None, call: str = "") -> bytes:
        """Serialize what a caller of a dead or unavailable actor reads."""
        name = self._names.get(actor_id, "")
        if not name and "." in call:
            name = call.rsplit(".", 1)[0]
        cause = cause or Cause("unknown", "Its process is gone.")
        if error == "ActorUnavailableError":
            text = (
                f"Actor {name} (id {actor_id.hex()}) lost its process while it had the call {call}, "
                f"which may or may not have been executed. "
                f"{describe_cause(cause)}\nThe actor is being started again; max_task_retries has such calls sent again."
            )
            return serialize_system_error(exceptions.ActorUnavailableError(text, actor_id.hex()))
        return serialize_system_error(actor_died(cause, actor_id=actor_id.hex(), class_name=name))

    # --- life ----------------------------------------------------------------------------------------------

    def on_actor_update(self, _channel: Any, message: ActorUpdate) -> None:
        self.core.drain_inbox()  # calls that user threads have sent
        self._on_update(message)
        self.core.flush()

    def _on_update(self, update: ActorUpdate) -> None:
        calls = self.calls.get(update.actor_id)
        if calls is None:
            return
        self._withdraw(calls)
        calls.updated(update)
        if update.state == ACTOR_DEAD:
            # Not at once: its process, which is being killed, may answer a call with a reference to one of them.
            self.core.loop.call_later(TAKE_OVER_S, self._give_up_arguments, self._creation_args.pop(update.actor_id, []))
            self._forget_if_over(calls)

    def _give_up_arguments(self, entries: list[Entry]) -> None:
        if not self.core.closing:
            for entry in entries:
                self.core.objects.own.unpin(entry)
            self.core.flush()

    def handle_gone(self, object_id: bytes) -> None:
        """A foreign actor's last handle in this process is gone, and so are our calls to it, which hold it as well."""
        if object_id.endswith(_TOKEN_SUFFIX):
            actor_id = object_id[:ACTOR_BYTES]
            self._out_of_order.discard(actor_id)
            if actor_id in self.calls:
                self.core.control_store.send(UnsubscribeActor(actor_id))
                self._forget(actor_id)

    def _forget_if_over(self, calls: ActorCalls) -> None:
        """The actor is dead and no handle is here: whatever comes last, that, the last handle's end or the last reply, ends in this."""
        if calls.state == ACTOR_DEAD and token_id(calls.actor_id) not in self.core.objects.own.entries:
            self._forget(calls.actor_id)

    def _forget(self, actor_id: bytes) -> None:
        """Nobody here can ask about the actor any more; a handle that appears later starts afresh."""
        calls = self.calls.get(actor_id)
        if calls is not None and not calls.in_flight and not calls.waiting and not calls.limbo:
            self._withdraw(calls)
            del self.calls[actor_id]
            self._names.pop(actor_id, None)
            self._out_of_order.discard(actor_id)

    def peer_lost(self, peer: Peer) -> None:
        calls: ActorCalls | None = peer.calls
        if calls is None or calls.channel is not peer:
            return
        self._withdraw(calls)
        if peer.connection is None:  # it never stood (its node was not known here yet): none of these has been sent
            calls.handed_back(list(calls.in_flight))
        calls.disconnected()
        self._forget_if_over(calls)
        if calls.state == ACTOR_ALIVE and not self.core.closing:
            self.core.loop.call_later(RECONNECT_S, self._reconnect, calls, calls.incarnation)

    def _reconnect(self, calls: ActorCalls, incarnation: int) -> None:
        """The control store has not said yet that the actor's process ended: see whether the connection alone was lost.

        No answer decides nothing: what was in flight waits for the control store's word, however busy the machine is.
        """
        if calls.state == ACTOR_ALIVE and calls.incarnation == incarnation and calls.channel is None and calls.address is not None:
            peer = self.core.peers.get(calls.address)
            peer.calls = calls
            calls.channel = peer
            peer.when_connected(lambda: self._reconnected(calls, peer))

    def _reconnected(self, calls: ActorCalls, peer: Peer) -> None:
        """The process lives: whether it ran what was in flight, nobody can tell."""
        if calls.channel is peer and calls.state == ACTOR_ALIVE:
            calls.reconnected()
            self.connect_actor(calls, peer.address)
            self.core.flush()

    def fail_all(self, error: bytes) -> None:
        """The session is over."""
        for calls in self.calls.values():
            for record in [*calls.limbo, *calls.in_flight.values(), *calls.waiting]:
                self.core.tasks.fail(record, error)
            calls.limbo.clear()
            calls.in_flight.clear()
            calls.waiting.clear()
