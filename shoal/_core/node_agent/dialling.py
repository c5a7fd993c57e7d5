"""Sockets between processes of different nodes: the agent opens them, and hands them over.

    process ── Dial(address) ──▶ here: TCP to the port of its node, preamble with its id ── SocketReady(ticket) ──▶ process
    port    ── preamble with the id of one of our processes ──▶ here ── TakeSocket(ticket) ──▶ that process

What passes over them afterwards is none of this part's business.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from shoal._core.node_agent.peers import Peer
from shoal._core.transport import ConnectFailed
from shoal._core.transport.addresses import TcpAddress, parse_address
from shoal._core.transport.greeting import HANDSHAKE_TIMEOUT_S
from shoal._core.transport.handover import Handover
from shoal._core.transport.port import dial
from shoal._core.transport.preamble import target_of
from shoal._core.wire.messages import Dial, NodeRecord, SocketReady, TakeSocket

log = logging.getLogger("shoal.node_agent")


class Dialling:
    """One node's.

    Args:
        node: finds the record of a living node.
        process: finds the connection of a process of this node by its id.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handover: Handover,
        node: Callable[[bytes], NodeRecord | None],
        process: Callable[[bytes], Peer | None],
    ) -> None:
        self._loop = loop
        self._handover = handover
        self._node = node
        self._process = process
        self._under_way: set[asyncio.Task[None]] = set()

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {Dial: self._on_dial}

    def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        self._handover.close()

    def route(self, target: bytes, sock: socket.socket) -> bool:
        """Somebody of another node wants to reach one of our processes. False: it is not there."""
        connection = self._process(target)
        if connection is None or connection.closed:
            return False
        connection.send(TakeSocket(self._handover.offer(sock)))
        return True

    async def open(self, node_id: bytes, target: bytes) -> socket.socket:
        """Connect to the port of another node, for this target behind it. Raises ConnectFailed, or what is below it."""
        record = self._node(node_id)
        if record is None or not record.endpoint:
            raise ConnectFailed(f"Node {node_id.hex()} has died, or is not known here.")
        where = parse_address(record.endpoint)
        assert isinstance(where, TcpAddress)
        return await dial(self._loop, where, target, timeout_s=HANDSHAKE_TIMEOUT_S)

    def _on_dial(self, connection: Peer, message: Dial) -> None:
        task = self._loop.create_task(self._dial(connection, message))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _dial(self, connection: Peer, message: Dial) -> None:
        try:
            address = message.address
            sock = await self.open(address.node_id, target_of(address))
        except ConnectFailed as error:
            connection.fail(message.rid, "ConnectionError", f"{error}")
            return
        if connection.closed:
            sock.close()
        else:
            connection.send(SocketReady(message.rid, self._handover.offer(sock)))
