"""The worker pool: events in, instructions out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from shoal._core.node_agent.pool import RetireWorker, StartFailed, StartWorker, State, UseWorker, WorkerDemand, WorkerPool


class Hands:
    """Performs what the pool says, and remembers who serves which lease."""

    def __init__(self, prestart: int = 0, max_starting: int = 4, *, rests: bool = False) -> None:
        names = count()
        self.pool = WorkerPool(prestart, max_starting, 2.0, lambda: b"w%d" % next(names), rests)
        self.starting: list[bytes] = []
        self.serving: dict[int, bytes] = {}
        self.retired: list[bytes] = []
        self.failed: list[int] = []
        self.now = 0.0
        self.lease = 0
        self.perform(self.pool.refill())

    def perform(self, instructions: Iterable[object]) -> None:
        for one in instructions:
            if isinstance(one, StartWorker):
                self.starting.append(one.worker_id)
            elif isinstance(one, UseWorker):
                self.serving[one.lease_id] = one.worker.worker_id
            elif isinstance(one, RetireWorker):
                self.retired.append(one.worker.worker_id)
            elif isinstance(one, StartFailed):
                self.failed.append(one.lease_id)
        self.pool.check()

    def ready(self, number: int = 1) -> None:
        for _ in range(number):
            self.perform(self.pool.registered(self.starting.pop(0), 1, self.now))

    def all_ready(self) -> None:
        while self.starting:
            self.ready()

    def demand(self, job: bytes = b"j", env: str = "", gpus: tuple[int, ...] = (), actor: bool = False) -> int:
        self.lease += 1
        devices = (("GPU", gpus),) if gpus else ()
        self.perform(self.pool.assign(WorkerDemand(self.lease, job, env, devices, actor)))
        return self.lease

    def serve(self, **demand: object) -> bytes:
        lease = self.demand(**demand)  # type: ignore[arg-type]
        self.all_ready()
        return self.serving[lease]

    def release(self, worker: bytes) -> None:
        self.perform(self.pool.released(worker, self.now))

    def exit(self, worker: bytes) -> None:
        if worker in self.starting:
            self.starting.remove(worker)
        self.perform(self.pool.exited(worker)[1])


def test_a_lease_waits_for_a_worker_to_start() -> None:
    hands = Hands()
    lease = hands.demand()
    assert hands.serving == {}
    hands.ready()
    assert hands.serving == {lease: b"w0"}


def test_starts_are_bounded_and_go_on_as_workers_come_up() -> None:
    hands = Hands(max_starting=2)
    for _ in range(5):
        hands.demand()
    assert len(hands.starting) == 2
    hands.ready()
    assert len(hands.starting) == 2
    hands.all_ready()
    assert len(hands.serving) == 5


def test_the_reserve_is_filled_at_the_start_and_after_use() -> None:
    hands = Hands(prestart=2)
    hands.all_ready()
    assert hands.pool.statistics().fresh == 2
    hands.demand()
    assert hands.serving
    assert len(hands.starting) == 1


def test_a_node_that_rests_keeps_no_reserve_until_it_is_asked() -> None:
    hands = Hands(prestart=2, rests=True)
    hands.perform(hands.pool.tick(100.0))
    assert hands.starting == []
    hands.serve()
    assert hands.pool.statistics().fresh == 2


def test_a_driver_fills_the_reserve_of_a_node_that_rests() -> None:
    hands = Hands(prestart=2, rests=True)
    hands.perform(hands.pool.wake())
    hands.all_ready()
    assert hands.pool.statistics().fresh == 2


def test_the_reserve_goes_when_nothing_has_run_for_long_and_comes_back_with_work() -> None:
    hands = Hands(prestart=2, rests=True)
    worker = hands.serve()
    for now in (10.0, 90.0):  # a lease that lasts
        hands.perform(hands.pool.tick(now))
    hands.now = 90.0
    hands.release(worker)
    hands.perform(hands.pool.tick(91.0))
    hands.perform(hands.pool.tick(150.5))
    assert hands.retired == [worker], "idle, and warm"
    hands.perform(hands.pool.tick(151.0))
    assert len(hands.retired) == 3
    for ended in hands.retired:
        hands.exit(ended)
    assert hands.starting == []
    assert not hands.pool.workers
    hands.serve()
    assert hands.pool.statistics().fresh == 2


def test_the_reserve_of_a_node_with_a_driver_of_its_own_stays() -> None:
    hands = Hands(prestart=2)
    hands.all_ready()
    for now in (1.0, 1000.0, 2000.0):
        hands.perform(hands.pool.tick(now))
    assert hands.pool.statistics().fresh == 2


def test_the_reserve_waits_until_the_leases_are_served() -> None:
    hands = Hands(prestart=2, max_starting=8)
    for worker in list(hands.starting):
        hands.pool.ending(worker)
    hands.starting.clear()
    for _ in range(3):
        hands.demand()
    assert len(hands.starting) == 3
    hands.all_ready()
    assert len(hands.serving) == 3
    assert hands.pool.statistics().fresh == 2


def test_reuse_within_job_environment_and_devices() -> None:
    hands = Hands()
    first = hands.serve()
    hands.release(first)
    assert hands.serve() == first
    hands.release(first)
    others = [hands.serve(job=b"k"), hands.serve(env="{}"), hands.serve(gpus=(0,)), hands.serve(gpus=(1,))]
    assert len({first, *others}) == 5
    hands.release(others[2])
    assert hands.serve(gpus=(0,)) == others[2]


def test_the_warmest_worker_is_taken() -> None:
    hands = Hands()
    first, second = hands.serve(), hands.serve()
    hands.release(first)
    hands.now = 1.0
    hands.release(second)
    assert hands.serve() == second


def test_actors_get_fresh_workers_even_if_they_have_to_wait() -> None:
    hands = Hands()
    used = hands.serve()
    hands.release(used)
    assert hands.serve(actor=True) != used
    hands.pool.prestart = 1
    hands.perform(hands.pool.refill())
    hands.all_ready()
    again = hands.serve()
    hands.release(again)
    assert hands.serve(actor=True) != again


def test_an_idle_worker_serves_a_lease_that_waits_for_a_start() -> None:
    hands = Hands()
    worker = hands.serve()
    lease = hands.demand()
    hands.release(worker)
    assert hands.serving[lease] == worker


def test_a_finished_jobs_worker_is_not_reused() -> None:
    hands = Hands()
    idle, busy = hands.serve(), hands.serve()
    hands.release(idle)
    assert {one.worker_id for one in hands.pool.job_finished(b"j")} == {idle, busy}
    assert hands.pool.workers[idle].state is State.ENDING
    hands.release(busy)
    assert hands.retired == [busy]
    assert hands.serve() not in (idle, busy)


def test_surplus_idle_workers_retire_soon_and_warm_ones_late() -> None:
    hands = Hands()
    workers = [hands.serve() for _ in range(3)]
    hands.pool.prestart = 1
    for worker in workers:
        hands.release(worker)
    hands.perform(hands.pool.tick(1.0))
    assert hands.retired == []
    hands.perform(hands.pool.tick(2.5))
    assert len(hands.retired) == 2
    hands.perform(hands.pool.tick(100.0))
    assert len(hands.retired) == 3


def test_a_worker_that_dies_while_starting_is_replaced_and_then_given_up() -> None:
    hands = Hands()
    lease = hands.demand()
    for _ in range(2):
        hands.exit(hands.starting[0])
        assert len(hands.starting) == 1
    hands.exit(hands.starting[0])
    assert hands.failed == [lease]
    assert hands.starting == []


def test_a_withdrawn_lease_gets_no_worker() -> None:
    hands = Hands()
    lease = hands.demand()
    assert hands.pool.withdraw(lease)
    hands.all_ready()
    assert hands.serving == {}
    assert hands.pool.statistics().fresh == 1


def test_an_ending_worker_is_left_alone() -> None:
    hands = Hands()
    worker = hands.serve()
    hands.pool.ending(worker)
    hands.release(worker)
    assert hands.serve() != worker
    hands.exit(worker)
    assert worker not in hands.pool.workers


def test_a_closed_pool_starts_nothing() -> None:
    hands = Hands()
    hands.pool.close()
    hands.demand()
    assert hands.starting == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=60))
def test_any_history_serves_each_lease_with_a_worker_of_its_own(steps: list[tuple[int, int]]) -> None:
    hands = Hands(prestart=1, max_starting=3, rests=len(steps) % 2 == 0)
    for kind, number in steps:
        hands.now += 0.3
        live = [worker for worker in hands.pool.workers.values() if worker.state is State.LEASED]
        if kind == 0:
            hands.demand(job=b"j%d" % (number % 2), actor=number % 5 == 0)
        elif kind == 1 and hands.starting:
            hands.ready()
        elif kind == 2 and live:
            hands.release(live[number % len(live)].worker_id)
        elif kind == 3 and hands.pool.workers:
            hands.exit(sorted(hands.pool.workers)[number % len(hands.pool.workers)])
        elif kind == 4:
            hands.perform(hands.pool.tick(hands.now))
        elif kind == 5 and number % 3 == 0:
            hands.pool.job_finished(b"j%d" % (number % 2))
        hands.pool.check()
    hands.all_ready()
    assert hands.lease == len(hands.serving) + len(hands.failed)
