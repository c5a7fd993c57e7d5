"""Objects that lie here and are owned elsewhere: what their owner's end leads to, whenever it is heard of; the clock is virtual."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal._core.node_agent.remote_processes import RemoteProcesses
from shoal._core.wire.messages import Address
from shoal.testing.virtual_loop import run_virtual

ME, OTHER = Address(b"me", b"me", "unix:me"), Address(b"other", b"other", "")
GRACE_S = 1.0


class Surroundings:
    """The store, what is adopted, and the other nodes, played by the test."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Any] = {}
        self.objects: list[tuple[Address, bytes]] = []
        self.killed: list[bytes] = []
        self.asked: list[bytes] = []

    def owners(self) -> list[tuple[Address, bytes]]:
        return self.objects

    def owner_killed(self, worker_id: bytes) -> None:
        self.killed.append(worker_id)
        self.objects = []

    def borrower_ended(self, worker_id: bytes) -> None:
        assert worker_id in self.killed

    async def ask(self, node_id: bytes, message: Any) -> None:
        self.asked.append(node_id)


def run(scenario: Any) -> None:
    async def main() -> None:
        around: Any = Surroundings()
        remote = RemoteProcesses(asyncio.get_running_loop(), ME, around, around, around, around.nodes.get, lambda: (), GRACE_S)
        try:
            await scenario(around, remote)
        finally:
            remote.close()

    run_virtual(main())


async def until(condition: Any) -> None:
    async with asyncio.timeout(100):
        while not condition():
            await asyncio.sleep(0.01)


def test_an_owner_whose_node_had_left_before_its_object_came_is_over() -> None:
    """An agent: nobody is asked for its end, and the word of its node's was said before. The object stayed for ever (fault seed 4664)."""

    async def scenario(around: Surroundings, remote: RemoteProcesses) -> None:
        around.objects = [(OTHER, b"o" * 28)]
        remote.tick()
        await until(lambda: around.killed == [OTHER.worker_id])
        assert around.asked == []

    run(scenario)


def test_an_agent_lives_as_long_as_its_node() -> None:
    async def scenario(around: Surroundings, remote: RemoteProcesses) -> None:
        around.nodes[OTHER.node_id] = object()
        around.objects = [(OTHER, b"o" * 28)]
        remote.tick()
        await asyncio.sleep(10.0)
        assert (around.asked, around.killed) == ([], [])
        remote.nodes_died([OTHER.node_id])
        assert around.killed == [OTHER.worker_id]

    run(scenario)


def test_a_node_that_is_only_so_new_that_it_is_not_known_yet_has_not_left() -> None:
    async def scenario(around: Surroundings, remote: RemoteProcesses) -> None:
        around.objects = [(OTHER, b"o" * 28)]
        remote.tick()
        await asyncio.sleep(0)
        around.nodes[OTHER.node_id] = object()
        await asyncio.sleep(10.0)
        assert around.killed == []

    run(scenario)
