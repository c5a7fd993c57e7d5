"""Several nodes' stores in one process, with real sockets between them that a test can hold up and cut."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack

from shoal._base.settings import Settings
from shoal._core.object_store.inside import inside_client
from shoal._core.object_store.pulling import Pulling
from shoal._core.object_store.serving import Serving
from shoal._core.transport.errors import ConnectFailed
from shoal._core.transport.trust import Tokens, Trust
from shoal.testing.in_process_store import InProcessStore

MIB = 1 << 20
TOKEN = b"t" * 32


def object_id(number: int) -> bytes:
    return number.to_bytes(28, "big")


def pattern(number: int, nbytes: int) -> bytes:
    return random.Random(number).randbytes(nbytes)


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection within this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


class Wire:
    """What stands between two nodes: passes bytes on, from the source not before ``gate`` is open, and at most ``limit`` of them."""

    def __init__(self, limit: int | None = None) -> None:
        self.gate = threading.Event()
        self.gate.set()
        #: Bytes from the source until the connection is cut, for each connection to come; None: never.
        self.limits: list[int | None] = [] if limit is None else [limit]
        #: Called before a connection is cut.
        self.on_cut: Callable[[], object] = lambda: None
        self.connections = 0
        self.passed = 0

    def between(self) -> tuple[socket.socket, socket.socket]:
        """Return (the puller's end, the source's end)."""
        source, far = connected_pair()
        return self.before(far), source

    def before(self, far: socket.socket) -> socket.socket:
        """Stand before a connection to a source; return the puller's end."""
        self.connections += 1
        limit = self.limits.pop(0) if self.limits else None
        puller, near = connected_pair()
        threading.Thread(target=self._copy, args=(near, far, None, False), daemon=True).start()
        threading.Thread(target=self._copy, args=(far, near, limit, True), daemon=True).start()
        return puller

    def _copy(self, here: socket.socket, there: socket.socket, limit: int | None, gated: bool) -> None:
        passed = 0
        try:
            while data := here.recv(min(1 << 16, (limit or 1 << 62) - passed)):
                # The answer to the preamble and the handshake are not held up.
                if gated and passed > 4096:
                    self.gate.wait(60)
                there.sendall(data)
                passed += len(data)
                self.passed += len(data) * gated
                if limit is not None and passed >= limit:
                    self.on_cut()
                    break
        except OSError:
            pass
        for end in (here, there):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        here.close()


class Node:
    """One node: ``store`` and what moves objects in and out of it."""

    def __init__(self, cluster: Cluster, name: str, inner: InProcessStore) -> None:
        self.cluster = cluster
        self.node_id = name.encode().ljust(28, b".")
        self.inner = inner
        self.store = inner.store
        loop = asyncio.get_running_loop()
        client = inside_client(loop, self.store, inner.arena, "other nodes")
        self.pulling = Pulling(loop, self.store, client, inner.arena, self.node_id, self._open, cluster.trust)
        self.serving = Serving(loop, self.store, client, inner.arena, self.node_id, self.pulling, cluster.trust)
        self.store.puller = self.pulling
        self.store.on_freed = lambda object_ids: cluster.freed(self, object_ids)

    async def _open(self, node_id: bytes) -> socket.socket:
        source = self.cluster.nodes.get(node_id)
        if source is None:
            raise ConnectFailed("It has died.")
        mine, theirs = self.cluster.wire(self, source).between()
        assert source.serving.accept(theirs)
        mine.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(mine, 1) == b"\x01"
        return mine

    async def put(self, number: int, nbytes: int) -> bytes:
        client = await self.inner.client()
        await client.put(object_id(number), pattern(number, nbytes))
        return object_id(number)

    def pin(self, client, source: Node, numbers, nbytes: int, urgency: int = 0):
        return client.client.pin([object_id(n) for n in numbers], [(source.node_id, nbytes)] * len(numbers), urgency)

    async def read(self, source: Node, numbers, nbytes: int) -> list[bytes | None]:
        """What a new process of this node reads."""
        client = await self.inner.client()
        places = await self.pin(client, source, numbers, nbytes)
        found = []
        for number, place in zip(numbers, places, strict=True):
            if place is None:
                found.append(None)
            else:
                found.append(bytes(client.client.read(object_id(number), place)[0]))
                client.client.unpin(object_id(number))
        await client.settle()
        return found

    def die(self) -> None:
        """Nobody reaches it any more."""
        del self.cluster.nodes[self.node_id]
        self.serving.close()


class Cluster:
    """Use as an async context manager. ``wires[puller, source]``: made at the first use."""

    def __init__(self, tmp_path, count: int, nbytes: int = 32 * MIB, token: bytes = TOKEN, **options) -> None:
        self.trust = Trust(Tokens(token))
        self._tmp_path = tmp_path
        self._count = count
        self._nbytes = nbytes
        self._options = options
        self.nodes: dict[bytes, Node] = {}
        self.wires: dict[tuple[str, str], Wire] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> list[Node]:
        self.all = []
        for index in range(self._count):
            settings = self._options.get("settings") or Settings(debug=True, spill_file_bytes=2 * MIB, store_full_timeout_s=0.05)
            options = {key: value for key, value in self._options.items() if key != "settings"}
            inner = await self._stack.enter_async_context(
                InProcessStore(self._nbytes, str(self._tmp_path / f"spill{index}"), settings, **options)
            )
            node = Node(self, "ABCDEFGH"[index], inner)
            self.nodes[node.node_id] = node
            self.all.append(node)
        return self.all

    async def __aexit__(self, *error) -> None:
        for wire in self.wires.values():
            wire.gate.set()
        for node in self.all:
            await node.pulling.close()
            node.serving.close()
        for node in self.all:
            statistics = node.pulling.statistics()
            if error[0] is None:
                assert (statistics.waiting, statistics.under_way) == (0, 0), statistics
                await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        await self._stack.aclose()

    def wire(self, puller: Node, source: Node) -> Wire:
        return self.wires.setdefault((puller.node_id[:1].decode(), source.node_id[:1].decode()), Wire())

    def freed(self, node: Node, object_ids) -> None:
        for node_id, copies in node.serving.copies_of(object_ids).items():
            if node_id in self.nodes:
                self.nodes[node_id].store.free(copies, primaries=False)
