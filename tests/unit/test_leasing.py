"""The shell around submission: what a node agent's messages do to leases, in the order in which they come."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from shoal._base.settings import Settings
from shoal._core.wire.messages import Address, LeaseGranted, LeaseWanted, ReturnLease, Shape, TaskTemplate
from shoal._core.worker.leasing import Leasing
from shoal._core.worker.records import TaskRecord

SHAPE = Shape(b"job1", (("CPU", 10_000),))


class Agent:
    """Keeps what is sent; the test answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.answers: list[asyncio.Future[Any]] = []
        self.sent: list[Any] = []

    def request(self, message: Any) -> asyncio.Future[Any]:
        self.answers.append(self.loop.create_future())
        return self.answers[-1]

    def send(self, message: Any) -> None:
        self.sent.append(message)


def test_a_lease_wanted_back_in_the_frame_that_grants_it_is_given_back() -> None:
    loop = asyncio.new_event_loop()
    agent, worker = Agent(loop), SimpleNamespace(lease=None, send=lambda message: None)
    core = SimpleNamespace(
        loop=loop, settings=Settings(), agent=agent, agents=SimpleNamespace(get=lambda node_id: agent), closing=False,
        me=Address(b"me", b"n", "unix:me"),
        peers=SimpleNamespace(get=lambda address: worker), tasks=SimpleNamespace(wire_task=lambda peer, record: record),
    )  # fmt: skip
    leasing = Leasing(core)  # type: ignore[arg-type]
    core.flush = leasing.flush
    template = TaskTemplate(function_id=b"f", name="f", function_name="f", shape=SHAPE)
    leasing.enqueue(TaskRecord(b"t" * 24, template, b"", []))
    leasing.flush()
    # Both are read from the socket in one turn of the loop.
    agent.answers[0].set_result(LeaseGranted(0, 7, Address(b"w", b"n", "unix:w"), 1))
    leasing.on_lease_wanted(agent, LeaseWanted(7))
    loop.run_until_complete(asyncio.sleep(0))
    [lease] = leasing.submission.leases.values()
    assert lease.wanted
    assert len(lease.in_flight) == 1, "the task that waited is pushed before the lease is given back"
    leasing.submission.finished(b"t" * 24, lease, 0.001, loop.time())
    leasing.submission.settle(lease)
    assert [type(message) for message in agent.sent] == [ReturnLease]
    loop.close()
