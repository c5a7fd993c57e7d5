"""How a process reaches other processes: on its own node by their Unix sockets, on other nodes by its node agent.

    connect(address) ── Dial ──▶ agent ── TCP, preamble ──▶ agent of the other node ── TakeSocket ──▶ the process
                     ◀── ticket, handover.sock: the socket                 the socket: handover.sock ──▶
                     ═══ handshake, messages ═══════════════════════════════════════════════════════

I/O thread only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from shoal._core.transport import ConnectFailed, Connection, OnClose, OnMessage, RequestFailed, SocketTransport, Transport
from shoal._core.transport.handover import fetch
from shoal._core.wire.messages import Address, Dial, TakeSocket

log = logging.getLogger(__name__)


class Connector(Protocol):
    """What the core needs to reach others and be reached."""

    async def connect(self, address: Address, on_message: OnMessage, on_close: OnClose) -> Connection:
        """Connect to the process at this address, on whatever node. Raises OSError (ConnectFailed)."""

    def on_take_socket(self, _channel: Any, message: TakeSocket) -> None:
        """The node agent has a socket of somebody who wants to reach us."""

    def close(self) -> None:
        """Hang up on those who are not in yet. A descriptor that outlives its loop closes, later, one that is not its own any more."""


class DirectConnector:
    """Every address can be reached as it is: one node, or a simulation."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def connect(self, address: Address, on_message: OnMessage, on_close: OnClose) -> Connection:
        return await self._transport.connect(address.address, on_message, on_close)

    def on_take_socket(self, _channel: Any, message: TakeSocket) -> None:
        raise TypeError("no node agent hands over sockets here")

    def close(self) -> None:
        """Nothing is open that is not a connection."""


class NodeConnector:
    """Reaches processes of other nodes by way of the node agent, once there is a connection to it (``agent``)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: SocketTransport,
        agent: Connection,
        me: Address,
        handover_path: str,
        accept: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._agent = agent
        self._node_id = me.node_id
        self._path = handover_path
        self._welcome, self._hang_up = transport.welcomer("a process of this node", me.worker_id, accept)
        self._taking: set[asyncio.Task[None]] = set()

    async def connect(self, address: Address, on_message: OnMessage, on_close: OnClose) -> Connection:
        if address.node_id == self._node_id:
            return await self._transport.connect(address.address, on_message, on_close)
        try:
            ready = await self._agent.request(Dial(0, address))
        except RequestFailed as error:
            raise ConnectFailed(error.message) from None
        sock = await fetch(self._loop, self._path, ready.ticket)
        name = f"process {address.worker_id.hex()[:12]} of node {address.node_id.hex()[:12]}"
        return await self._transport.greet(sock, name, on_message, on_close, target=address.worker_id)

    def close(self) -> None:
        for taking in self._taking:
            taking.cancel()
        self._hang_up()

    def on_take_socket(self, _channel: Any, message: TakeSocket) -> None:
        taking = self._loop.create_task(self._take(message.ticket))
        self._taking.add(taking)
        taking.add_done_callback(self._taking.discard)

    async def _take(self, ticket: bytes) -> None:
        try:
            self._welcome(await fetch(self._loop, self._path, ticket))
        except ConnectFailed as error:  # whoever it was hears that the connection ends
            log.warning("A connection from another node was lost: %s", error)
