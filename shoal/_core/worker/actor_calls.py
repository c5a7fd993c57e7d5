"""Calls from this process to one actor: their order, and what happens to them when the actor's process changes.

Owns: the calls that wait and the calls in flight, for one actor as seen by one caller.
Must not know: sockets, threads, clocks. The shell performs what ``CallEffects`` names.

    submit -> waiting (in order) -> sent to the live incarnation -> done
    handed back by an incarnation that leaves its node -> waiting, for the next one; it costs no retry
    the next incarnation lives, and replies of the one that left may still be in its socket -> no word to it before that has ended
    connection lost -> limbo, until the control store says RESTARTING (retry or ActorUnavailableError), ALIVE or DEAD (ActorDiedError)

Order: calls leave in the order of submission, each once its arguments are ready; an actor that may run calls out of order (async, threaded)
gets each as soon as it is ready. One connection per incarnation keeps the order on the way.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from shoal._core.wire.messages import ACTOR_ALIVE, ACTOR_DEAD, ACTOR_PENDING, ACTOR_RESTARTING, DRAINED, ActorUpdate, Address, Cause

from .records import PUSHED, QUEUED, TaskRecord

#: Calls that are sent in one turn of the loop, some 10 ms of them: however many wait, the loop reads its sockets in between.
BATCH = 1000


class CallLimit:
    """``max_pending_calls`` of one actor in this process: each side of the inbox writes a number of its own."""

    __slots__ = ("__weakref__", "answered", "most", "submitted")

    def __init__(self, most: int) -> None:
        self.most = most
        #: Written by user threads.
        self.submitted = 0
        #: Written by the I/O thread.
        self.answered = 0


class CallEffects(Protocol):
    """What the state asks of the shell."""

    def connect_actor(self, calls: ActorCalls, address: Address) -> None:
        """Connect to the incarnation; answer with ``connected`` or ``disconnected``."""

    def send_calls(self, calls: ActorCalls, records: list[TaskRecord]) -> None:
        """Send to the live incarnation, in order."""

    def fail_call(self, record: TaskRecord, error: str, cause: Cause | None) -> None:
        """Complete the call with ``ActorDiedError`` or ``ActorUnavailableError``."""


class ActorCalls:
    """One actor as seen from this process. Every method runs on the I/O thread."""

    def __init__(self, actor_id: bytes, effects: CallEffects, *, out_of_order: bool = False) -> None:
        self.actor_id = actor_id
        self.effects = effects
        self.out_of_order = out_of_order
        self.state = ACTOR_PENDING
        self.incarnation = -1
        self.address: Address | None = None
        self.cause: Cause | None = None
        self.connected_now = False
        #: Where the next incarnation is, while the connection to one that left by plan has not ended.
        self._next: Address | None = None
        #: Submitted and not sent, in order of submission.
        self.waiting: deque[TaskRecord] = deque()
        #: task id -> record, in the order of sending.
        self.in_flight: dict[bytes, TaskRecord] = {}
        #: Lost with a connection; the next word of the control store decides.
        self.limbo: list[TaskRecord] = []
        #: So many of the first in ``waiting`` have been sent before.
        self._returned = 0
        #: Kept here while calls are under way, though their handle may be gone.
        self.limit: CallLimit | None = None
        #: Free for the shell: the connection to the incarnation, and its offer to user threads.
        self.channel: object = None
        self.offer: Any = None

    # --- calls ---------------------------------------------------------------------------------------------

    def submit(self, record: TaskRecord) -> None:
        if self.state == ACTOR_DEAD:
            self.effects.fail_call(record, "ActorDiedError", self.cause)
            return
        record.state = QUEUED
        self.waiting.append(record)

    def sent(self, record: TaskRecord, channel: object) -> None:
        """A user thread has sent the call itself, over ``channel``."""
        record.state = PUSHED
        if self.address is not None:
            record.node_id = self.address.node_id
        if channel is self.channel and (self.state != ACTOR_DEAD or self.connected_now):
            self.in_flight[record.task_id] = record
        elif self.state == ACTOR_DEAD:
            self.effects.fail_call(record, "ActorDiedError", self.cause)
        else:  # to an incarnation that is gone, or over a connection that is lost
            self.limbo.append(record)
            if self.state == ACTOR_RESTARTING or self.connected_now:
                self._resolve_limbo()

    def may_offer(self) -> bool:
        """Whether a user thread may send a call: the actor lives, and nothing is under way to it."""
        return self.connected_now and self.state == ACTOR_ALIVE and not (self.waiting or self.in_flight or self.limbo)

    def remove(self, record: TaskRecord) -> bool:
        """Take out a call that was not sent (cancelled, or its arguments failed)."""
        try:
            index = self.waiting.index(record)
        except ValueError:
            return False
        del self.waiting[index]
        self._returned -= index < self._returned
        return True

    def pump(self) -> bool:
        """Send what may be sent, up to ``BATCH`` calls; return whether to come back for more."""
        if not self.connected_now or not self.waiting:
            return False
        batch: list[TaskRecord] = []
        passed_over: list[TaskRecord] = []
        while self.waiting and len(batch) < BATCH and (self.out_of_order or not self.waiting[0].unready):
            record = self.waiting.popleft()
            (passed_over if record.unready else batch).append(record)
        self.waiting.extendleft(reversed(passed_over))
        for record in batch:
            record.state = PUSHED
            self.in_flight[record.task_id] = record
            if self.address is not None:
                record.node_id = self.address.node_id
        if batch:
            self.effects.send_calls(self, batch)
        return len(batch) == BATCH

    def finished(self, task_id: bytes) -> TaskRecord | None:
        return self.in_flight.pop(task_id, None)

    def handed_back(self, task_ids: list[bytes]) -> None:
        """The incarnation leaves, and has not started these: they wait for the next one, before what was not sent yet."""
        self.connected_now = False
        limbo = {record.task_id: record for record in self.limbo}
        found = [self.in_flight.pop(task_id, None) or limbo.pop(task_id, None) for task_id in task_ids]
        returned = [record for record in found if record is not None]
        for record in returned:
            record.state = QUEUED
        self.limbo = list(limbo.values())
        self.waiting.rotate(-self._returned)
        self.waiting.extendleft(reversed(returned))
        self.waiting.rotate(self._returned)
        self._returned += len(returned)

    # --- the actor's life ----------------------------------------------------------------------------------

    def connected(self) -> None:
        """What waits is sent by the next ``pump``."""
        self.connected_now = True
        self._returned = 0

    def disconnected(self) -> None:
        """The connection to the incarnation is gone; what was in flight may or may not have run."""
        self.connected_now = False
        self.channel = None
        self.limbo.extend(self.in_flight.values())
        self.in_flight.clear()
        if self.state == ACTOR_DEAD:
            self._bury()
        elif self.state == ACTOR_RESTARTING:
            self._resolve_limbo()
        elif self._next is not None:
            self._turn_to(self._next)

    def updated(self, update: ActorUpdate) -> None:
        """The control store says how the actor is."""
        if update.incarnation < self.incarnation or self.state == ACTOR_DEAD:
            return
        changed = update.incarnation != self.incarnation or self.state == ACTOR_RESTARTING
        self.state = update.state
        self.cause = update.cause
        self._next = None
        left_by_plan = update.cause is not None and update.cause.kind == DRAINED and self.channel is not None
        if update.state == ACTOR_DEAD:
            self.incarnation = update.incarnation
            self._bury()
        elif update.state == ACTOR_RESTARTING:
            self.incarnation = update.incarnation
            self.connected_now = False
            if not left_by_plan:
                self.limbo.extend(self.in_flight.values())
                self.in_flight.clear()
                self.channel = None
            # Else it left by plan: replies may still be in the socket, and the end of the connection settles what is left.
            self._resolve_limbo()
        elif update.state == ACTOR_ALIVE and update.address is not None and (changed or self.channel is None):
            self.incarnation = update.incarnation
            self.address = update.address
            self.connected_now = False
            if left_by_plan and self.in_flight:
                # Nothing orders the sockets: a busy caller may hear of the next incarnation before it has read this one's last replies.
                self._next = update.address
            else:
                self._turn_to(update.address)

    def _turn_to(self, address: Address) -> None:
        """The incarnation before has had its last word; go on with this one."""
        self._next = None
        self.limbo.extend(self.in_flight.values())
        self.in_flight.clear()
        self._resolve_limbo()
        self.effects.connect_actor(self, address)

    def reconnected(self) -> None:
        """The connection alone was lost: whether what was in flight ran, nobody can tell."""
        self._resolve_limbo(moved=False)

    def _resolve_limbo(self, *, moved: bool = True) -> None:
        """Retry in the old order what may be retried; the rest fails. A move of the actor costs no retry."""
        limbo, self.limbo = self.limbo, []
        free = moved and self.cause is not None and self.cause.kind == DRAINED
        again: list[TaskRecord] = []
        for record in limbo:
            if record.retries != 0 and not record.cancelled:
                if record.retries > 0 and not free:
                    record.retries -= 1
                record.next_attempt()
                record.state = QUEUED
                again.append(record)
            else:
                self.effects.fail_call(record, "ActorUnavailableError", self.cause)
        self.waiting.extendleft(reversed(again))
        self._returned += len(again)

    def _bury(self) -> None:
        if self.channel is not None and self.in_flight:
            # Replies may still be in the socket; the end of the connection settles what is left.
            doomed = list(self.waiting)
        else:
            doomed = [*self.limbo, *self.in_flight.values(), *self.waiting]
            self.in_flight.clear()
            self.limbo.clear()
        self.waiting.clear()
        self._returned = 0
        for record in doomed:
            self.effects.fail_call(record, "ActorDiedError", self.cause)

    # --- looking -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        assert 0 <= self._returned <= len(self.waiting)
        assert not (self.in_flight.keys() & {record.task_id for record in self.waiting})
        for record in self.waiting:
            assert record.state == QUEUED, record.state
        for record in self.in_flight.values():
            assert record.state == PUSHED, record.state
        if self.state == ACTOR_DEAD:
            assert not self.waiting
