"""An object store and its clients in one process: a real arena, real files, memory connections."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from shoal._base.settings import Settings
from shoal._core.object_store import Arena, ObjectStore, Place, StoreClient
from shoal._core.transport.connection import Connection
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.wire.messages import Address, Message


class Bytes:
    """The least that can be stored: bytes as they are."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data).cast("B")
        self.nbytes = self.data.nbytes

    def write_into(self, target: memoryview) -> None:
        target[:] = self.data

    def write_to(self, fd: int, offset: int) -> None:
        assert os.pwrite(fd, self.data, offset) == self.nbytes


class InProcessStore:
    """Use as an async context manager; leaving it checks the store, closes it and releases the arena."""

    def __init__(self, nbytes: int, spill_dir: str, settings: Settings | None = None, **options: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.arena = Arena.create(nbytes)
        self.spill_dir = spill_dir
        self.store = ObjectStore(self.loop, self.arena, spill_dir, settings or Settings(debug=True), **{"warm_ahead_bytes": 0, **options})
        self._network = MemoryNetwork(self.loop)
        self._clients = 0

    async def __aenter__(self) -> Self:
        def accept(connection: Connection) -> None:
            connection.on_message = self._on_message
            connection.on_close = self.store.disconnected

        await MemoryTransport(self._network, "agent").listen("memory:agent", accept)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.store.check()
        await self.store.close()
        self.arena.close()

    def _on_message(self, connection: Connection, message: Message) -> None:
        assert self.store.handle(connection, message)

    async def client(self, name: str = "") -> InProcessClient:
        self._clients += 1
        name = name or f"worker-{self._clients}"
        connection = await MemoryTransport(self._network, name).connect("memory:agent", lambda _c, _m: None, lambda _c: None)
        return InProcessClient(self, connection, Address(name.encode(), b"node", name))


class InProcessClient:
    """One process's view of the store."""

    def __init__(self, store: InProcessStore, connection: Connection, address: Address) -> None:
        self.connection = connection
        self.address = address
        self.arena = Arena.open(store.arena.fd, store.arena.nbytes)
        self.client = StoreClient(self.arena, connection.send, connection.request, self._wake)
        self._loop = store.loop

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.client.flush_releases)

    async def put(self, object_id: bytes, data: bytes | memoryview) -> Place:
        place = await self.client.create(object_id, len(data), self.address)
        self.client.write(place, Bytes(data))
        self.client.seal(object_id)
        return place

    async def get(self, object_id: bytes) -> memoryview | None:
        """Return a view, which holds the object as long as it lives; None if the object is lost."""
        found = await self.open(object_id)
        return found[0] if found else None

    async def open(self, object_id: bytes) -> tuple[memoryview, Callable[[], memoryview]] | None:
        [place] = await self.client.pin([object_id])
        if place is None:
            return None
        found = self.client.read(object_id, place)
        self.client.unpin(object_id)
        return found

    async def digest(self, object_id: bytes) -> bytes:
        view = await self.get(object_id)
        assert view is not None
        return hashlib.blake2b(view).digest()

    async def settle(self) -> None:
        """Let what was sent arrive."""
        for _ in range(10):
            await asyncio.sleep(0)

    def kill(self) -> None:
        """The process dies."""
        self.client.close()
        self.connection.abort()
        self.arena.close()
