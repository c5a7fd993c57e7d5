"""A process that dropped its last handle of an actor and gets one again treats the actor as the first time."""

from __future__ import annotations

import asyncio

import pytest

import shoal

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]

LIMIT = 5


@shoal.remote(num_cpus=0, max_pending_calls=LIMIT)
class Concurrent:
    """Runs calls in any order, and no more than LIMIT of one process wait."""

    def __init__(self):
        self.gate = asyncio.Event()

    async def echo(self, value):
        return value

    async def wait(self):
        await self.gate.wait()

    async def open(self):
        self.gate.set()


@shoal.remote(num_cpus=0)
class Holder:
    """The process in which handles come and go: each call gets one, and drops it at its end."""

    def fill(self, box):
        return shoal.get([box[0].echo.remote(number) for number in range(LIMIT)])

    def overfill(self, box):
        refs = [box[0].wait.remote() for _ in range(LIMIT)]
        with pytest.raises(shoal.exceptions.PendingCallsLimitExceeded):
            box[0].echo.remote("too many")
        return refs

    def overtake(self, box):
        late = box[0].echo.remote(box[1])
        return shoal.get(box[0].echo.remote("first"), timeout=20), [late]


def test_calls_of_earlier_handles_do_not_count_as_pending(fresh_session):
    fresh_session()
    actor, holder = Concurrent.remote(), Holder.remote()
    for _ in range(20):
        assert shoal.get(holder.fill.remote([actor])) == list(range(LIMIT))
    refs = shoal.get(holder.overfill.remote([actor]))
    shoal.get(actor.open.remote())
    assert shoal.get(refs) == [None] * LIMIT


def test_calls_still_overtake_each_other(fresh_session):
    fresh_session()
    actor, gate, holder = Concurrent.remote(), Concurrent.remote(), Holder.remote()
    for _ in range(10):
        shoal.get(holder.fill.remote([actor]))
    later = gate.wait.remote()
    value, [late] = shoal.get(holder.overtake.remote([actor, later]))
    assert value == "first"
    shoal.get(gate.open.remote())
    assert shoal.get(late) is None
