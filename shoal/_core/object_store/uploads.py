"""Gives objects of this node to other nodes.

    port ── preamble DATA ──▶ accept ── a thread per socket: handshake, then request after request ──▶ sendfile
                                              └─ pins the object on the loop, and gives the pin back

A socket on which nothing is asked for a while is closed, and its thread ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

from shoal._core.object_store import transfer
from shoal._core.object_store.arena import Arena
from shoal._core.object_store.client import Place, StoreClient
from shoal._core.transport.blocking import BlockingSocket
from shoal._core.transport.errors import TransportError
from shoal._core.transport.preamble import DATA, Answer
from shoal._core.transport.trust import Trust

log = logging.getLogger("shoal.object_store")

#: Seconds without a request until a socket is closed.
IDLE_S = 10.0
#: Sockets at once; whoever comes later is hung up on and tries again.
MOST = 64
#: Seconds that ``close`` waits for threads whose sockets it has shut down.
_JOIN_S = 1.0


class Uploads:
    """One node's. ``accept`` and ``close`` on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: StoreClient, arena: Arena, trust: Trust) -> None:
        self._loop = loop
        self._client = client
        self._arena = arena
        self._trust = trust
        self._threads: dict[BlockingSocket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closed = False

    def accept(self, sock: socket.socket) -> bool:
        """Serve a socket; False: there are too many."""
        with self._lock:
            if self._closed or len(self._threads) >= MOST:
                return False
            given = BlockingSocket(sock)
            thread = self._threads[given] = threading.Thread(target=self._run, args=(given,), name="shoal-upload", daemon=True)
        thread.start()
        return True

    def close(self) -> None:
        """Hang up on everybody and join the threads."""
        with self._lock:
            self._closed = True
            threads = dict(self._threads)
        for sock in threads:
            sock.hang_up()
        for thread in threads.values():
            thread.join(_JOIN_S)

    def _run(self, sock: BlockingSocket) -> None:
        try:
            sock.limit_wait(IDLE_S)
            sock.send(bytes((Answer.OPEN,)))
            sock.prove("server", self._trust, DATA)
            sock.limit_wait(IDLE_S)
            while request := sock.receive(transfer.REQUEST.size):
                self._serve(sock, *transfer.REQUEST.unpack(request))
        except (BlockingIOError, TimeoutError):
            log.debug("Nothing was asked for %g s, or nothing moved.", IDLE_S)
        except (OSError, EOFError, TransportError) as error:
            log.debug("An upload ended: %s", error)
        finally:
            with self._lock:
                del self._threads[sock]
            sock.close()

    def _serve(self, sock: BlockingSocket, object_id: bytes, offset: int, nbytes: int) -> None:
        place = asyncio.run_coroutine_threadsafe(self._pin(object_id), self._loop).result()
        if place is None:
            sock.send(transfer.REPLY.pack(0, 0))
            return
        try:
            if offset + nbytes > place.nbytes:
                raise EOFError(f"Bytes {offset} to {offset + nbytes} were asked of an object of {place.nbytes}.")
            sock.limit_wait(transfer.STALL_S)
            sock.send(transfer.REPLY.pack(1, place.nbytes))
            if place.path:
                with open(place.path, "rb") as file:
                    sock.send_range(file.fileno(), place.offset + offset, nbytes)
            else:
                sock.send_range(self._arena.fd, place.offset + offset, nbytes)
            sock.limit_wait(IDLE_S)
        finally:
            self._loop.call_soon_threadsafe(self._client.unpin, object_id)

    async def _pin(self, object_id: bytes) -> Place | None:
        return (await self._client.pin([object_id]))[0]
