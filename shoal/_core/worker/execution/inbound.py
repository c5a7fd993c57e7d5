"""The I/O thread's half of execution: what owners push, cancel and take back, and the replies to them.

owner: BeginLease, DefineTemplate, PushTask...   -> Call -> run queue of the tasks or the actor
run side: reply                                  -> references inside registered for the owner, then TaskDone
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from shoal import exceptions
from shoal._core.serialization import serialize_system_error
from shoal._core.transport import Connection, RequestFailed
from shoal._core.wire import messages as m
from shoal._core.worker.objects import ARGUMENT

from .calls import Call, Caller, cancelled_before_start
from .generators import StreamGate
from .moves import Move

if TYPE_CHECKING:
    from shoal._core.worker.core import Core
    from shoal._core.worker.inbox import Inbox
    from shoal._core.worker.runtime import CoreRuntime


class Inbound:
    """Owns the calls of this worker. Methods named ``on_*`` and ``send_*`` run on the I/O thread."""

    def __init__(self, core: Core, runtime: CoreRuntime, inbox: Inbox, ip: str) -> None:
        self.core = core
        self.runtime = runtime
        self.inbox = inbox
        self.pid = os.getpid()
        self.ip = ip
        self.actor_spec: m.ActorSpec | None = None
        self.actor_repr = ""
        self.actor_resource_ids: dict[str, list[int]] = {}
        self.actor_placement_group = b""
        self.incarnation = 0
        #: What the main thread runs: calls, and functions of no argument (become an actor, leave).
        self.queue: SimpleQueue[Any] = SimpleQueue()
        #: Set once the worker is an actor: takes calls instead of ``queue``.
        self.actor: Any = None
        #: The part that runs tasks on the main thread.
        self.main: Any = None
        #: task id -> call, from push to reply.
        self.calls: dict[bytes, Call] = {}
        self._callers: dict[Connection, Caller] = {}
        self._arrived: list[Call] = []
        #: Called once no reply waits for registrations any more.
        self._until_replied: list[Callable[[], None]] = []
        self.stopping = False
        #: The actor moves to another node: what comes is handed back.
        self._move: Move | None = None
        #: The running task waits inside get or wait: what arrives now is handed back at once.
        self.blocked = False

    # --- messages of owners --------------------------------------------------------------------------------

    def on_message(self, connection: Connection, message: m.Message) -> bool:
        kind = type(message)
        if kind is m.PushTask:
            self._on_push(self._caller(connection), message)  # type: ignore[arg-type]
        elif kind is m.DefineTemplate:
            self._caller(connection).templates[message.index] = message.template  # type: ignore[attr-defined]
        elif kind is m.BeginLease:
            self._on_begin_lease(self._caller(connection), message)  # type: ignore[arg-type]
        elif kind is m.CancelTask:
            return self._on_cancel(message)  # type: ignore[arg-type]
        elif kind is m.AskHandBack:
            if self._move is not None:
                self._move.heard(connection)
            else:
                self.hand_back()
        elif kind is m.GeneratorConsumed:
            call = self.calls.get(message.task_id)  # type: ignore[attr-defined]
            if call is not None and call.stream_gate is not None:
                call.stream_gate.consume(message.count, message.dropped)  # type: ignore[attr-defined]
        else:
            return False
        return True

    def _caller(self, connection: Connection) -> Caller:
        caller = self._callers.get(connection)
        if caller is None:
            caller = self._callers[connection] = Caller(connection)
            connection.allow_send_now()
        return caller

    def _on_begin_lease(self, caller: Caller, message: m.BeginLease) -> None:
        caller.owner = message.owner
        caller.lease_id = message.lease_id
        caller.job_id = message.job_id
        caller.resource_ids = message.resource_ids
        caller.placement_group = message.placement_group

    def _on_push(self, caller: Caller, message: m.PushTask) -> None:
        call = Call(caller, message)
        self.calls[message.task_id] = call
        if call.template.num_returns < 0:
            call.stream_gate = StreamGate(call.template.backpressure)
        missing = [dep for dep in message.deps if dep.value is None]
        if missing:
            self._fetch_arguments(call, missing)
        self._arrived.append(call)

    def _fetch_arguments(self, call: Call, missing: list[m.Dep]) -> None:
        """Make stored arguments readable before the call's turn comes."""
        ids = [dep.object_id for dep in missing]
        ready = call.ready = threading.Lock()
        ready.acquire()

        def pinned(done: asyncio.Future[Any]) -> None:
            error = done.exception() if not done.cancelled() else RequestFailed("RaySystemError", "the node agent is gone", b"")
            if error is None:
                call.places = dict(zip(ids, done.result(), strict=True))
                if self.calls.get(call.task.task_id) is not call:  # handed back meanwhile
                    self._give_back_places(call)
            elif isinstance(error, RequestFailed):
                call.error = getattr(exceptions, error.kind, exceptions.RaySystemError)(error.message)
            else:
                call.error = exceptions.RaySystemError(str(error))
            ready.release()

        self.core.store.pin(ids, [(dep.node_id, dep.nbytes) for dep in missing], ARGUMENT).add_done_callback(pinned)

    def on_batch_end(self) -> None:
        """Hand over everything that arrived in one read at once."""
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            if self._move is not None:
                self._return(arrived)
            elif self.actor is not None:
                self.actor.submit(arrived)
            else:
                for call in arrived:
                    self.queue.put(call)
                if self.blocked:
                    self.hand_back()

    def on_caller_lost(self, connection: Connection) -> None:
        caller = self._callers.pop(connection, None)
        if caller is not None:
            caller.lost = True
        if self._move is not None:
            self._move.heard(connection)

    def hand_back(self) -> None:
        """Return every call that is not started to its owner."""
        returned: list[Call] = []
        kept: list[Any] = []
        while True:
            try:
                item = self.queue.get_nowait()
            except Empty:
                break
            (returned if isinstance(item, Call) else kept).append(item)
        for item in kept:
            self.queue.put(item)
        self._return(returned)

    def _return(self, calls: list[Call]) -> None:
        """Give calls that were not started back to their owners."""
        returned: dict[Connection, list[bytes]] = {}
        for call in calls:
            returned.setdefault(call.caller.connection, []).append(call.task.task_id)
            self.calls.pop(call.task.task_id, None)
            self._give_back_places(call)
        for connection, task_ids in returned.items():
            if not connection.closed:
                connection.send(m.HandBack(task_ids))

    def _give_back_places(self, call: Call) -> None:
        for object_id, place in call.places.items():
            if place is not None:
                self.core.store.unpin(object_id)
        call.places = {}

    def _on_cancel(self, message: m.CancelTask) -> bool:
        call = self.calls.get(message.task_id)
        if call is None:
            return message.task_id not in self._owned_tasks()
        call.cancelled = True
        if message.recursive:
            self.core.cancellation.cancel_children(message.task_id, message.force)
        if self.actor is not None:
            self.actor.cancel(call)
        else:
            self.main.cancel(call)
        return True

    def _owned_tasks(self) -> Any:
        return _OwnedTasks(self.core)

    # --- messages of the node agent ------------------------------------------------------------------------

    def on_agent_message(self, message: m.Message) -> bool:
        if isinstance(message, m.BecomeActor):
            self.actor_spec = message.spec
            self.incarnation = message.incarnation
            self.actor_resource_ids = message.resource_ids
            self.actor_placement_group = message.placement_group
            self.queue.put(lambda: self.main.become_actor(message))
        elif isinstance(message, m.StopProcess):
            self.stopping = True
            if message.graceful:
                self.leave(message.cause)
            else:
                os._exit(1)
        else:
            return False
        return True

    def leave(self, cause: m.Cause) -> None:
        """End in good order, after the calls that are queued. An actor that moves finishes those that have begun."""
        if self.actor is not None and cause.kind == m.DRAINED:
            if self._move is None:
                # What those had sent who do not answer is lost with the process: as patient as with a node that is silent.
                patience_s = self.core.settings.node_timeout_s
                self._move = Move(self.core.loop, self._callers, patience_s, lambda: self.actor.leave(cause))
                self.hand_back()
        elif self.actor is not None:
            self.actor.leave(cause)
        else:
            self.queue.put(lambda: self.main.leave(cause))

    # --- replies -------------------------------------------------------------------------------------------

    def reply_now(self, call: Call, done: m.TaskDone) -> bool:
        """Send a plain reply from the thread that ran the call; False if it must go through the I/O thread.

        It must when more calls wait (their replies leave together), and when references are to be registered or replies are before it.
        A call at a time takes a third longer with the detour (``benchmarks/core_actors.py``).
        """
        caller = call.caller
        if caller.outgoing or not self.queue.empty() or not self.inbox.idle() or self.core.objects.has_unregistered():
            return False
        if not caller.connection.send_now(done):
            return False
        self.calls.pop(call.task.task_id, None)
        return True

    def send_reply(self, reply: tuple[Call, m.TaskDone, list[list[Any]]]) -> None:
        call, done, refs = reply
        self.calls.pop(call.task.task_id, None)
        caller = call.caller
        futures: list[asyncio.Future[Any]] = []
        if any(refs) and caller.owner is not None:
            for value, inside in zip(done.results, refs, strict=True):
                if inside:
                    futures += self._attach(value, inside, caller.owner)
        futures += self.core.objects.settle_borrows()
        self._send_in_order(caller, done, futures)

    def send_item(self, item: tuple[Call, m.GeneratorItem, list[Any]]) -> None:
        call, message, inside = item
        caller = call.caller
        futures = self._attach(message.value, inside, caller.owner) if inside and caller.owner is not None else []
        self._send_in_order(caller, message, futures)

    def _send_in_order(self, caller: Caller, message: m.Message, futures: list[asyncio.Future[Any]]) -> None:
        """Send when the registrations are acked, and not before what was to be sent earlier."""
        if not futures and not caller.outgoing:
            if not caller.connection.closed:
                caller.connection.send(message)
            return
        entry: list[Any] = [message, False]
        caller.outgoing.append(entry)

        def ready() -> None:
            entry[1] = True
            while caller.outgoing and caller.outgoing[0][1]:
                first = caller.outgoing.popleft()[0]
                if not caller.connection.closed:
                    caller.connection.send(first)
            if self._until_replied and not self._replies_wait():
                waiting, self._until_replied = self._until_replied, []
                for then in waiting:
                    self.core.loop.call_soon(then)

        self.core.when_all(futures, ready)

    def replies_out(self, timeout_s: float = -1) -> None:
        """Block until every reply given so far is written to its socket, also those that wait for registrations. Main thread."""
        done = threading.Lock()
        done.acquire()
        self.inbox.post(self._when_replied, done.release)
        done.acquire(timeout=timeout_s)

    def _when_replied(self, then: Callable[[], None]) -> None:
        if self._replies_wait():
            self._until_replied.append(then)
        else:  # connections write at the end of the turn in which they were sent to
            self.core.loop.call_soon(then)

    def _replies_wait(self) -> bool:
        return any(caller.outgoing for caller in self._callers.values())

    def _attach(self, value: m.Value, inside: list[Any], owner: m.Address) -> list[asyncio.Future[Any]]:
        own = self.core.objects.own
        inner = [own.lookup(ref.binary(), ref._owner) for ref in inside]
        value.refs = self.core.objects.infos(inner)
        return self.core.objects.grant(inner, owner)

    def reject(self, call: Call) -> None:
        """Answer a call that was cancelled before its turn. Any thread."""
        self.inbox.post(self.send_reply, (call, m.TaskDone(call.task.task_id, [cancelled_before_start(call)]), []))

    def refuse(self, call: Call, error: BaseException) -> None:
        """Answer a call that cannot run here. Any thread."""
        value = m.Value(m.FAILED, serialize_system_error(error))
        self.inbox.post(self.send_reply, (call, m.TaskDone(call.task.task_id, [value]), []))

    def on_user_error(self, call: Call, error: BaseException) -> bool:
        """User code raised; True if the process ends now and so gives no reply (``sys.exit``, ``exit_actor``)."""
        if self.actor is not None:
            return bool(self.actor.on_user_error(call, error))
        return bool(self.main.on_user_error(call, error))


class _OwnedTasks:
    """Tells whether this process itself owns a task (a borrower of its result may ask to cancel it)."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def __contains__(self, task_id: bytes) -> bool:
        return task_id + b"\0\0\0\0" in self._core.objects.own.entries
