"""The control store of a session of one node, which lives in its head."""

from __future__ import annotations

import asyncio

from shoal._base import paths
from shoal._base.settings import Settings
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import SqliteStorage
from shoal._core.process.membership import Membership
from shoal._core.process.session import Session
from shoal._core.transport.connection import Connection, OnMessage
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.transport.sockets import SocketListener, SocketTransport
from shoal._core.transport.trust import Trust


class LocalControlStore:
    """The control store of a session of one node: in the head, beside the node agent, whose connection to it is memory."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session: Session, trust: Trust, settings: Settings) -> None:
        self._loop = loop
        self._address = session.control_address
        self._storage = SqliteStorage(session.directory / paths.TABLES_FILE)
        self._store = ControlStore(loop, self._storage, settings, Membership(session, trust, None))
        self._listener: SocketListener | None = None

    async def start(self, transport: SocketTransport, on_message: OnMessage) -> Connection:
        """Listen; return the node agent's connection."""
        self._listener = await transport.listen(self._address, self._store.accept)
        inside = MemoryNetwork(self._loop, copy=False)
        await MemoryTransport(inside, "control store").listen("control", self._store.accept)
        return await MemoryTransport(inside, "node agent").connect("control", on_message)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._store.close()
        self._storage.close()
