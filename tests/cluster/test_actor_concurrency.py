"""Async and threaded actors, concurrency groups, cancelling their calls."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import shoal

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("session")]


@shoal.remote(num_cpus=0)
class Sleeper:
    def __init__(self) -> None:
        self.running = self.most = 0
        self.cancelled: list[int] = []

    async def nap(self, seconds: float, number: int = 0, _arg: Any = None) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.running -= 1
        return number

    async def facts(self) -> tuple[int, list[int]]:
        return self.most, self.cancelled

    def block(self, seconds: float) -> None:
        time.sleep(seconds)

    async def read(self, box: list[Any]) -> Any:
        return await box[0]

    async def name(self) -> bool:
        return asyncio.current_task() is not None

    async def fail(self) -> None:
        raise LookupError("async trouble")

    async def task_id(self) -> str:
        await asyncio.sleep(0.01)
        return shoal.get_runtime_context().get_task_id()


def test_a_thousand_sleeps_at_once() -> None:
    sleeper = Sleeper.remote()
    shoal.get(sleeper.nap.remote(0), timeout=20)
    start = time.monotonic()
    assert shoal.get([sleeper.nap.remote(1.0, i) for i in range(1000)], timeout=30) == list(range(1000))
    assert time.monotonic() - start < 4.0
    assert shoal.get(sleeper.facts.remote())[0] == 1000


def test_max_concurrency_of_an_async_actor() -> None:
    sleeper = Sleeper.options(max_concurrency=3).remote()
    shoal.get([sleeper.nap.remote(0.05) for _ in range(10)], timeout=20)
    assert shoal.get(sleeper.facts.remote())[0] == 3


def test_async_basics() -> None:
    sleeper = Sleeper.remote()
    assert shoal.get(sleeper.name.remote(), timeout=20) is True
    assert shoal.get(sleeper.read.remote([shoal.put("value")])) == "value"
    assert shoal.get(sleeper.read.remote([sleeper.nap.remote(0.1, 5)])) == 5, "an actor may wait for itself"
    with pytest.raises(LookupError, match="async trouble"):
        shoal.get(sleeper.fail.remote())
    big = shoal.put(b"x" * 2_000_000)
    assert shoal.get([sleeper.nap.remote(0.0, i, big) for i in range(200)], timeout=30) == list(range(200))
    ids = shoal.get([sleeper.task_id.remote() for _ in range(20)])
    assert len(set(ids)) == 20, "each call sees its own context"


def test_a_sync_method_blocks_the_loop() -> None:
    sleeper = Sleeper.remote()
    shoal.get(sleeper.nap.remote(0), timeout=20)
    start = time.monotonic()
    sleeper.block.remote(0.5)
    shoal.get(sleeper.nap.remote(0), timeout=20)
    assert time.monotonic() - start >= 0.45


def test_an_async_call_does_not_wait_for_the_arguments_of_another() -> None:
    @shoal.remote
    def slow() -> int:
        time.sleep(1.0)
        return 1

    sleeper = Sleeper.remote()
    shoal.get(sleeper.nap.remote(0), timeout=20)
    late = sleeper.nap.remote(0, 1, slow.remote())
    early = sleeper.nap.remote(0, 2)
    done, _ = shoal.wait([late, early], num_returns=1, timeout=20)
    assert done == [early]
    assert shoal.get(late, timeout=20) == 1


def test_cancel_reaches_the_coroutine() -> None:
    sleeper = Sleeper.remote()
    shoal.get(sleeper.nap.remote(0), timeout=20)
    ref = sleeper.nap.remote(60, 7)
    time.sleep(0.2)
    shoal.cancel(ref)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        shoal.get(ref, timeout=10)
    assert shoal.get(sleeper.facts.remote())[1] == [7]
    with pytest.raises(ValueError):
        shoal.cancel(sleeper.nap.remote(0.1), force=True)
    with pytest.raises(TypeError):
        shoal.cancel(sleeper)


def test_cancel_at_any_moment_always_answers() -> None:
    sleeper = Sleeper.options(max_concurrency=5).remote()
    for _ in range(20):
        refs = [sleeper.nap.remote(0.01, i) for i in range(30)]
        for ref in refs[::2]:
            shoal.cancel(ref)
        for ref in refs[::2]:
            try:
                shoal.get(ref, timeout=20)
            except shoal.exceptions.TaskCancelledError:
                pass
        assert shoal.get(refs[1::2], timeout=20) == list(range(1, 30, 2))
    assert shoal.get(sleeper.nap.remote(0, 3), timeout=10) == 3


def test_cancel_of_calls_that_wait() -> None:
    @shoal.remote(num_cpus=0)
    class Plain:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def work(self, number: int, seconds: float = 0.0) -> int:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not shoal.get_runtime_context().is_canceled():
                time.sleep(0.01)
            self.seen.append(number)
            return number

        def all(self) -> list[int]:
            return self.seen

    plain = Plain.remote()
    shoal.get(plain.work.remote(0), timeout=20)
    first = plain.work.remote(1, 0.5)
    second, third = plain.work.remote(2), plain.work.remote(3)
    shoal.cancel(second)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        shoal.get(second, timeout=20)
    assert shoal.get([first, third], timeout=20) == [1, 3]
    running = plain.work.remote(4, 30)
    time.sleep(0.2)
    shoal.cancel(running)  # only a flag, which the method reads
    start = time.monotonic()
    shoal.wait([running], timeout=10)
    assert time.monotonic() - start < 5
    assert 2 not in shoal.get(plain.all.remote(), timeout=10)


def test_threads() -> None:
    @shoal.remote(num_cpus=0, max_concurrency=4)
    class Threaded:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.running = self.most = 0

        def work(self, seconds: float) -> str:
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(seconds)
            with self.lock:
                self.running -= 1
            return shoal.get_runtime_context().get_task_id()

        def peak(self) -> int:
            return self.most

        def stream(self, n: int) -> Any:
            yield from range(n)

        def nested(self, k: int) -> int:
            return k if k == 0 else shoal.get(shoal.get_runtime_context().current_actor.nested.remote(k - 1)) + 1

    actor = Threaded.remote()
    ids = shoal.get([actor.work.remote(0.1) for _ in range(12)], timeout=20)
    assert len(set(ids)) == 12
    assert shoal.get(actor.peak.remote()) == 4
    streams = [actor.stream.remote(20) for _ in range(4)]
    assert [[shoal.get(ref) for ref in stream] for stream in streams] == [list(range(20))] * 4
    assert shoal.get(actor.nested.remote(3), timeout=20) == 3


@pytest.mark.parametrize("kind", ["threaded", "async"])
def test_concurrency_groups(kind: str) -> None:
    class Grouped:
        def __init__(self) -> None:
            self.event = threading.Event()

        @shoal.method(concurrency_group="io")
        def fast(self) -> str:
            return "fast"

        def plain(self) -> str:
            return "plain"

        @shoal.method(concurrency_group="compute")
        def hold(self, seconds: float) -> str:
            time.sleep(seconds)
            return "held"

    class GroupedAsync:
        @shoal.method(concurrency_group="io")
        async def fast(self) -> str:
            return "fast"

        async def plain(self) -> str:
            return "plain"

        @shoal.method(concurrency_group="compute")
        async def hold(self, seconds: float) -> str:
            await asyncio.sleep(seconds)
            return "held"

    cls = Grouped if kind == "threaded" else GroupedAsync
    actor = shoal.remote(num_cpus=0, concurrency_groups={"io": 2, "compute": 1})(cls).remote()
    shoal.get(actor.plain.remote(), timeout=20)
    start = time.monotonic()
    held = [actor.hold.remote(0.5) for _ in range(2)]
    assert shoal.get([actor.fast.remote() for _ in range(20)], timeout=20) == ["fast"] * 20
    assert shoal.get(actor.plain.remote()) == "plain"
    assert time.monotonic() - start < 0.45, "a full group does not hold up another"
    assert shoal.get(actor.hold.options(concurrency_group="io").remote(0.0)) == "held"
    assert shoal.get(held, timeout=20) == ["held"] * 2
    assert time.monotonic() - start >= 0.95, "one at a time in the group of one"
    with pytest.raises(ValueError, match="no concurrency group"):
        actor.fast.options(concurrency_group="nothing").remote()
