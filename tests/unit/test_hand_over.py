"""The last step of a process that leaves by plan: others have read all that it said before it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shoal._base.settings import Settings
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.wire.messages import DRAINED, Address, Cause, Message, ProcessExiting
from shoal._core.worker.connector import DirectConnector
from shoal._core.worker.core import Core
from shoal._core.worker.hand_over import hand_over

ME = Address(b"w" * 16, b"n" * 16, "memory:me")


class Agent:
    """Takes what is said to it."""

    def __init__(self) -> None:
        self.closed = False

    def send(self, message: Message) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Caller:
    """An owner whose loop is busy: it reads when the test lets it."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.closed = False
        self.on_close: Callable[[Any], None] = lambda _connection: None

    def send(self, message: Message) -> None:
        self.heard.append(message)

    def close(self) -> None:
        self.closed = True


def test_a_process_that_owns_nothing_waits_as_well_until_its_callers_have_read_its_replies() -> None:
    """It ended 5 ms later, whether they had or not: replies that did not fit the socket yet were lost, and the calls with them."""
    asyncio.run(leave_with_a_busy_caller())


async def leave_with_a_busy_caller() -> None:
    loop = asyncio.get_running_loop()
    transport = MemoryTransport(MemoryNetwork(loop), "me")
    core = Core(
        loop=loop, transport=transport, connector=DirectConnector(transport), settings=Settings(), me=ME, job_id=b"job1", runs_tasks=True,
        on_agent_lost=lambda: None, on_token=lambda token: None,
    )  # fmt: skip
    core.agent, core.agent_address = Agent(), Address(b"n" * 16, b"n" * 16, "")  # type: ignore[assignment]
    caller = Caller()
    core.accept(caller)  # type: ignore[arg-type]
    cause = Cause(DRAINED, "Its node leaves.")
    leaving = loop.create_task(hand_over(core, cause))
    while not (caller.heard or leaving.done()):
        await asyncio.sleep(0)
    assert caller.heard == [ProcessExiting(cause)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert not core.agent.closed, "the node agent kills who hangs up on it and stays"
    assert not caller.closed
    caller.on_close(caller)
    async with asyncio.timeout(30):
        await leaving
    assert core.agent.closed
