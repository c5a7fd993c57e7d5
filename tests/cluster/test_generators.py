"""Streaming and dynamic generators in real processes."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest

import shoal
from shoal import ObjectRefGenerator
from shoal.testing import wait_for

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("session")]


@shoal.remote
def numbers(n, fail_at=None, size=0):
    for i in range(n):
        if i == fail_at:
            raise ValueError(f"at {i}")
        yield np.full(size, i) if size else i


def test_items_in_order():
    stream = numbers.remote(100)
    assert isinstance(stream, ObjectRefGenerator)
    assert [shoal.get(ref) for ref in stream] == list(range(100))
    with pytest.raises(StopIteration):
        next(stream)


def test_empty_stream():
    assert list(numbers.remote(0)) == []


def test_large_items():
    assert [int(shoal.get(ref)[-1]) for ref in numbers.remote(10, size=200_000)] == list(range(10))


def test_items_arrive_before_the_end():
    @shoal.remote
    class Gate:
        def __init__(self):
            self.event = asyncio.Event()

        async def wait(self):
            await self.event.wait()

        async def open(self):
            self.event.set()

    gate = Gate.options(num_cpus=0).remote()

    @shoal.remote
    def two():
        yield 1
        shoal.get(gate.wait.remote())
        yield 2

    stream = two.remote()
    assert shoal.get(next(stream)) == 1
    assert not stream.next_ready()
    assert not stream.is_finished()
    gate.open.remote()
    assert shoal.get(next(stream)) == 2
    assert list(stream) == []


def test_error_is_the_last_item():
    stream = numbers.remote(5, fail_at=2)
    refs = list(stream)
    assert shoal.get(refs[:2]) == [0, 1]
    assert len(refs) == 3
    with pytest.raises(ValueError, match="at 2"):
        shoal.get(refs[2])
    with pytest.raises(ValueError, match="at 2"):
        shoal.get(stream.completed())


def test_error_that_was_read_is_not_reported_as_unread(capfd):
    *_, last = numbers.remote(2, fail_at=1)
    with pytest.raises(ValueError):
        shoal.get(last)
    del last, _
    gc.collect()
    shoal.get(shoal.put(bytes(200_000)))  # a round trip through the I/O thread
    list(numbers.remote(1))
    assert "Unhandled error" not in capfd.readouterr().err


def test_error_before_the_first_item():
    refs = list(numbers.remote("wrong"))
    assert len(refs) == 1
    with pytest.raises(TypeError):
        shoal.get(refs[0])


def test_failed_argument_of_a_stream():
    @shoal.remote
    def fail():
        raise KeyError("argument")

    refs = list(numbers.remote(fail.remote()))
    assert len(refs) == 1
    with pytest.raises(KeyError):
        shoal.get(refs[0])


def test_completed():
    stream = numbers.remote(3)
    assert shoal.get(stream.completed(), timeout=20) is None
    assert len(list(stream)) == 3


def test_backpressure(tmp_path):
    log = tmp_path / "log"

    @shoal.remote(_generator_backpressure_num_objects=2)
    def logged():
        for i in range(10):
            with open(log, "a") as file:
                file.write("x")
            yield i

    stream = logged.remote()
    wait_for(lambda: log.exists() and len(log.read_text()) >= 2)
    assert shoal.get(next(stream)) == 0
    assert len(log.read_text()) <= 4
    assert [shoal.get(ref) for ref in stream] == list(range(1, 10))
    assert len(log.read_text()) == 10


def test_wait_on_streams():
    stream = numbers.remote(3)
    assert shoal.wait([stream], timeout=20) == ([stream], [])
    assert shoal.get(next(stream)) == 0
    other = shoal.put(1)
    ready, rest = shoal.wait([stream, other], num_returns=2, timeout=20)
    assert (ready, rest) == ([stream, other], [])
    assert len(list(stream)) == 2


def test_get_returns_a_stream_unchanged():
    stream = numbers.remote(2)
    assert shoal.get(stream) is stream
    list(stream)


def test_dropped_early(tmp_path):
    done = tmp_path / "done"

    @shoal.remote(_generator_backpressure_num_objects=1)
    def long():
        for i in range(20):
            yield np.full(100_000, i)
        done.touch()

    stream = long.remote()
    assert shoal.get(next(stream))[0] == 0
    del stream
    gc.collect()
    wait_for(done.exists)


def test_items_outlive_the_stream():
    stream = numbers.remote(4, size=100_000)
    refs = list(stream)
    del stream
    gc.collect()
    assert [int(shoal.get(ref)[0]) for ref in refs] == [0, 1, 2, 3]


def test_items_as_arguments():
    @shoal.remote
    def double(x):
        return 2 * x

    assert shoal.get([double.remote(ref) for ref in numbers.remote(5)]) == [0, 2, 4, 6, 8]


def test_items_hold_references():
    @shoal.remote
    def boxed():
        for i in range(3):
            yield [shoal.put(i)]

    assert [shoal.get(shoal.get(ref)[0]) for ref in boxed.remote()] == [0, 1, 2]


def test_async_iteration():
    async def main():
        seen = [await ref async for ref in numbers.remote(20)]
        assert seen == list(range(20))
        errors = []
        async for ref in numbers.remote(3, fail_at=1):
            try:
                await ref
            except ValueError as error:
                errors.append(str(error))
        assert len(errors) == 1

    asyncio.run(main())


def test_stream_inside_a_task():
    @shoal.remote
    def total(n):
        return sum(shoal.get(ref) for ref in numbers.remote(n))

    assert shoal.get(total.remote(10), timeout=20) == 45


def test_streams_are_not_serializable():
    stream = numbers.remote(1)
    with pytest.raises(TypeError):
        shoal.put([stream])
    list(stream)


def test_two_streams_at_once():
    pairs = zip(numbers.remote(50), numbers.remote(50), strict=True)
    assert all(shoal.get(a) == shoal.get(b) for a, b in pairs)


def test_stream_of_an_actor():
    @shoal.remote
    class Source:
        def count(self, n):
            yield from range(n)

        async def later(self, n):
            for i in range(n):
                yield i

    source = Source.remote()
    with pytest.raises(TypeError):
        next(source.count)
    assert [shoal.get(ref) for ref in source.later.remote(5)] == list(range(5))


def test_stream_of_a_synchronous_actor():
    @shoal.remote
    class Source:
        def count(self, n):
            yield from range(n)

    source = Source.remote()
    assert [shoal.get(ref) for ref in source.count.remote(5)] == list(range(5))


def test_worker_dies_in_the_middle_of_a_stream(tmp_path):
    log = tmp_path / "log"

    @shoal.remote(max_retries=1)
    def fragile():
        import os

        for i in range(6):
            if i == 3 and not log.exists():
                log.touch()
                os._exit(1)
            yield i

    assert [shoal.get(ref) for ref in fragile.remote()] == list(range(6))


def test_dynamic():
    @shoal.remote(num_returns="dynamic")
    def squares(n):
        for i in range(n):
            yield i * i

    refs = shoal.get(squares.remote(4))
    assert [shoal.get(ref) for ref in refs] == [0, 1, 4, 9]


def test_dynamic_that_fails():
    @shoal.remote(num_returns="dynamic")
    def broken():
        yield 1
        raise ValueError("broken")

    ref = broken.remote()
    with pytest.raises(ValueError, match="broken"):
        [shoal.get(item) for item in shoal.get(ref)]
