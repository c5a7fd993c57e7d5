"""From a ready task to a worker: shapes, leases and adaptive pipelining.

Owns: the queue of ready tasks per shape, the leases this process holds, and what is in flight on each.
Must not know: sockets, threads, clocks (``now`` is passed in), objects. The shell performs what ``LeaseEffects`` names.

    task ready -> queue of its shape -> pump: push to leased workers with room, ask for more leases
    reply      -> the duration estimate of the shape moves, pump again
    idle lease -> kept for ``lease_linger_s``, then returned; at once when the node agent says that others wait

Depth: about ``pipeline_s`` seconds of work are kept queued on a leased worker, judged by the recent duration of that shape; one
task when tasks are long. A round trip costs about 100 microseconds, so without depth a worker with 20-microsecond tasks would
idle four fifths of its time.

SPREAD: every lease is for another node. So leases on their way are kept a task each, for ``SPREAD_WAIT_S`` at most (a cluster that is full
grants none), and an idle one goes back at once. Without both the first node to answer would run short tasks alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from shoal._base.settings import Settings
from shoal._core.scheduling.strategies import is_spread
from shoal._core.wire.messages import Address, LeaseGranted, Shape

from .records import PUSHED, QUEUED, TaskRecord

#: A worker that answered nothing for this long has its queued tasks taken back.
STALL_S = 0.02
#: Seconds that tasks are kept for the leases of a SPREAD shape that were asked for: connecting to a new node takes a few milliseconds.
SPREAD_WAIT_S = 0.05
#: Waiting tasks up to which each change of their number is told to the node agent; of more, doublings and halvings.
TOLD_EXACTLY = 10
#: Weight of the newest duration in the estimate.
NEWEST = 0.2


#: Node and the number that its agent gave.
LeaseKey = tuple[bytes, int]


class Lease:
    """The right to push tasks of one shape to one worker."""

    __slots__ = (
        "asked_back",
        "cause",
        "channel",
        "dead",
        "id",
        "idle_since",
        "in_flight",
        "key",
        "last_progress",
        "offer",
        "pid",
        "pushed",
        "queue",
        "resource_ids",
        "wanted",
        "worker",
    )  # fmt: skip

    def __init__(self, grant: LeaseGranted, queue: ShapeQueue, now: float) -> None:
        self.id = grant.lease_id
        #: Agents number their leases each for itself.
        self.key: LeaseKey = (grant.worker.node_id, grant.lease_id)
        self.worker: Address = grant.worker
        self.pid = grant.pid
        self.resource_ids = grant.resource_ids
        self.queue = queue
        #: task id -> record, in the order of pushing, which is the order of running.
        self.in_flight: dict[bytes, TaskRecord] = {}
        self.idle_since = now
        self.last_progress = now
        #: Tasks that were ever pushed.
        self.pushed = 0
        #: The node agent wants it back: nothing more is pushed.
        self.wanted = False
        #: The worker is going away; replies may still come.
        self.dead = False
        self.asked_back = False
        #: Free for the shell: its connection to the worker, its offer to user threads, and why the worker died once that is known.
        self.channel: object = None
        self.offer: Any = None
        self.cause: Any = None


class LeaseEffects(Protocol):
    """What the state asks of the shell."""

    def request_lease(self, shape: Shape, backlog: int, name: str, retriable: bool) -> int:
        """Ask the node agent; return the number of the request."""

    def tell_backlog(self, request: int, backlog: int) -> None:
        """So many tasks wait now for what this request asks for."""

    def cancel_lease_request(self, request: int) -> None:
        """The request is not needed any more; a grant that is already on its way comes back through ``granted``."""

    def push(self, lease: Lease, records: list[TaskRecord]) -> None:
        """Send the tasks to the leased worker, in order."""

    def withdraw(self, lease: Lease) -> bool:
        """A user thread may be about to send a task on this idle lease: prevent that; False if it has, and ``sent`` will say so."""

    def return_lease(self, lease: Lease) -> None:
        """Tell the node agent that the lease is over."""

    def ask_hand_back(self, lease: Lease) -> None:
        """Ask the worker for the tasks it has not started."""


class ShapeQueue:
    """Ready tasks of one shape and the leases that serve them."""

    __slots__ = ("asked_at", "duration_s", "filled_to", "leases", "ready", "requests", "shape", "spread", "told", "touched")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.spread = is_spread(shape.strategy)
        self.ready: deque[TaskRecord] = deque()
        self.leases: list[Lease] = []
        #: Numbers of lease requests on their way, oldest first.
        self.requests: list[int] = []
        #: Tasks of which an agent was told last that they wait: an autoscaler must hear of a thousand, without a message for each.
        self.told = 0
        #: When the newest of them was made.
        self.asked_at = 0.0
        #: Recent duration of a task; None before the first reply.
        self.duration_s: float | None = None
        #: Tasks were left when all leases had so many; 0: no task was left. From then on only those in ``touched`` can have room.
        self.filled_to = 0
        self.touched: dict[Lease, None] = {}


class Submission:
    """All queues of this process. Every method runs on the I/O thread."""

    def __init__(self, settings: Settings, effects: LeaseEffects) -> None:
        self.settings = settings
        self.effects = effects
        self.queues: dict[Shape, ShapeQueue] = {}
        self.leases: dict[LeaseKey, Lease] = {}

    # --- tasks ---------------------------------------------------------------------------------------------

    def enqueue(self, record: TaskRecord, *, front: bool = False) -> ShapeQueue:
        """Add a task whose dependencies are ready. The caller pumps the queue it returns, once for a batch."""
        shape = record.shape
        queue = self.queues.get(shape)
        if queue is None:
            queue = self.queues[shape] = ShapeQueue(shape)
        record.state = QUEUED
        record.lease = None
        if front:
            queue.ready.appendleft(record)
        else:
            queue.ready.append(record)
        return queue

    def remove(self, record: TaskRecord) -> bool:
        """Take a queued task out (cancelled before it was pushed)."""
        queue = self.queues.get(record.shape)
        if queue is None or record.state != QUEUED:
            return False
        try:
            queue.ready.remove(record)
        except ValueError:
            return False
        self._trim_requests(queue)
        self._forget_if_empty(queue)
        return True

    def pump(self, queue: ShapeQueue, now: float) -> None:
        """Push what fits, then ask for leases for the rest."""
        ready = queue.ready
        if ready:
            depth, kept = self._depth(queue), self._kept(queue, now)
            # With 4,000 leases a look at all of them took half a millisecond, for every task that was done.
            all_but_few_are_full = depth <= queue.filled_to and not queue.spread
            some = [lease for lease in queue.touched if lease.key in self.leases] if all_but_few_are_full else queue.leases
            queue.touched.clear()
            for lease in sorted(some, key=_turns if queue.spread else _load) if len(some) > 1 else some:
                room = depth - len(lease.in_flight)
                if room <= 0 or lease.wanted or lease.dead:
                    continue
                if not (lease.in_flight or self._is_idle(lease)):
                    queue.touched[lease] = None  # a user thread has it, and may not use it
                    continue
                shares = len(queue.leases) + kept
                if shares > 1 and len(ready) < room * shares:
                    room = max(1, min(room, -(-len(ready) // shares)))
                batch = [ready.popleft() for _ in range(min(room, len(ready) - kept))]
                if not batch:
                    break
                if not lease.in_flight:
                    lease.last_progress = now
                lease.pushed += len(batch)
                for record in batch:
                    record.state = PUSHED
                    record.lease = lease
                    record.node_id = lease.worker.node_id
                    lease.in_flight[record.task_id] = record
                if len(lease.in_flight) < depth:
                    queue.touched[lease] = None
                self.effects.push(lease, batch)
            queue.filled_to = depth if ready and not kept else 0
        missing = min(len(ready), 2 + len(queue.leases)) - len(queue.requests)
        if missing > 0:
            first = ready[0]
            queue.asked_at = now
            queue.told = len(ready)
            for _ in range(missing):
                queue.requests.append(self.effects.request_lease(queue.shape, len(ready), first.display_name, first.retries != 0))
        elif queue.requests:
            if not ready:
                self._trim_requests(queue)
            elif queue.told != len(ready) <= TOLD_EXACTLY or not queue.told < 2 * len(ready) < 4 * queue.told:
                queue.told = len(ready)
                self.effects.tell_backlog(queue.requests[-1], len(ready))
        if queue.spread and not ready:
            for lease in list(queue.leases):
                self.settle(lease)

    def _depth(self, queue: ShapeQueue) -> int:
        duration, pipeline = queue.duration_s, self.settings.pipeline_s
        if duration is None or duration >= pipeline:
            return 1
        return min(self.settings.pipeline_limit, int(pipeline / max(duration, 1e-6)) + 1)

    def _kept(self, queue: ShapeQueue, now: float) -> int:
        """Return how many tasks are left for leases that are on their way."""
        if not queue.spread or now - queue.asked_at >= SPREAD_WAIT_S:
            return 0
        return min(len(queue.requests), len(queue.ready))

    def _trim_requests(self, queue: ShapeQueue) -> None:
        while len(queue.requests) > len(queue.ready):
            self.effects.cancel_lease_request(queue.requests.pop())

    # --- leases --------------------------------------------------------------------------------------------

    def granted(self, shape: Shape, request: int, grant: LeaseGranted, now: float) -> Lease:
        """A lease came; it may come after its request was cancelled."""
        queue = self.queues.get(shape)
        if queue is None:
            queue = self.queues[shape] = ShapeQueue(shape)
        if request in queue.requests:
            queue.requests.remove(request)
        lease = Lease(grant, queue, now)
        queue.leases.append(lease)
        queue.touched[lease] = None
        self.leases[lease.key] = lease
        return lease

    def refused(self, shape: Shape, request: int) -> list[TaskRecord]:
        """The node agent will never grant this shape: return the tasks that must fail."""
        queue = self.queues.get(shape)
        if queue is None:
            return []
        if request in queue.requests:
            queue.requests.remove(request)
        failed = list(queue.ready)
        queue.ready.clear()
        self._trim_requests(queue)
        self._forget_if_empty(queue)
        return failed

    def finished(self, task_id: bytes, lease: Lease, duration_s: float, now: float) -> TaskRecord | None:
        """A reply came from the worker; None if the task was taken back or failed meanwhile."""
        record = lease.in_flight.pop(task_id, None)
        if record is None:
            return None
        lease.last_progress = now
        queue = lease.queue
        queue.touched[lease] = None
        if queue.duration_s is None:
            queue.duration_s = duration_s
        else:
            queue.duration_s += NEWEST * (duration_s - queue.duration_s)
        if not lease.in_flight:
            lease.idle_since = now
            lease.asked_back = False
        return record

    def sent(self, lease: Lease, record: TaskRecord, now: float) -> bool:
        """A user thread has sent a task on an idle lease. False if the worker is lost meanwhile."""
        if lease.key not in self.leases:
            return False
        record.state = PUSHED
        record.lease = lease
        record.node_id = lease.worker.node_id
        lease.last_progress = now
        lease.in_flight[record.task_id] = record
        return True

    def not_sent(self, lease: Lease, record: TaskRecord, now: float) -> bool:
        """What ``sent`` said is not true. False if the task was lost with the lease meanwhile, and cared for."""
        if lease.in_flight.pop(record.task_id, None) is None:
            return False
        record.lease = None
        lease.idle_since = now
        lease.queue.touched[lease] = None
        return True

    def may_offer(self, lease: Lease) -> bool:
        """Whether a user thread may send a task on the lease: nothing is there, and nothing waits for it."""
        queue = lease.queue
        return not (lease.in_flight or lease.wanted or lease.dead or queue.ready or queue.spread) and lease.key in self.leases

    def _is_idle(self, lease: Lease) -> bool:
        return not lease.in_flight and self.effects.withdraw(lease)

    def handed_back(self, lease: Lease, task_ids: Iterable[bytes], now: float) -> None:
        """The worker did not start these: they go to the front of the queue again, in their old order."""
        lease.asked_back = False
        records = [record for record in (lease.in_flight.pop(task_id, None) for task_id in task_ids) if record is not None]
        lease.queue.touched[lease] = None
        for record in reversed(records):
            self.enqueue(record, front=True)
        if not lease.in_flight:
            lease.idle_since = now

    def wanted(self, key: LeaseKey) -> None:
        """Others wait for what this lease holds."""
        lease = self.leases.get(key)
        if lease is None:
            return
        lease.wanted = True
        if self._is_idle(lease):
            self._give_back(lease)

    def give_back_idle(self) -> None:
        """This process leaves: nothing will be pushed any more. A lease that it took along would cost the worker its life."""
        for queue in list(self.queues.values()):
            self._trim_requests(queue)
        for lease in list(self.leases.values()):
            if self._is_idle(lease):
                self._give_back(lease)

    def lost(self, lease: Lease) -> list[TaskRecord]:
        """The worker is gone: forget the lease, return what was in flight in the order of pushing."""
        lease.dead = True
        self._drop(lease)
        records = list(lease.in_flight.values())
        lease.in_flight.clear()
        return records

    def retire(self, lease: Lease) -> None:
        """The worker takes no more tasks; replies to what it has may still come."""
        lease.dead = True
        if self._is_idle(lease):
            self._give_back(lease)

    def tick(self, now: float) -> bool:
        """Return idle leases and take back tasks queued behind a slow one. True while time matters."""
        for lease in list(self.leases.values()):
            if not lease.in_flight:
                queue = lease.queue
                if queue.spread and queue.ready and not (lease.wanted or lease.dead):
                    self.pump(queue, now)  # those that were kept
                    continue
                over = lease.wanted or lease.dead or (not queue.ready and now - lease.idle_since >= self.settings.lease_linger_s)
                if over and self._is_idle(lease):
                    self._give_back(lease)
            elif len(lease.in_flight) > 1 and not lease.asked_back and now - lease.last_progress >= STALL_S:
                lease.asked_back = True
                lease.queue.duration_s = max(lease.queue.duration_s or 0.0, now - lease.last_progress)
                self.effects.ask_hand_back(lease)
        return self.restless()

    def restless(self) -> bool:
        """Some lease is idle or has tasks queued behind a running one: time matters. One running task alone needs no watching; a
        thousand workers that each wait for one task must not wake up a hundred times a second.
        """
        return any(len(lease.in_flight) != 1 for lease in self.leases.values())

    def settle(self, lease: Lease) -> None:
        """After replies: return a lease that is wanted, dying or of a SPREAD shape that waits for nothing, and has nothing in flight."""
        over = lease.wanted or lease.dead or (lease.queue.spread and not lease.queue.ready)
        if over and lease.key in self.leases and self._is_idle(lease):
            self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        self._drop(lease)
        self.effects.return_lease(lease)

    def _drop(self, lease: Lease) -> None:
        if self.leases.pop(lease.key, None) is not None:
            lease.queue.leases.remove(lease)
            lease.queue.touched.pop(lease, None)
            self._forget_if_empty(lease.queue)

    def _forget_if_empty(self, queue: ShapeQueue) -> None:
        # The estimate of a shape is worth keeping only while it is in use: shapes come and go with options().
        if not queue.ready and not queue.leases and not queue.requests and self.queues.get(queue.shape) is queue:
            del self.queues[queue.shape]

    # --- looking -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants. O(tasks in flight)."""
        for key, lease in self.leases.items():
            assert lease.key == key
            assert lease in lease.queue.leases
            for task_id, record in lease.in_flight.items():
                assert record.task_id == task_id
                assert record.state == PUSHED, record.state
                assert record.lease is lease
        for shape, queue in self.queues.items():
            assert queue.shape == shape
            assert len(queue.requests) == len(set(queue.requests))
            assert all(lease.key in self.leases for lease in queue.leases)
            if queue.ready and not queue.spread:
                for lease in queue.leases:
                    assert lease in queue.touched or lease.wanted or lease.dead or len(lease.in_flight) >= queue.filled_to
            for record in queue.ready:
                assert record.state == QUEUED
                assert record.lease is None


def _load(lease: Lease) -> int:
    return len(lease.in_flight)


def _turns(lease: Lease) -> tuple[int, int]:
    return len(lease.in_flight), lease.pushed
