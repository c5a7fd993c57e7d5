"""Objects in real processes: put, get, wait, futures, large values, references inside values."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time

import numpy as np
import pytest

import shoal
from shoal.exceptions import GetTimeoutError

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("session")]

LARGE = 4 * 2**20


@shoal.remote
def echo(value):
    return value


@shoal.remote
def fail():
    raise ValueError("failed")


@shoal.remote
class Gate:
    """Holds tasks until it is opened."""

    def __init__(self):
        self.event = asyncio.Event()

    async def wait(self):
        await self.event.wait()

    async def open(self):
        self.event.set()


@shoal.remote(num_cpus=0)
def blocked(gate, value=None):
    shoal.get(gate.wait.remote())
    return value


@pytest.fixture
def gate():
    gate = Gate.options(num_cpus=0).remote()
    yield gate
    gate.open.remote()


# --- put and get ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 1, "text", b"x" * 10_000, [1, {"a": {2, 3}}], range(10), np.arange(5)])
def test_put_and_get(value):
    got = shoal.get(shoal.put(value))
    assert np.array_equal(got, value) if isinstance(value, np.ndarray) else got == value


def test_each_get_gives_a_new_object():
    ref = shoal.put([1])
    first, second = shoal.get([ref, ref])
    assert first == second == [1]
    assert first is not second


def test_put_of_a_reference_is_refused():
    with pytest.raises(TypeError):
        shoal.put(shoal.put(1))


def test_get_checks_its_argument():
    with pytest.raises(ValueError):
        shoal.get(1)
    with pytest.raises(ValueError):
        shoal.get((shoal.put(1),))
    with pytest.raises(TypeError):
        shoal.get([shoal.put(1), 2])
    assert shoal.get([]) == []


def test_get_timeout(gate):
    ref = blocked.remote(gate, 5)
    with pytest.raises(GetTimeoutError) as caught:
        shoal.get(ref, timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(GetTimeoutError):
        shoal.get(ref, timeout=0)
    gate.open.remote()
    assert shoal.get(ref, timeout=20) == 5
    assert shoal.get(ref, timeout=0) == 5


def test_failed_one_raises_without_waiting_for_the_others(gate):
    slow = blocked.remote(gate)
    with pytest.raises(ValueError, match="failed"):
        shoal.get([slow, fail.remote()], timeout=20)


def test_timeout_zero_of_a_large_value():
    ref = echo.remote(bytes(LARGE))
    shoal.wait([ref])
    assert len(shoal.get(ref, timeout=0)) == LARGE


# --- wait -------------------------------------------------------------------------------------------------


def test_wait_returns_ready_and_rest_in_input_order(gate):
    slow = blocked.remote(gate)
    done = [echo.remote(i) for i in range(3)]
    shoal.get(done)
    assert shoal.wait([done[2], slow, done[0], done[1]], num_returns=3) == ([done[2], done[0], done[1]], [slow])
    assert shoal.wait([done[2], slow, done[0]], num_returns=1) == ([done[2]], [slow, done[0]])


def test_wait_with_a_timeout(gate):
    slow = [blocked.remote(gate), blocked.remote(gate)]
    begin = time.monotonic()
    assert shoal.wait(slow, num_returns=2, timeout=0.1) == ([], slow)
    assert 0.1 <= time.monotonic() - begin < 1
    assert shoal.wait(slow, timeout=0) == ([], slow)
    gate.open.remote()
    assert shoal.wait(slow, num_returns=2, timeout=20) == (slow, [])


def test_failed_tasks_count_as_ready():
    ref = fail.remote()
    assert shoal.wait([ref], timeout=20) == ([ref], [])


def test_wait_checks_its_arguments():
    ref = shoal.put(1)
    assert shoal.wait([]) == ([], [])
    for wrong in (ref, (ref,), [1]):
        with pytest.raises(TypeError):
            shoal.wait(wrong)
    for arguments in ({"num_returns": 0}, {"num_returns": 2}, {"timeout": -1}):
        with pytest.raises(ValueError):
            shoal.wait([ref], **arguments)
    with pytest.raises(ValueError):
        shoal.wait([ref, ref])


def test_wait_for_borrowed_references(gate):
    @shoal.remote(num_cpus=0)
    def waits(refs):
        ready, rest = shoal.wait(refs, num_returns=1, timeout=20)
        return len(ready), len(rest)

    assert shoal.get(waits.remote([blocked.remote(gate), shoal.put(1)]), timeout=30) == (1, 1)


def test_wait_for_1000_in_a_loop():
    rest = [echo.remote(i) for i in range(1000)]
    seen = 0
    while rest:
        ready, rest = shoal.wait(rest, num_returns=min(10, len(rest)))
        seen += len(ready)
    assert seen == 1000


# --- large values -----------------------------------------------------------------------------------------


def test_large_results_are_shared_and_read_only():
    ref = echo.remote(np.ones(LARGE // 8))
    first, second = shoal.get([ref, ref])
    assert not first.flags.writeable
    assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
    del ref, second
    gc.collect()
    for _ in range(5):
        shoal.put(np.zeros(LARGE))
    assert first.sum() == LARGE // 8


def test_large_arguments():
    array = np.arange(LARGE // 8)
    assert np.array_equal(shoal.get(echo.remote(array)), array)

    @shoal.remote
    def facts(array, other=None):
        return array.flags.writeable, int(array.sum()), int(other.sum())

    ref = shoal.put(array)
    assert shoal.get(facts.remote(ref, other=ref)) == (False, int(array.sum()), int(array.sum()))


def test_large_several_returns():
    @shoal.remote(num_returns=2)
    def two():
        return bytes(LARGE), np.zeros(LARGE)

    first, second = shoal.get(two.remote())
    assert len(first) == len(second) == LARGE


def test_array_survives_its_producer():
    @shoal.remote(max_calls=1)
    def make():
        return np.full(LARGE, 7, dtype=np.uint8), os.getpid()

    array, _ = shoal.get(make.remote())
    assert shoal.get(echo.remote(1)) == 1
    assert (array == 7).all()


def test_large_put_and_del_in_a_loop():
    value = bytes(32 * 2**20)
    for _ in range(30):
        ref = shoal.put(value)
        assert len(shoal.get(ref)) == len(value)
        del ref


# --- references inside values -----------------------------------------------------------------------------


def test_references_in_containers_keep_objects_alive():
    outer = shoal.put({"list": [shoal.put("inner")], shoal.put("key"): 1})
    gc.collect()
    value = shoal.get(outer)
    assert shoal.get(value["list"][0]) == "inner"
    assert [shoal.get(key) for key in value if isinstance(key, shoal.ObjectRef)] == ["key"]


def test_references_through_a_task_and_back():
    ref = echo.remote([shoal.put("there and back")])
    [inner] = shoal.get(ref)
    del ref
    gc.collect()
    assert shoal.get(inner) == "there and back"


def test_reference_made_by_a_task_with_put():
    @shoal.remote
    def make(size):
        return [shoal.put(bytes(size))]

    for size in (10, LARGE):
        [ref] = shoal.get(make.remote(size))
        assert len(shoal.get(ref, timeout=20)) == size


@pytest.mark.parametrize("size", [10, LARGE])
def test_reference_made_by_a_worker_that_left(size):
    @shoal.remote(max_calls=1)
    def make():
        return [shoal.put(b"m" * size)], os.getpid()

    [ref], pid = shoal.get(make.remote())
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
    assert shoal.get(ref, timeout=20) == b"m" * size
    assert shoal.get(echo.remote(ref), timeout=20) == b"m" * size


@pytest.mark.parametrize("size", [10, LARGE])
def test_reference_to_a_task_whose_submitter_leaves(size, gate):
    @shoal.remote(max_calls=1)
    def start(gate):
        return [blocked.remote(gate, b"m" * size)]

    [ref] = shoal.get(start.remote(gate), timeout=20)
    assert shoal.get(echo.remote(1), timeout=20) == 1
    gate.open.remote()
    assert shoal.get(ref, timeout=20) == b"m" * size


def test_reference_to_a_task_of_a_task():
    @shoal.remote
    def start():
        return [echo.remote("child")]

    [ref] = shoal.get(start.remote())
    assert shoal.get(ref, timeout=20) == "child"


def test_reference_handed_down_three_levels():
    @shoal.remote
    def down(holder, n):
        return shoal.get(holder[0]) if n == 0 else shoal.get(down.remote(holder, n - 1))

    assert shoal.get(down.remote([shoal.put("deep")], 3)) == "deep"


def test_value_with_10000_references():
    refs = [shoal.put(i) for i in range(10_000)]

    @shoal.remote
    def total(refs):
        return sum(shoal.get(refs))

    assert shoal.get(total.remote(refs)) == sum(range(10_000))
    outer = shoal.put(refs)
    del refs
    gc.collect()
    assert shoal.get(shoal.get(outer)) == list(range(10_000))


def test_many_small_objects_are_freed():
    for _ in range(20_000):
        shoal.put(1)
    runtime_entries = shoal.get(shoal.put(True))
    assert runtime_entries


def test_reference_in_an_exception():
    class Carrier(Exception):
        def __init__(self, ref):
            super().__init__("carries")
            self.ref = ref

    @shoal.remote
    def throw():
        raise Carrier(shoal.put("cargo"))

    with pytest.raises(Carrier) as caught:
        shoal.get(throw.remote())
    assert shoal.get(caught.value.ref, timeout=20) == "cargo"


def test_reference_protocol():
    ref = shoal.put(1)
    assert len(ref.hex()) == 56
    assert not ref.is_nil()
    assert {ref: 1}[ref] == 1
    with pytest.raises(TypeError):
        list(ref)


# --- futures ----------------------------------------------------------------------------------------------


def test_await_and_gather():
    async def main():
        assert await echo.remote(1) == 1
        assert await shoal.put(2) == 2
        values = await asyncio.gather(*[echo.remote(i) for i in range(50)])
        assert values == list(range(50))
        with pytest.raises(ValueError, match="failed"):
            await fail.remote()
        large = await echo.remote(np.ones(LARGE))
        assert large.sum() == LARGE
        done, pending = await asyncio.wait([asyncio.ensure_future(echo.remote(3).as_future())])
        assert not pending
        assert [future.result() for future in done] == [3]

    asyncio.run(main())
    asyncio.run(main())


def test_cancelling_an_await_leaves_the_task(gate):
    async def main():
        ref = blocked.remote(gate, "later")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.05)
        gate.open.remote()
        assert await ref == "later"

    asyncio.run(main())


def test_concurrent_future():
    assert echo.remote(1).future().result(20) == 1
    assert len(echo.remote(bytes(LARGE)).future().result(20)) == LARGE
    with pytest.raises(ValueError):
        fail.remote().future().result(20)
    called = threading.Event()
    echo.remote(2).future().add_done_callback(lambda done: called.set())
    assert called.wait(20)


def test_get_from_many_threads():
    refs = [echo.remote(bytes(100_000 + i)) for i in range(40)]
    results = []
    threads = [threading.Thread(target=lambda: results.append([len(v) for v in shoal.get(refs)])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [[100_000 + i for i in range(40)]] * 6
