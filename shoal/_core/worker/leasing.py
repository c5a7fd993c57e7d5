"""Leases as their holder's I/O thread sees them: asked for, granted, filled with tasks, given back, lost with their worker.

Decides nothing (``submission.py`` does); it connects the decisions to messages of the node agent and of leased workers.

    request_lease -> LeaseGranted -> BeginLease, PushTask... -> TaskDone -> push more, or ReturnLease
                                                             -> HandBack -> queued again
                                                             -> worker lost -> each of its tasks is told
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from shoal._core.serialization import error_named, serialize_system_error
from shoal._core.transport import RequestFailed
from shoal._core.wire.messages import (
    AskHandBack,
    Backlog,
    BeginLease,
    CancelRequest,
    Cause,
    HandBack,
    LeaseGranted,
    LeaseInfeasible,
    LeaseSpilled,
    LeaseWanted,
    RequestLease,
    ReturnLease,
    Shape,
    TaskDone,
    WorkerDied,
)

from .cancellation import cancelled_error
from .entries import STORED
from .express import REFUSED, SENT, UNUSED
from .peers import Peer
from .records import TaskRecord
from .submission import Lease, LeaseKey, ShapeQueue, Submission

if TYPE_CHECKING:
    from .core import Core

#: Arguments of at least this many bytes draw their task to their node: a millisecond of transfer, three round trips for a lease there.
NEAR_BYTES = 1 << 20
#: Seconds between two looks at idle and stalled leases, while there are any.
TICK_S = 0.01
#: Seconds until a lease is asked for again when the agent of the node that was named could not be reached: our own hears of it meanwhile.
UNREACHABLE_S = 0.1
#: Seconds to wait for the node agent's word about a worker whose connection is gone.
DEATH_NOTICE_S = 2.0
#: Seconds to wait for the end of a dead worker's connection, behind which nothing more can come.
LAST_WORDS_S = 0.1
_NO_CAUSE = Cause("worker_exit", "Its connection was lost.")


class Leasing:
    """The shell around submission. I/O thread only."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.submission = Submission(core.settings, self)
        self._dirty: dict[Shape, ShapeQueue] = {}
        #: Number of a request under way -> the agent that has it, and the message.
        self._requests: dict[int, tuple[Any, RequestLease]] = {}
        self._next_request = 0
        self._ticking = False
        self._warned: set[str] = set()
        #: This process ends: no more leases.
        self._leaving = False

    def enqueue(self, record: TaskRecord, *, front: bool = False) -> None:
        """Queue a task whose arguments are ready."""
        if record.deps:
            record.shape = self._shape_near(record)
        queue = self.submission.enqueue(record, front=front)
        self._dirty[queue.shape] = queue

    def flush(self) -> None:
        """Push what this turn of the loop made ready."""
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            now = self.core.loop.time()
            for queue in dirty.values():
                self.submission.pump(queue, now)
        if not self._ticking and self.submission.leases and self.submission.restless():
            self._ticking = True
            self.core.loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        if self.core.closing:
            return
        if self.submission.tick(self.core.loop.time()):
            self._ticking = True
            self.core.loop.call_later(TICK_S, self._tick)

    def leave(self) -> None:
        """This process ends: give back what is idle. A task that still runs belongs to nobody, and its worker could not serve others."""
        self._leaving = True
        self.submission.give_back_idle()
        for lease in self.submission.leases.values():
            self._agent_of(lease).send(ReturnLease(lease.id, worker_failed=True))

    def _shape_near(self, record: TaskRecord) -> Shape:
        """Return the task's shape with the node where most of its large arguments lie, if it may run anywhere."""
        shape = record.template.shape
        if shape.strategy or shape.placement_group:
            return shape
        sizes: dict[bytes, int] = {}
        for entry in record.deps:
            if entry.kind == STORED:
                sizes[entry.data.node_id] = sizes.get(entry.data.node_id, 0) + entry.data.nbytes
        node_id = max(sizes, key=sizes.__getitem__, default=b"")
        if not node_id or sizes[node_id] < NEAR_BYTES or (node_id == self.core.me.node_id and not self.core.has_other_nodes):
            return shape
        return msgspec.structs.replace(shape, near=node_id)

    # --- effects of submission -----------------------------------------------------------------------------

    def request_lease(self, shape: Shape, backlog: int, name: str, retriable: bool) -> int:
        self._next_request += 1
        self._ask(self.core.me.node_id, self._next_request, RequestLease(0, shape, backlog, retriable, name))
        return self._next_request

    def _ask(self, node_id: bytes, number: int, message: RequestLease) -> None:
        agent = self.core.agents.get(node_id)
        self._requests[number] = agent, message
        future: asyncio.Future[Any] = agent.request(message)
        future.add_done_callback(lambda done: self._lease_answered(node_id, number, message, done))

    def tell_backlog(self, request: int, backlog: int) -> None:
        asked = self._requests.get(request)
        if asked is not None:
            agent, message = asked
            agent.send(Backlog(message.rid, backlog))

    def cancel_lease_request(self, request: int) -> None:
        # Not future.cancel(): a grant that is already on its way must still be seen, or the lease would be lost.
        asked = self._requests.get(request)
        if asked is not None:
            agent, message = asked
            agent.send(CancelRequest(message.rid))

    def _lease_answered(self, node_id: bytes, number: int, message: RequestLease, done: asyncio.Future[Any]) -> None:
        self._requests.pop(number, None)
        if done.cancelled():
            return
        shape, error = message.shape, done.exception()
        if self.core.closing:
            return
        if error is None and isinstance(done.result(), LeaseSpilled):
            self._spilled(number, message, done.result())
        elif error is None and self._leaving:
            self.core.agents.get(node_id).send(ReturnLease(done.result().lease_id))
        elif error is None:
            self._granted(number, shape, done.result())
        elif isinstance(error, RequestFailed) and error.kind == "Cancelled":
            self._ask_anew(shape, number)
        elif not isinstance(error, RequestFailed) and not self.core.lost and node_id != self.core.me.node_id:
            # The agent of another node has ended, or cannot be reached: not at once, as ours may not know it yet and send us there again.
            self.core.loop.call_later(UNREACHABLE_S, self._ask_anew, shape, number)
        else:
            refusal = error_named(error.kind, error.message) if isinstance(error, RequestFailed) else self.core.head_ended()
            data = serialize_system_error(refusal)
            for record in self.submission.refused(shape, number):
                self.core.tasks.fail(record, data)
        self.core.flush()

    def _ask_anew(self, shape: Shape, number: int) -> None:
        """A request has ended without a lease: make another one if there is need."""
        queue = self.submission.queues.get(shape)
        if queue is not None and number in queue.requests and not self.core.closing:
            queue.requests.remove(number)
            self._dirty[shape] = queue
            self.core.flush()

    def _spilled(self, number: int, message: RequestLease, spilled: LeaseSpilled) -> None:
        """Ask the agent of another node, unless the request is not needed any more."""
        queue = self.submission.queues.get(message.shape)
        if queue is None or number not in queue.requests:
            return
        again = RequestLease(0, message.shape, len(queue.ready), message.retriable, message.name, message.hops + 1)
        self._ask(spilled.node_id, number, again)

    def _granted(self, number: int, shape: Shape, grant: LeaseGranted) -> None:
        lease = self.submission.granted(shape, number, grant, self.core.loop.time())
        peer = self.core.peers.get(grant.worker)
        peer.lease = lease
        lease.channel = peer
        peer.send(BeginLease(grant.lease_id, self.core.me, shape.job_id, grant.resource_ids, grant.placement_group, grant.bundle_index))
        self._dirty[shape] = lease.queue

    def _agent_of(self, lease: Lease) -> Any:
        return self.core.agents.get(lease.worker.node_id)

    def push(self, lease: Lease, records: list[TaskRecord]) -> None:
        peer: Any = lease.channel
        for record in records:
            peer.send(self.core.tasks.wire_task(peer, record))

    def withdraw(self, lease: Lease) -> bool:
        offer, lease.offer = lease.offer, None
        if offer is None or self.core.express.withdraw(offer):
            return True
        lease.offer = offer  # it was taken: the word of that is in the inbox
        return False

    def return_lease(self, lease: Lease) -> None:
        peer: Any = lease.channel
        if peer is not None and peer.lease is lease:
            peer.lease = None
        self._agent_of(lease).send(ReturnLease(lease.id))

    def ask_hand_back(self, lease: Lease) -> None:
        peer: Any = lease.channel
        peer.send(AskHandBack(lease.id))

    # --- messages from the node agent and from workers -----------------------------------------------------

    def on_lease_wanted(self, channel: Any, message: LeaseWanted) -> None:
        # A lease may be wanted back in the frame that grants it, and the grant is handled after this turn of the loop, as replies are: if
        # this overtook it, the wish would be lost, and with work enough the lease would be kept for ever.
        self.core.loop.call_soon(self._wanted, (self._node_of(channel), message.lease_id))

    def _wanted(self, key: LeaseKey) -> None:
        self.submission.wanted(key)
        self.core.flush()

    def _node_of(self, channel: Any) -> bytes:
        """The node of the agent at the other end of a channel."""
        node_id: bytes = self.core.me.node_id if channel is self.core.agent else channel.address.node_id
        return node_id

    def on_lease_infeasible(self, _channel: Any, message: LeaseInfeasible) -> None:
        if message.message not in self._warned:
            self._warned.add(message.message)
            print(f"(shoal) WARNING: {message.message}", file=sys.stderr)

    def on_task_done(self, peer: Peer, message: TaskDone) -> None:
        lease: Lease | None = peer.lease
        if lease is None:
            self.core.tasks.discard(message, peer.address.worker_id)
            return
        if message.task_id not in lease.in_flight and lease.offer is not None:
            self.core.drain_inbox()  # a user thread has sent it, and its word of that is still there
        record = self.submission.finished(message.task_id, lease, message.duration_us * 1e-6, self.core.loop.time())
        if message.exiting:
            self.submission.retire(lease)
        if lease.offer is None and self.submission.may_offer(lease):
            lease.offer = self.core.express.offer(lease.queue.shape, peer, lambda record, fate: self._told(lease, record, fate))
        self._dirty[lease.queue.shape] = lease.queue
        if record is not None:
            self.core.tasks.finish(record, message, peer.address.worker_id)
        else:
            self.core.tasks.discard(message, peer.address.worker_id)
        if lease.wanted or lease.dead:
            self.submission.settle(lease)

    def _told(self, lease: Lease, record: TaskRecord, fate: str) -> None:
        """What becomes of the offer of an idle lease to user threads."""
        now = self.core.loop.time()
        self._dirty[lease.queue.shape] = lease.queue
        if fate in (SENT, UNUSED):
            lease.offer = None
        if fate == UNUSED:
            self.submission.settle(lease)
        elif fate == SENT:
            self.core.cancellation.started(record)
            if self.core.lost:
                self.core.tasks.fail(record, self.core.lost)
            elif not self.submission.sent(lease, record, now):
                self.core.tasks.lost_with_worker(record, lease.cause or _NO_CAUSE)
        elif fate == REFUSED:
            if self.submission.not_sent(lease, record, now):
                self.submission.settle(lease)
                self.core.tasks.ready(record)
        elif self.submission.not_sent(lease, record, now):
            record.returns[0].seen = True  # nobody has the reference
            self.core.tasks.fail(record, cancelled_error(record))
            self.submission.settle(lease)

    def on_hand_back(self, peer: Peer, message: HandBack) -> None:
        lease: Lease | None = peer.lease
        if lease is not None:
            cancelled = [r for task_id in message.task_ids if (r := lease.in_flight.get(task_id)) is not None and r.cancelled]
            self.submission.handed_back(lease, message.task_ids, self.core.loop.time())
            for record in cancelled:
                if self.submission.remove(record):
                    self.core.tasks.fail(record, cancelled_error(record))
            self._dirty[lease.queue.shape] = lease.queue
            self.submission.settle(lease)

    def peer_lost(self, peer: Peer) -> None:
        """A leased worker's connection is gone: wait for the node agent to say why."""
        lease: Lease | None = peer.lease
        if lease is not None and not self.core.closing:
            self.withdraw(lease)
            lease.dead = True
            if lease.cause is not None:
                self._worker_gone(lease, lease.cause)
            else:
                self.core.loop.call_later(DEATH_NOTICE_S, self._worker_gone, lease, None)

    def agent_lost(self, node_id: bytes) -> None:
        """The agent of another node has ended, and with it all workers there."""
        cause = Cause("node_died", "Its node has ended, or cannot be reached any more.", node_id=node_id)
        for lease in list(self.submission.leases.values()):
            if lease.worker.node_id == node_id:
                self._worker_gone(lease, lease.cause or cause)  # if the agent had the time to say it

    def on_worker_died(self, channel: Any, message: WorkerDied) -> None:
        lease = self.submission.leases.get((self._node_of(channel), message.lease_id))
        if lease is not None:
            peer: Any = lease.channel
            if peer is None or peer.lost or lease.dead:
                self._worker_gone(lease, message.cause)
            else:
                # Its last replies may still be unread: the end of its connection comes after them. (A child may hold that open.)
                self.withdraw(lease)
                lease.cause, lease.dead = message.cause, True
                self.core.loop.call_later(LAST_WORDS_S, self._worker_gone, lease, message.cause)
            self.core.flush()

    def _worker_gone(self, lease: Lease, cause: Cause | None) -> None:
        if lease.key not in self.submission.leases:
            return
        self.withdraw(lease)
        records = self.submission.lost(lease)
        peer: Any = lease.channel
        if peer is not None:
            peer.lease = None
        if not (cause is not None and (cause.pid or cause.kind == "node_died")):
            self._agent_of(lease).send(ReturnLease(lease.id, worker_failed=True))
        started = cause.started if cause is not None else b""
        order = [record.task_id for record in records]
        maybe_run = len(records)
        if started:
            maybe_run = order.index(started) + 1 if started in order else 0
        for record in reversed(records[maybe_run:]):
            self.core.tasks.requeue(record)
        for record in records[:maybe_run]:
            self.core.tasks.lost_with_worker(record, cause or _NO_CAUSE)
        self.core.flush()
