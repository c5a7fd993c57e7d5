"""What user threads post to the I/O thread: when it runs, and that nobody who posts can keep the loop."""

from __future__ import annotations

import asyncio

import pytest

from shoal._core.worker.inbox import LATER_S, MEANWHILE, Inbox


def run(scenario):
    """``scenario(inbox, batches)``; ``batches``: what ran, as it was when each batch ended."""

    async def main():
        batches: list[list[object]] = [[]]
        inbox = Inbox(asyncio.get_running_loop(), lambda: batches.append([]))
        try:
            await asyncio.wait_for(scenario(inbox, batches), 20)
        finally:
            inbox.close()

    asyncio.run(main())


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def test_whoever_posts_faster_than_it_runs_does_not_keep_the_loop():
    async def scenario(inbox, batches):
        turns = 0

        def again(number):
            batches[-1].append(number)
            if number < 5 * MEANWHILE:
                inbox.post(again, number + 1)

        inbox.post(again, 0)
        while not inbox.idle():
            await asyncio.sleep(0)
            turns += 1
        assert [number for batch in batches for number in batch] == list(range(5 * MEANWHILE + 1))
        assert max(map(len, batches)) == MEANWHILE + 1
        assert turns >= 5, "the loop had its turn between any two batches"

    run(scenario)


def test_what_is_queued_together_runs_in_order_and_ends_with_one_word():
    async def scenario(inbox, batches):
        for number in range(3):
            inbox.post(lambda n: batches[-1].append(n), number)
        inbox.post_later(lambda n: batches[-1].append(n), 3)
        assert not inbox.idle()
        await until(inbox.idle)
        assert batches == [[0, 1, 2, 3], []]

    run(scenario)


def test_what_can_wait_runs_a_little_later_without_another_post():
    async def scenario(inbox, batches):
        loop = asyncio.get_running_loop()
        began = loop.time()
        inbox.post(lambda _: None, None)
        await until(inbox.idle)
        inbox.post_later(lambda n: batches[-1].append(n), "later")
        await until(inbox.idle)
        assert batches == [[], ["later"], []]
        assert loop.time() - began >= LATER_S

    run(scenario)


def test_those_behind_one_that_fails_run_without_another_post():
    async def scenario(inbox, batches):
        failures = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context["exception"]))

        def fail(_):
            raise ValueError("of the test")

        inbox.post(fail, None)
        inbox.post(lambda n: batches[-1].append(n), 1)
        await until(lambda: [1] in batches)
        assert [str(error) for error in failures] == ["of the test"]

    run(scenario)


def test_what_was_posted_is_run_before_it_closes_and_nothing_afterwards():
    async def scenario(inbox, batches):
        inbox.post(lambda n: batches[-1].append(n), 1)
        inbox.close()
        assert batches == [[1], []]
        inbox.post(lambda n: pytest.fail("ran"), 2)
        await asyncio.sleep(0)

    run(scenario)
