"""Signals that come while the main thread makes calls: handlers that make calls themselves, and Ctrl-C at any moment."""

from __future__ import annotations

import itertools
import random
import signal
import time

import pytest

import shoal
from shoal._base import runtime as holder
from shoal.testing import fresh_cluster, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]

#: Python drops an interrupt that comes inside of __del__, and with it one count of a reference: nothing can be done about that.
DROPPED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@shoal.remote
def double(number):
    return 2 * number


@shoal.remote
class Doubler:
    def double(self, number):
        return 2 * number


@pytest.fixture
def cluster():
    with fresh_cluster(faults=False) as cluster:
        yield cluster


@pytest.fixture
def alarm():
    """Set the handler of SIGALRM and the seconds until it comes, once."""
    before = signal.getsignal(signal.SIGALRM)

    def after(seconds, handler):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield after
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["tasks", "actor calls"])
def test_a_handler_may_make_calls_and_wait_for_them(cluster, alarm, kind):
    method = double if kind == "tasks" else Doubler.remote().double
    draw = random.Random(7)
    numbers = itertools.count()
    inner = {}

    def handler(_number, _frame):  # which may be interrupted by the next signal's
        number = next(numbers)
        inner[number] = shoal.get(method.remote(number), timeout=30)

    shoal.get(method.remote(0))
    begin = time.monotonic()
    for number in range(2000):
        if number % 4 == 0:
            alarm(draw.uniform(1e-6, 4e-4), handler)
        assert shoal.get(method.remote(number), timeout=30) == 2 * number
        if time.monotonic() - begin > 20:
            break
    wait_for(lambda: len(inner) > 10)
    assert inner == {number: 2 * number for number in range(len(inner))}


@DROPPED
@pytest.mark.parametrize("kind", ["tasks", "actor calls"])
def test_ctrl_c_at_any_moment_leaves_a_session_that_works(cluster, alarm, kind):
    method = double if kind == "tasks" else Doubler.remote().double
    draw = random.Random(11)
    interrupted = 0
    for number in range(400):
        try:
            alarm(draw.uniform(1e-6, 4e-4), signal.default_int_handler)
            for again in range(20):
                assert shoal.get(method.remote(number + again), timeout=30) == 2 * (number + again)
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted > 100
    assert shoal.get([method.remote(number) for number in range(100)], timeout=30) == [2 * number for number in range(100)]
    wait_for(lambda: shoal.available_resources().get("CPU") == 2.0, 20, "the return of the CPUs")


@DROPPED
def test_ctrl_c_in_the_first_call_of_a_function_leaves_a_function_that_can_be_called(cluster, alarm):
    draw = random.Random(5)
    interrupted = 0
    for number in range(300):

        @shoal.remote
        def fresh(value, offset=number):
            return value + offset

        try:
            alarm(draw.uniform(1e-6, 4e-4), signal.default_int_handler)
            fresh.remote(0)
            time.sleep(0.1)
        except KeyboardInterrupt:
            interrupted += 1
        assert shoal.get(fresh.remote(1), timeout=30) == number + 1
    assert interrupted > 250


@shoal.remote
def read_again_and_again(box):
    while True:
        values = shoal.get(box[0])
        del values


def test_a_cancelled_task_holds_no_reference(cluster):
    draw = random.Random(3)
    box = shoal.put([shoal.put(number) for number in range(5)])
    for _ in range(60):
        ref = read_again_and_again.remote([box])
        time.sleep(draw.uniform(0.003, 0.012))
        shoal.cancel(ref)
        with pytest.raises(shoal.exceptions.TaskCancelledError):
            shoal.get(ref, timeout=20)
    entries = holder.current().core.objects.own.entries
    wait_for(lambda: not any(entry.borrowers for entry in list(entries.values())), 20, "the end of all borrowing")
