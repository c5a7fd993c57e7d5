"""Virtual time jumps, order is fixed, and a program that waits for ever is told so."""

from __future__ import annotations

import asyncio
import time

import pytest

from shoal.testing.virtual_loop import Deadlock, VirtualLoop, run_virtual


def test_time_jumps() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    started = time.perf_counter()
    assert run_virtual(main()) == 3600
    assert time.perf_counter() - started < 1


def test_timers_fire_at_their_time() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        fired: list[float] = []
        for delay in (0.3, 0.1, 0.2, 1e-9, 100_000.0):
            loop.call_later(delay, lambda delay=delay: fired.append(delay))
        loop.call_later(0.15, print).cancel()
        await asyncio.sleep(200_000)
        return fired

    assert run_virtual(main()) == [1e-9, 0.1, 0.2, 0.3, 100_000.0]


def test_deadlock_names_the_waiting_tasks() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.create_task(stuck(), name="the stuck one")

    with pytest.raises(Deadlock, match=r"2 tasks wait for ever \(seed 7\)[\s\S]*the stuck one  .*stuck  .*test_virtual_loop.py"):
        run_virtual(main(), seed=7)


def test_timeouts_and_leftover_tasks() -> None:
    ended = []

    async def background() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(True)

    async def main() -> None:
        task = asyncio.create_task(background())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        assert asyncio.get_running_loop().time() == 5
        assert not task.done()

    run_virtual(main())
    assert ended == [True]


def test_advance_and_settle() -> None:
    with VirtualLoop() as loop:
        fired: list[str] = []
        loop.call_later(1, fired.append, "one")
        loop.call_later(3, fired.append, "three")
        loop.call_soon(fired.append, "now")
        loop.settle()
        assert fired == ["now"]
        assert loop.time() == 0
        loop.advance(2)
        assert fired == ["now", "one"]
        assert loop.time() == 2


def test_same_seed_same_run() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        order: list[float] = []

        async def walk(name: int) -> None:
            for _ in range(5):
                await asyncio.sleep(loop.random.random())
                order.append(name + loop.time())

        await asyncio.gather(*(walk(name) for name in range(10)))
        return order

    assert run_virtual(main(), 1) == run_virtual(main(), 1)
    assert run_virtual(main(), 1) != run_virtual(main(), 2)


def test_executor_runs_inline() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(lambda: None)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await loop.run_in_executor(None, lambda: 42)

    assert run_virtual(main()) == 42
