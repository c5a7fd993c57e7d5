"""Connections from this process to other drivers and workers, one per process, opened on first use.

A ``Peer`` can be sent to before its connection stands: messages wait. When a connection cannot be made or is lost, the peer is
forgotten, its requests fail with ``ConnectionLost``, and ``on_lost`` is told once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shoal._core.transport import Connection, ConnectionLost
from shoal._core.wire.messages import Address, DefineTemplate, Message, TaskTemplate

from .connector import Connector

#: Templates remembered per connection before numbering starts again.
TEMPLATE_LIMIT = 4096


class Peer:
    """One other process."""

    def __init__(self, peers: Peers, address: Address) -> None:
        self._peers = peers
        self.address = address
        self.connection: Connection | None = None
        self._backlog: list[tuple[Message, asyncio.Future[Any] | None]] | None = []
        self._templates: dict[int, tuple[int, TaskTemplate]] = {}
        #: The lease under which tasks are pushed over this connection, and the actor whose calls go over it; set by the shells.
        self.lease: Any = None
        self.calls: Any = None
        #: It is told that no call comes any more: none may follow, whichever thread would send it.
        self.takes_calls = True
        self._when_connected: list[Callable[[], None]] = []
        #: What was to be sent when it turned out that no connection can be made.
        self.undelivered: list[Message] = []

    @property
    def lost(self) -> bool:
        return self._backlog is None and (self.connection is None or self.connection.closed)

    @property
    def left(self) -> bool:
        """Whether it has handed its objects to the node agent, who answers for it from now on."""
        return self.connection is not None and self.connection.finishing

    def when_connected(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once the connection stands: at once if it does, never if it cannot be made."""
        if self.connection is not None:
            callback()
        else:
            self._when_connected.append(callback)

    def send(self, message: Message) -> None:
        if self.connection is not None:
            self.connection.send(message)
        elif self._backlog is not None:
            self._backlog.append((message, None))

    def request(self, message: Any) -> asyncio.Future[Any]:
        if self.connection is not None:
            return self.connection.request(message)
        future: asyncio.Future[Any] = self._peers.loop.create_future()
        if self._backlog is not None:
            self._backlog.append((message, future))
        else:
            future.set_exception(ConnectionLost(f"{self.address.address} is gone"))
        return future

    def known_template(self, template: TaskTemplate) -> int | None:
        """Return the number of a template that was sent. Any thread."""
        known = self._templates.get(id(template))
        return None if known is None else known[0]

    def template_index(self, template: TaskTemplate) -> int:
        """Return the number that stands for ``template`` on this connection, defining it first if need be."""
        known = self._templates.get(id(template))
        if known is not None:
            return known[0]
        if len(self._templates) >= TEMPLATE_LIMIT:
            self._templates.clear()
        index = len(self._templates)
        self._templates[id(template)] = (index, template)
        self.send(DefineTemplate(index, template))
        return index

    def _connected(self, connection: Connection) -> None:
        self.connection = connection
        backlog, self._backlog = self._backlog or [], None
        for message, future in backlog:
            if future is None:
                connection.send(message)
            else:
                _forward(connection.request(message), future)
        callbacks, self._when_connected = self._when_connected, []
        for callback in callbacks:
            callback()

    def _failed(self, error: BaseException) -> None:
        backlog, self._backlog = self._backlog or [], None
        self.undelivered = [message for message, future in backlog if future is None]
        for _, future in backlog:
            if future is not None and not future.done():
                future.set_exception(ConnectionLost(f"{self.address.address} cannot be reached: {error}"))


def _forward(source: asyncio.Future[Any], target: asyncio.Future[Any]) -> None:
    def copy(done: asyncio.Future[Any]) -> None:
        if target.done():
            return
        if done.cancelled():
            target.cancel()
        elif (error := done.exception()) is not None:
            target.set_exception(error)
        else:
            target.set_result(done.result())

    source.add_done_callback(copy)


class Peers:
    """All of them. I/O thread only."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connector: Connector,
        on_message: Callable[[Peer, Message], None],
        on_batch_end: Callable[[], None],
        on_lost: Callable[[Peer], None],
    ) -> None:
        self.loop = loop
        self._connector = connector
        self._on_message = on_message
        self._on_batch_end = on_batch_end
        self._on_lost = on_lost
        self._by_worker: dict[bytes, Peer] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False

    def get(self, address: Address) -> Peer:
        """Return the peer, starting to connect if it is new."""
        peer = self._by_worker.get(address.worker_id)
        if peer is None:
            peer = self._by_worker[address.worker_id] = Peer(self, address)
            task = self.loop.create_task(self._connect(peer))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        return peer

    def known(self, worker_id: bytes) -> Peer | None:
        return self._by_worker.get(worker_id)

    async def _connect(self, peer: Peer) -> None:
        def message(_connection: Connection, message: Message) -> None:
            self._on_message(peer, message)

        def closed(_connection: Connection) -> None:
            self._forget(peer)

        try:
            connection = await self._connector.connect(peer.address, message, closed)
        except (OSError, ConnectionLost, TimeoutError) as error:
            peer._failed(error)
            self._forget(peer)
            return
        connection.on_batch_end = self._on_batch_end
        peer._connected(connection)

    def _forget(self, peer: Peer) -> None:
        if self._by_worker.get(peer.address.worker_id) is peer:
            del self._by_worker[peer.address.worker_id]
        if not self._closed:
            self._on_lost(peer)

    def abort(self, node_ids: set[bytes]) -> None:
        """Lose the connections to all processes of these nodes."""
        for peer in list(self._by_worker.values()):
            if peer.address.node_id in node_ids and peer.connection is not None:
                peer.connection.abort()

    async def connected(self, timeout_s: float) -> None:
        """Wait until what was sent over connections that did not stand yet has been sent, or cannot be; ``timeout_s`` at most."""
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=timeout_s)

    def close(self) -> None:
        """Send what is queued and close every connection that stands."""
        self._closed = True
        self._connector.close()
        for task in self._connecting:
            task.cancel()
        for peer in list(self._by_worker.values()):
            if peer.connection is not None:
                peer.connection.close()
        self._by_worker.clear()
