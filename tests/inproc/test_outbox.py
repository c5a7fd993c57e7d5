"""Group commit over a storage that is elsewhere: the loop goes on, order is kept, nothing leaves before its commit."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shoal._core.control_store import outbox as outboxes
from shoal._core.control_store.outbox import Outbox
from shoal._core.control_store.storage import Change, Deposed, MemoryStorage, StorageUnavailable
from shoal._core.wire.messages import Ack


class Elsewhere(MemoryStorage):
    """Each ``apply`` waits for ``go``, and fails with what is in ``problems`` first."""

    is_remote = True

    def __init__(self):
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.problems = []
        self.batches = []
        self.current = True

    def is_current(self):
        return self.current

    def apply(self, changes):
        self.begun.release()
        assert self.go.acquire(timeout=30)
        if self.problems:
            raise self.problems.pop(0)
        self.batches.append(list(changes))
        super().apply(changes)


class Inbox:
    """A connection that keeps what is sent over it."""

    def __init__(self):
        self.rids = []

    def send(self, message):
        self.rids.append(message.rid)


def change(n):
    return Change("t", b"k", b"%d" % n)


def run(scenario):
    """Run the scenario on a loop, with a storage, an outbox over it and a connection."""

    async def main():
        storage, inbox = Elsewhere(), Inbox()
        outbox = Outbox(asyncio.get_running_loop(), storage)
        async with asyncio.timeout(30):
            await scenario(storage, outbox, inbox)

    asyncio.run(main())


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def test_what_gathers_during_a_commit_is_the_next_one():
    async def scenario(storage, outbox, inbox):
        outbox.write(change(0))
        outbox.send(inbox, Ack(0))
        await until(lambda: storage.begun.acquire(blocking=False))
        for n in range(1, 4):
            outbox.write(change(n))
            outbox.send(inbox, Ack(n))
            await asyncio.sleep(0)
        outbox.send(inbox, Ack(4))  # nothing stands behind it, and it must not overtake
        await asyncio.sleep(0)
        assert inbox.rids == []
        storage.go.release()
        await until(lambda: inbox.rids)
        assert inbox.rids == [0]
        storage.go.release()
        await until(lambda: len(inbox.rids) == 5)
        assert inbox.rids == [0, 1, 2, 3, 4]
        assert storage.batches == [[change(0)], [change(1), change(2), change(3)]]
        assert outbox.commits == 2
        outbox.close()

    run(scenario)


@pytest.mark.parametrize("problem", [StorageUnavailable("no answer"), OSError("no space")])
def test_what_failed_is_written_again_with_what_came_meanwhile(problem, monkeypatch):
    monkeypatch.setattr(outboxes, "RETRY_COMMIT_S", 0.0)

    async def scenario(storage, outbox, inbox):
        storage.problems = [problem]
        outbox.write(change(0))
        outbox.send(inbox, Ack(0))
        await until(lambda: storage.begun.acquire(blocking=False))
        outbox.write(change(1))
        outbox.send(inbox, Ack(1))
        storage.go.release()
        await until(lambda: storage.begun.acquire(blocking=False))
        assert inbox.rids == []
        storage.go.release()
        await until(lambda: len(inbox.rids) == 2)
        assert storage.batches == [[change(0), change(1)]]
        assert inbox.rids == [0, 1]
        outbox.close()

    run(scenario)


def test_nobody_is_told_anything_by_a_deposed_control_store():
    async def scenario(storage, outbox, inbox):
        told = []
        outbox.on_deposed = told.append
        storage.problems = [Deposed("another one leads")]
        outbox.write(change(0))
        outbox.send(inbox, Ack(0))
        await until(lambda: storage.begun.acquire(blocking=False))
        outbox.send(inbox, Ack(1))
        storage.go.release()
        await until(lambda: told)
        outbox.write(change(2))
        outbox.send(inbox, Ack(2))
        await asyncio.sleep(0)
        outbox.close()
        assert inbox.rids == []
        assert storage.batches == []
        assert len(told) == 1

    run(scenario)


def test_reads_wait_while_another_may_have_taken_over(monkeypatch):
    monkeypatch.setattr(outboxes, "HOLD_S", 0.0)

    async def scenario(storage, outbox, inbox):
        storage.current = False
        outbox.send(inbox, Ack(0))
        for _ in range(5):
            await asyncio.sleep(0)
        assert inbox.rids == []
        storage.current = True
        await until(lambda: inbox.rids)
        outbox.close()

    run(scenario)


def test_closing_writes_and_sends_what_is_left():
    async def scenario(storage, outbox, inbox):
        outbox.write(change(0))
        outbox.send(inbox, Ack(0))
        await until(lambda: storage.begun.acquire(blocking=False))
        outbox.write(change(1))
        outbox.send(inbox, Ack(1))
        storage.go.release(3)
        outbox.close()
        assert inbox.rids == [0, 1]
        assert storage.get("t", b"k") == b"1"

    run(scenario)
