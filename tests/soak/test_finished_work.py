"""What is over costs nothing: memory, descriptors, threads, tables and logs stay flat over finished tasks, actor calls and actors.

The first tenth fills caches and pools; what is used then must do for the rest.
"""

from __future__ import annotations

import time

import pytest

import shoal
from tests.soak.measures import check_driver, sample, scaled

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


@shoal.remote
def add_one(number):
    return number + 1


@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self, *arguments):
        self.count = 0

    def add(self, number):
        self.count += number
        return self.count


@shoal.remote(num_cpus=0, max_pending_calls=100)
class AsyncCounter:
    async def add(self, number):
        return number


def growth(context, progress, amount, batch_size, work, unit):
    """Do ``amount`` pieces of work with ``work(size)``; return what is larger at the end than after a tenth."""
    early, began = None, time.monotonic()
    for done in range(batch_size, amount + batch_size, batch_size):
        work(batch_size)
        if done * 10 // amount != (done - batch_size) * 10 // amount:
            now = sample(context)
            progress(f"{done} {unit}, {done / (time.monotonic() - began):.0f}/s; {now}")
            early = early or now
    check_driver()
    return now.grown(early)


def test_finished_tasks(soak_session, progress):
    context = soak_session()

    def work(size):
        assert sum(shoal.get([add_one.remote(number) for number in range(size)])) == size * (size + 1) // 2

    assert growth(context, progress, scaled(1_000_000, 10_000), 1000, work, "tasks") == []


def test_finished_tasks_with_references_and_arrays(soak_session, progress):
    """Small values, stored values, nested references and errors; each batch drops all it made."""
    context = soak_session()

    @shoal.remote
    def hold(box):
        return shoal.get(box[0]), box

    @shoal.remote(max_retries=0)
    def fail():
        raise ValueError("on purpose")

    def work(size):
        stored = shoal.put(bytes(200_000))
        held = [hold.remote([stored]) for _ in range(size // 10)]
        chain = add_one.remote(0)
        for _ in range(size // 10):
            chain = add_one.remote(chain)
        failed = [fail.remote() for _ in range(size // 10)]
        ready, _ = shoal.wait(failed, num_returns=len(failed))
        for ref in ready:
            with pytest.raises(ValueError, match="on purpose"):
                shoal.get(ref)
        assert shoal.get(chain) == size // 10 + 1
        assert all(len(value) == 200_000 and box[0] == stored for value, box in shoal.get(held))

    assert growth(context, progress, scaled(50_000, 1000), 100, work, "tasks") == []


def test_actor_calls(soak_session, progress):
    context = soak_session()
    counters = [Counter.remote() for _ in range(2)]

    def work(size):
        before = shoal.get([counter.add.remote(0) for counter in counters])
        shoal.get([counters[number % 2].add.remote(1) for number in range(size)])
        after = shoal.get([counter.add.remote(0) for counter in counters])
        assert sum(after) - sum(before) == size

    assert growth(context, progress, scaled(100_000, 1000), 1000, work, "calls") == []


def test_actors_created_and_ended(soak_session, progress):
    """By their last handle, by kill, by exit_actor in a call; plain and async, named and not."""
    context = soak_session()

    @shoal.remote(num_cpus=0)
    class Leaver:
        def leave(self):
            shoal.actor.exit_actor()

    def work(size):
        quarter = size // 4
        argument = shoal.put(1)
        dropped = [Counter.remote(argument) for _ in range(quarter)]
        killed = [Counter.options(name=f"counter {number}").remote([argument]) for number in range(quarter)]
        concurrent = [AsyncCounter.remote() for _ in range(quarter)]
        left = [Leaver.remote() for _ in range(size - 3 * quarter)]
        assert shoal.get([actor.add.remote(1) for actor in [*dropped, *killed, *concurrent]]) == [1] * (3 * quarter)
        for actor in killed:
            shoal.kill(actor)
        refs = [actor.leave.remote() for actor in left]
        shoal.wait(refs, num_returns=len(refs))
        for ref in refs:
            with pytest.raises(shoal.exceptions.ActorDiedError):
                shoal.get(ref)

    assert growth(context, progress, scaled(10_000, 200), 20, work, "actors") == []
