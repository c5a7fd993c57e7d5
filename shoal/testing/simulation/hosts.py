"""Who can reach whom between simulated hosts: Unix sockets lead to processes of the same host; others are dialled through the agents.

    P ── Dial ──▶ its agent: is the node known, does its port answer? ── SocketReady(where) ──▶ P ── connects to where

The descriptor that real agents hand over is an address here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.peers import Peer
from shoal._core.transport import Connection, OnClose, OnMessage
from shoal._core.transport.errors import ConnectFailed, RequestFailed
from shoal._core.transport.greeting import HANDSHAKE_TIMEOUT_S
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.wire.messages import Address, Dial, Message, ProcessExiting, SocketReady, TakeSocket


class HostTransport(MemoryTransport):
    """The transport of an endpoint that lies on a host."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        super().__init__(network, name)
        self.network = network

    async def connect(self, address: str, on_message: OnMessage, on_close: OnClose | None = None, *, timeout_s: float = 5.0) -> Connection:
        network = self.network
        if address.startswith("unix:") and network.host_of(network.where(address)) != network.host_of(self.name):
            raise ConnectFailed(f"Cannot connect to {address}: there is no such socket on {network.host_of(self.name)}.")
        return await super().connect(address, on_message, on_close, timeout_s=timeout_s)


class SimulatedConnector:
    """Stands for ``worker.connector.NodeConnector``."""

    def __init__(self, _loop: Any, transport: HostTransport, agent: Connection, me: Address, _path: str, _accept: Any) -> None:
        self._transport = transport
        self._agent = agent
        self._node_id = me.node_id

    async def connect(self, address: Address, on_message: OnMessage, on_close: OnClose) -> Connection:
        if address.node_id == self._node_id:
            return await self._transport.connect(address.address, on_message, on_close)
        try:
            ready = await self._agent.request(Dial(0, address))
        except RequestFailed as error:
            raise ConnectFailed(error.message) from None
        dialled = MemoryTransport(self._transport.network, self._transport.name)
        return await dialled.connect(ready.ticket.decode(), on_message, on_close)

    def on_take_socket(self, _channel: Any, message: TakeSocket) -> None:
        raise TypeError("nobody hands over sockets here")

    def close(self) -> None:
        """Nothing is open that is not a connection."""


class SimulatedDialling:
    """Stands for ``node_agent.dialling.Dialling``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, network: MemoryNetwork, endpoint: str, view: ClusterView) -> None:
        self._loop = loop
        self._network = network
        self._endpoint = endpoint
        self._view = view
        self._under_way: set[asyncio.Task[None]] = set()

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {Dial: self._on_dial}

    def close(self) -> None:
        for task in self._under_way:
            task.cancel()

    def _on_dial(self, connection: Peer, message: Dial) -> None:
        task = self._loop.create_task(self._dial(connection, message))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _dial(self, connection: Peer, message: Dial) -> None:
        address = message.address
        record = self._view.get(address.node_id)
        try:
            if record is None:
                raise ConnectFailed(f"Node {address.node_id.hex()} has died, or is not known here.")
            opened = await MemoryTransport(self._network, self._endpoint).connect(
                record.endpoint, no_message, timeout_s=HANDSHAKE_TIMEOUT_S
            )
        except ConnectFailed as error:
            connection.fail(message.rid, "ConnectionError", f"{error}")
            return
        opened.close()
        target = record.endpoint if address.worker_id == address.node_id else address.address
        connection.send(SocketReady(message.rid, target.encode()))


def no_message(connection: Connection, message: Message) -> None:
    """What an agent or store does with messages that it did not ask for."""
    if isinstance(message, ProcessExiting):  # its objects are the node agent's now
        connection.finish()
        return
    logging.getLogger("shoal.head").error("A %s came from %s unasked.", type(message).__name__, connection.peer)
