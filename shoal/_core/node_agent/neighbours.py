"""What this node's agent says to the agents of other nodes, over one connection to each that is made at its first use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from shoal._core.node_agent.peers import Peer
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import Address, FreeObjects, Message, NodeRecord, PromoteCopy

log = logging.getLogger("shoal.node_agent")


class Neighbours:
    """One node's. Used on the loop.

    Args:
        node: finds the record of a living node.
        connect: opens (or reuses) the connection to an agent. Raises OSError.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: Callable[[bytes], NodeRecord | None],
        connect: Callable[[Address], Awaitable[Peer]],
    ) -> None:
        self._loop = loop
        self._node = node
        self._connect = connect
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(self, node_id: bytes, message: Any) -> Any:
        """Return the answer of a node's agent. Raises OSError (it is dead, or cannot be reached, or was lost meanwhile), RequestFailed."""
        record = self._node(node_id)
        if record is None:
            raise ConnectionError(f"Node {node_id.hex()} has died.")
        return await (await self._connect(_agent_of(record))).request(message)

    def tell(self, node_id: bytes, message: Message) -> None:
        """Send to a node's agent. One that is dead needs to know nothing any more."""
        task = self._loop.create_task(self._tell(node_id, message))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def promote(self, node_id: bytes, message: PromoteCopy) -> bool:
        """Have a node make its copy the primary one; False: it has none, or cannot be reached."""
        try:
            await self.ask(node_id, message)
        except (OSError, RequestFailed):
            return False
        return True

    def free_copies(self, copies: Mapping[bytes, list[bytes]]) -> None:
        """Objects are gone here: the nodes (keys) may drop their copies."""
        for node_id, object_ids in copies.items():
            self.tell(node_id, FreeObjects(object_ids, primaries=False))

    def free_primaries(self, node_id: bytes, object_ids: list[bytes]) -> None:
        """Nobody holds these objects any more, whose owner's end this agent has seen; their primary copies are on that node."""
        self.tell(node_id, FreeObjects(object_ids))

    async def settled(self) -> None:
        """Wait until all that was to be told has been sent, or cannot be."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def close(self) -> None:
        for task in self._under_way:
            task.cancel()

    async def _tell(self, node_id: bytes, message: Message) -> None:
        record = self._node(node_id)
        if record is None:
            return
        try:
            connection = await self._connect(_agent_of(record))
        except OSError as error:
            log.debug("Node %s is not told %s: %s", record.name, type(message).__name__, error)
        else:
            connection.send(message)


def _agent_of(node: NodeRecord) -> Address:
    return Address(node.node_id, node.node_id, node.endpoint)
