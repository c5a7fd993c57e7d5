"""Tasks in, lease requests and pushes out."""

from __future__ import annotations

import random

from shoal._base.settings import Settings
from shoal._core.wire.messages import Address, LeaseGranted, Shape, TaskTemplate
from shoal._core.worker.records import TaskRecord
from shoal._core.worker.submission import SPREAD_WAIT_S, STALL_S, Lease, Submission

SHAPE = Shape(b"job0", (("CPU", 10000),))
TEMPLATE = TaskTemplate(b"f" * 28, "f", "m.f", SHAPE)


class Shell:
    """Writes down what the state asks for."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.backlogs: list[tuple[int, int]] = []
        self.cancelled: list[int] = []
        self.pushed: list[tuple[int, list[bytes]]] = []
        self.returned: list[int] = []
        self.asked_back: list[int] = []
        #: Leases on which a user thread has just sent a task.
        self.taken: set[int] = set()

    def tell_backlog(self, request: int, backlog: int) -> None:
        self.backlogs.append((request, backlog))

    def request_lease(self, shape: Shape, backlog: int, name: str, retriable: bool) -> int:
        self.requests.append(len(self.requests))
        return self.requests[-1]

    def cancel_lease_request(self, request: int) -> None:
        self.cancelled.append(request)

    def push(self, lease: Lease, records: list[TaskRecord]) -> None:
        self.pushed.append((lease.id, [record.task_id for record in records]))

    def withdraw(self, lease: Lease) -> bool:
        return lease.id not in self.taken

    def return_lease(self, lease: Lease) -> None:
        self.returned.append(lease.id)

    def ask_hand_back(self, lease: Lease) -> None:
        self.asked_back.append(lease.id)


def make() -> tuple[Submission, Shell]:
    shell = Shell()
    return Submission(Settings(), shell), shell


def task(number: int) -> TaskRecord:
    return TaskRecord(number.to_bytes(24, "big"), TEMPLATE, b"", [])


def enqueue(state: Submission, *records: TaskRecord, now: float = 0.0) -> None:
    for record in records:
        queue = state.enqueue(record)
    state.pump(queue, now)


def grant(state: Submission, request: int, lease_id: int = 1, now: float = 0.0) -> Lease:
    lease = state.granted(SHAPE, request, LeaseGranted(request, lease_id, Address(b"w", b"n", "unix:x"), 1), now)
    state.pump(lease.queue, now)
    return lease


def test_a_ready_task_asks_for_a_lease_and_is_pushed_when_it_comes():
    state, shell = make()
    enqueue(state, task(1))
    assert shell.requests == [0]
    lease = grant(state, 0)
    assert shell.pushed == [(1, [task(1).task_id])]
    state.check()
    assert lease.in_flight.keys() == {task(1).task_id}


def test_a_shape_of_unknown_duration_is_pushed_one_at_a_time():
    state, shell = make()
    enqueue(state, *[task(i) for i in range(5)])
    grant(state, 0)
    assert [len(ids) for _, ids in shell.pushed] == [1]


def test_short_tasks_are_pipelined():
    state, shell = make()
    enqueue(state, *[task(i) for i in range(100)])
    lease = grant(state, 0)
    state.finished(task(0).task_id, lease, 0.0001, 0.001)
    state.pump(lease.queue, 0.001)
    assert len(shell.pushed[-1][1]) == 21  # 2 ms of work at 100 us each, and one


def test_long_tasks_are_not_pipelined():
    state, _ = make()
    enqueue(state, *[task(i) for i in range(10)])
    lease = grant(state, 0)
    state.finished(task(0).task_id, lease, 1.0, 1.0)
    state.pump(lease.queue, 1.0)
    assert len(lease.in_flight) == 1


def test_requests_that_are_not_needed_any_more_are_cancelled():
    state, shell = make()
    enqueue(state, task(1), task(2))
    assert shell.requests == [0, 1]
    lease = grant(state, 0)
    state.finished(task(1).task_id, lease, 0.0001, 0.001)
    state.pump(lease.queue, 0.001)
    assert shell.cancelled == [1]


def test_an_idle_lease_is_returned_after_a_while():
    state, shell = make()
    enqueue(state, task(1))
    lease = grant(state, 0)
    state.finished(task(1).task_id, lease, 0.0001, 1.0)
    assert state.tick(1.01)
    assert shell.returned == []
    assert not state.tick(1.0 + Settings().lease_linger_s + 0.001)
    assert shell.returned == [1]
    assert state.queues == {}


def test_a_wanted_lease_is_returned_when_it_has_drained():
    state, shell = make()
    enqueue(state, task(1), task(2))
    lease = grant(state, 0)
    state.wanted((b"n", 1))
    state.finished(task(1).task_id, lease, 0.0001, 0.0)
    state.pump(lease.queue, 0.0)
    state.settle(lease)
    assert shell.returned == [1]
    assert [ids for _, ids in shell.pushed] == [[task(1).task_id]]


def test_tasks_behind_a_slow_one_are_taken_back_and_keep_their_order():
    state, shell = make()
    enqueue(state, *[task(i) for i in range(4)])
    lease = grant(state, 0)
    state.finished(task(0).task_id, lease, 0.0005, 0.0)
    state.pump(lease.queue, 0.0)
    assert len(lease.in_flight) == 3
    state.tick(STALL_S + 0.001)
    assert shell.asked_back == [1]
    state.handed_back(lease, [task(2).task_id, task(3).task_id], 0.1)
    assert [record.task_id for record in lease.queue.ready] == [task(2).task_id, task(3).task_id]
    state.check()


def test_a_lease_with_one_running_task_needs_no_watching():
    state, _ = make()
    enqueue(state, task(1))
    grant(state, 0)
    assert not state.restless()


def test_a_lost_worker_gives_its_tasks_in_the_order_of_pushing():
    state, _ = make()
    enqueue(state, *[task(i) for i in range(4)])
    lease = grant(state, 0)
    state.finished(task(0).task_id, lease, 0.0001, 0.0)
    state.pump(lease.queue, 0.0)
    assert [record.task_id for record in state.lost(lease)] == [task(i).task_id for i in (1, 2, 3)]
    assert state.leases == {}
    state.check()


SPREAD = Shape(b"job0", (), ("SPREAD",))
SPREAD_TEMPLATE = TaskTemplate(b"f" * 28, "f", "m.f", SPREAD)


def spread_task(number: int) -> TaskRecord:
    return TaskRecord(number.to_bytes(24, "big"), SPREAD_TEMPLATE, b"", [])


def spread_grant(state: Submission, request: int, now: float = 0.0) -> Lease:
    lease = state.granted(SPREAD, request, LeaseGranted(request, request, Address(b"w", b"n", "unix:x"), 1), now)
    state.pump(lease.queue, now)
    return lease


def test_spread_leaves_a_task_for_each_lease_on_its_way():
    state, shell = make()
    enqueue(state, *[spread_task(i) for i in range(3)])
    first = spread_grant(state, 0)
    state.finished(spread_task(0).task_id, first, 0.00001, 0.001)
    state.pump(first.queue, 0.001)
    assert shell.pushed == [(0, [spread_task(0).task_id])], "the others are on their way"
    assert shell.requests == [0, 1, 2]
    spread_grant(state, 2, 0.002)
    spread_grant(state, 1, 0.003)
    assert [lease for lease, _ in shell.pushed] == [0, 2, 1]
    assert shell.returned == [0]
    state.check()


def test_spread_does_not_wait_for_leases_that_do_not_come():
    state, shell = make()
    enqueue(state, *[spread_task(i) for i in range(3)])
    lease = spread_grant(state, 0)
    state.finished(spread_task(0).task_id, lease, 0.00001, 0.001)
    state.pump(lease.queue, 0.001)
    assert state.tick(0.9 * SPREAD_WAIT_S)
    assert len(shell.pushed) == 1
    state.tick(1.1 * SPREAD_WAIT_S)
    assert [len(ids) for _, ids in shell.pushed] == [1, 2]
    state.check()


def test_a_spread_lease_goes_back_as_soon_as_it_has_nothing_to_do():
    state, shell = make()
    enqueue(state, spread_task(0))
    lease = spread_grant(state, 0)
    state.finished(spread_task(0).task_id, lease, 0.00001, 0.001)
    assert not state.may_offer(lease)
    state.pump(lease.queue, 0.001)
    assert shell.returned == [0]
    late = spread_grant(state, 1, 0.002)
    assert shell.returned == [0, 1], "granted after its task was done elsewhere"
    assert late.key not in state.leases
    state.check()


def test_random_histories_finish_every_task_once():
    for seed in range(200):
        rng = random.Random(seed)
        state, shell = make()
        finished: list[bytes] = []
        leases: list[Lease] = []
        answered, now, number = 0, 0.0, 0
        for _ in range(150):
            now += rng.random() * 0.01
            choice = rng.random()
            if choice < 0.3:
                count = rng.randint(1, 5)
                enqueue(state, *[task(number + i) for i in range(count)], now=now)
                number += count
            elif choice < 0.5 and answered < len(shell.requests):
                leases.append(grant(state, answered, 100 + answered, now))
                answered += 1
            elif choice < 0.6 and leases:
                lease = leases.pop(rng.randrange(len(leases)))
                if lease.id in state.leases:
                    for record in state.lost(lease):
                        enqueue(state, record, now=now)
            elif leases:
                lease = rng.choice(leases)
                if lease.in_flight and lease.id in state.leases:
                    task_id = next(iter(lease.in_flight))
                    assert state.finished(task_id, lease, rng.random() * 0.003, now) is not None
                    finished.append(task_id)
                    state.pump(lease.queue, now)
            state.tick(now)
            state.check()
        assert len(finished) == len(set(finished))


def test_agents_hear_how_many_wait_each_of_a_few_and_when_many_have_doubled_or_halved():
    state, shell = make()
    for number in range(1000):
        enqueue(state, task(number))
    assert len(shell.requests) == 2
    assert [backlog for _, backlog in shell.backlogs] == [*range(3, 11), 20, 40, 80, 160, 320, 640]
    assert {request for request, _ in shell.backlogs} == {shell.requests[-1]}
    shell.backlogs.clear()
    (queue,) = state.queues.values()
    for record in list(queue.ready)[10:]:
        assert state.remove(record)
    state.pump(queue, 0.0)
    assert shell.backlogs == [(shell.requests[-1], 10)]
