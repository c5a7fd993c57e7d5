"""Gets objects of other nodes: at most ``MOST`` at a time, in the order in which they were asked for.

PinObjects of an object that is elsewhere ─▶ start: create it here as a copy ─ room ─▶ its turn ─▶ a thread receives ─▶ seal
                                               └── no room, source gone ─▶ abort: whoever waits learns that it is lost
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from shoal._core.object_store import transfer
from shoal._core.object_store.arena import Arena
from shoal._core.object_store.client import Place, StoreClient
from shoal._core.transport.blocking import BlockingSocket
from shoal._core.transport.errors import RequestFailed, TransportError
from shoal._core.transport.preamble import DATA
from shoal._core.transport.trust import Trust
from shoal._core.wire.messages import Address

log = logging.getLogger("shoal.object_store")

#: Two fill a network from two sources; more only share it, and let the oldest wait longer.
MOST = 4
#: Idle sockets kept per node.
_KEPT = 2


class NotThere(Exception):
    """The source does not have the object."""


class Pulls:
    """One node's. Used on the loop.

    Args:
        client: of this node's store, from inside.
        open_socket: connects to the data side of a node.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: StoreClient,
        arena: Arena,
        open_socket: Callable[[bytes], Awaitable[socket.socket]],
        trust: Trust,
    ) -> None:
        self._loop = loop
        self._client = client
        self._arena = arena
        self._open_socket = open_socket
        self._trust = trust
        self._slots = asyncio.Semaphore(MOST)
        self._threads = ThreadPoolExecutor(MOST, "shoal-pull")
        self._pulls: set[asyncio.Task[None]] = set()
        self._idle: dict[bytes, list[BlockingSocket]] = {}
        self._in_use: set[BlockingSocket] = set()

    def start(self, object_id: bytes, node_id: bytes, nbytes: int) -> None:
        """Create the object here and fetch its bytes. It is in the store, unsealed, when this returns."""
        place = self._client.create(object_id, nbytes, Address(b"", node_id, ""), is_copy=True)
        pull = self._loop.create_task(self._pull(object_id, node_id, place))
        self._pulls.add(pull)
        pull.add_done_callback(self._pulls.discard)

    async def close(self) -> None:
        """Give up what is under way and join the threads."""
        for pull in self._pulls:
            pull.cancel()
        for sock in self._in_use:
            sock.hang_up()
        await asyncio.gather(*self._pulls, return_exceptions=True)
        self._threads.shutdown()
        for idle in self._idle.values():
            for sock in idle:
                sock.close()

    async def _pull(self, object_id: bytes, node_id: bytes, room: asyncio.Future[Place]) -> None:
        try:
            place = await room
        except RequestFailed as error:  # the store has told those who wait
            log.warning("There is no room for a copy of object %s: %s", object_id.hex(), error.message)
            return
        try:
            async with self._slots:
                await self._fetch(object_id, node_id, place)
        except (NotThere, OSError, EOFError, TransportError) as error:
            log.warning("Object %s could not be fetched from node %s: %s", object_id.hex(), node_id.hex(), error)
            self._client.abort(object_id)
        except BaseException:
            self._client.abort(object_id)
            raise
        else:
            self._client.seal(object_id)

    async def _fetch(self, object_id: bytes, node_id: bytes, place: Place) -> None:
        idle = self._idle.setdefault(node_id, [])
        while idle:
            sock = idle.pop()
            try:
                await self._receive(sock, False, object_id, node_id, place)
                return
            except (OSError, EOFError) as error:
                log.debug("A kept connection to node %s was of no use any more: %s", node_id.hex(), error)
        await self._receive(BlockingSocket(await self._open_socket(node_id)), True, object_id, node_id, place)

    async def _receive(self, sock: BlockingSocket, fresh: bool, object_id: bytes, node_id: bytes, place: Place) -> None:
        """Fetch over this socket, which is kept or closed afterwards."""
        self._in_use.add(sock)
        work = self._loop.run_in_executor(self._threads, self._receive_now, sock, fresh, object_id, place)
        try:
            await asyncio.shield(work)
        except NotThere:
            self._keep(sock, node_id)
            raise
        except BaseException:
            if not work.done():  # cancelled: the memory must not be given away under the thread
                sock.hang_up()
                await asyncio.wait([work])
            self._in_use.discard(sock)
            sock.close()
            raise
        self._keep(sock, node_id)

    def _keep(self, sock: BlockingSocket, node_id: bytes) -> None:
        self._in_use.discard(sock)
        idle = self._idle.setdefault(node_id, [])
        if len(idle) < _KEPT:
            idle.append(sock)
        else:
            sock.close()

    def _receive_now(self, sock: BlockingSocket, fresh: bool, object_id: bytes, place: Place) -> None:
        if fresh:
            sock.prove("client", self._trust, DATA)
            sock.limit_wait(transfer.STALL_S)
        sock.send(transfer.REQUEST.pack(object_id, 0, place.nbytes))
        reply = sock.receive(transfer.REPLY.size)
        if not reply:
            raise EOFError("The other node hung up.")
        found, nbytes = transfer.REPLY.unpack(reply)
        if not found:
            raise NotThere("it is not there")
        if nbytes != place.nbytes:
            raise EOFError(f"It has {nbytes} bytes there, and {place.nbytes} were expected.")
        if not place.path:
            sock.receive_into(self._arena.writable_range(place.offset, nbytes))
            return
        descriptor = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with mmap.mmap(descriptor, place.offset + nbytes) as file, memoryview(file) as view, view[place.offset :] as target:
                sock.receive_into(target)
        finally:
            os.close(descriptor)
