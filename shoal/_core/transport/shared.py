"""One connection to each address, made at its first use and shared by all who ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from shoal._core.transport.connection import Connection, OnClose, OnMessage, Transport
from shoal._core.transport.errors import ConnectFailed

#: Makes a connection in another way than by a transport address.
Opener = Callable[[OnMessage, OnClose], Coroutine[Any, Any, Connection]]


class SharedConnections:
    """Used from the loop's thread. ``on_message`` gets what comes unasked, over any of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: Transport, on_message: OnMessage) -> None:
        self._loop = loop
        self._transport = transport
        self._on_message = on_message
        self._attempts: dict[str, asyncio.Task[Connection]] = {}

    async def connect(self, address: str, opener: Opener | None = None) -> Connection:
        """Return the connection, however often it is asked for. Raises what connecting raises; the next caller tries again.

        Args:
            opener: makes the connection; then ``address`` is any name for whom it leads to.
        """
        attempt = self._attempts.get(address)
        if attempt is None:
            if opener is not None:
                connecting = opener(self._on_message, self._forget)
            else:
                connecting = self._transport.connect(address, self._on_message, self._forget)
            attempt = self._attempts[address] = self._loop.create_task(connecting)
        try:
            connection = await asyncio.shield(attempt)
        except Exception:  # whatever it is, it is this attempt's: raised to all who wait for it, and not kept for those who come later
            self._attempts.pop(address, None)
            raise
        if connection.finishing:
            raise ConnectFailed(f"{address} has said that it leaves.")
        return connection

    def _forget(self, connection: Connection) -> None:
        for address, attempt in list(self._attempts.items()):
            if attempt.done() and not attempt.cancelled() and attempt.exception() is None and attempt.result() is connection:
                del self._attempts[address]
