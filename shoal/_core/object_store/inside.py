"""The store's own process as one of its clients: pulls create objects like any writer, uploads pin them like any reader."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal._core.object_store.arena import Arena
from shoal._core.object_store.client import StoreClient
from shoal._core.object_store.store import ObjectStore
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import Message


class _Door:
    """What stands where other clients have a connection. Answers come at once or later, on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: ObjectStore, name: str) -> None:
        self.peer = name
        self.closed = False
        self._loop = loop
        self._store = store
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last_rid = 0

    def tell(self, message: Message) -> None:
        self._store.handle(self, message)

    def ask(self, message: Any) -> asyncio.Future[Any]:
        self._last_rid += 1
        message.rid = self._last_rid
        future = self._asked[message.rid] = self._loop.create_future()
        self._store.handle(self, message)
        return future

    def send(self, message: Any) -> None:
        future = self._asked.pop(message.rid)
        if not future.done():
            future.set_result(message)

    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None:
        future = self._asked.pop(rid)
        if not future.done():
            future.set_exception(RequestFailed(kind, message, detail))


def inside_client(loop: asyncio.AbstractEventLoop, store: ObjectStore, arena: Arena, name: str) -> StoreClient:
    """Return a client of ``store`` for code on its loop. It makes no views, so it has none to give back."""
    door = _Door(loop, store, name)
    return StoreClient(arena, door.tell, door.ask, _no_views)


def _no_views() -> None:
    raise AssertionError("a view was made inside of the store's process")
