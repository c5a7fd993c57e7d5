"""The one I/O thread of a process, its loop, and how a process joins a session.

    start -> listen at our own address -> connect to the node agent, RegisterProcess -> open the arena -> connect to the control store
    serve -> what callers and the node agent sent meanwhile is delivered, and from now on at once
    stop  -> close connections, stop the loop, join the thread

From the moment it is registered a worker may be leased and called, but it can run nothing before its execution part stands: so it
listens first, and holds what comes until ``serve``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal._base.ids import WORKER_BYTES
from shoal._base.paths import HANDOVER_SOCKET
from shoal._base.settings import Settings
from shoal._core.object_store import Arena, StoreClient
from shoal._core.transport import Connection, SocketTransport, Tokens, Trust
from shoal._core.wire import messages as m

from .connector import Connector, DirectConnector, NodeConnector
from .core import Core
from .inbox import Inbox


@dataclass(frozen=True)
class JoinRequest:
    """Who joins which session."""

    worker_id: bytes
    agent_address: str
    tokens: Tokens
    session_dir: str
    is_driver: bool
    log_to_driver: bool = False
    #: The arena, if this process inherited it; -1: open the path that the node agent names.
    arena_fd: int = -1
    settings: Settings | None = None


class IoThread:
    """Runs the loop. ``core`` and ``inbox`` are there once ``start`` returned."""

    def __init__(self, request: JoinRequest, on_agent_lost: Callable[[], None]) -> None:
        self.request = request
        self._on_agent_lost = on_agent_lost
        self.loop = _new_loop()
        self.core: Core
        self.inbox: Inbox
        self.control_address = ""
        self._thread = threading.Thread(target=self._run, name="shoal-io", daemon=True)
        self._pid = os.getpid()
        self._serving = False
        self._arena: Arena | None = None
        #: Connections and messages that came before ``serve``.
        self._held_callers: list[Connection] = []
        self._held: list[tuple[Connection, m.Message]] = []

    def start(self) -> None:
        """Join the session; blocks until this process may submit and be called. Raises what went wrong."""
        self._thread.start()
        try:
            self.call(self._join())
        except BaseException:
            self.stop()
            raise

    def serve(self) -> None:
        """Deliver what was held, and everything from now on. The process is ready to be called."""
        self.call(self._serve())

    async def _serve(self) -> None:
        self._serving = True
        core = self.core
        core.attach_agent_messages()
        for connection in self._held_callers:
            if not connection.closed:
                core.accept(connection)
        for connection, message in self._held:
            connection.on_message(connection, message)
        for connection in {connection for connection, _ in self._held}:
            if connection.on_batch_end is not None:
                connection.on_batch_end()
        self._held_callers.clear()
        self._held.clear()

    def _hold(self, connection: Connection, message: m.Message) -> None:
        self._held.append((connection, message))

    def _accept(self, connection: Connection) -> None:
        if self._serving:
            self.core.accept(connection)
        else:
            connection.on_message = self._hold
            self._held_callers.append(connection)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop and block for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def stop(self) -> None:
        """Close everything and join the thread. Idempotent."""
        if os.getpid() != self._pid or not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._leave(), self.loop)
        self._thread.join()

    async def _leave(self) -> None:
        if hasattr(self, "inbox"):
            self.inbox.close()
            await self.core.close()
        self.release_memory()
        # One turn for the transports to write and close.
        await asyncio.sleep(0)
        self.loop.call_later(0.01, self.loop.stop)

    def release_memory(self) -> None:
        """The session is over, or its head is: keep no memory of it but what views hold. I/O thread. Idempotent."""
        if self._arena is not None:
            # References that outlive the session keep this object alive, but no memory and no descriptor.
            self.core.store.close()
            self._arena.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    async def _join(self) -> None:
        request = self.request
        trust = Trust(request.tokens, request.session_dir)
        transport = SocketTransport(self.loop, trust)
        own_address = f"unix:{request.session_dir}/{'d' if request.is_driver else 'w'}-{request.worker_id.hex()[:16]}.sock"
        listener = await transport.listen(own_address, self._accept)
        agent = await transport.connect(request.agent_address, self._hold)
        registered: m.Registered = await agent.request(
            m.RegisterProcess(
                0, request.worker_id, os.getpid(), own_address, b"\0" * 4 if request.is_driver else b"", request.log_to_driver
            )
        )
        settings = request.settings or msgspec.msgpack.decode(registered.settings, type=Settings)
        me = m.Address(request.worker_id, registered.node_id, own_address)
        connector: Connector = DirectConnector(transport)
        if registered.endpoint:
            path = f"{request.session_dir}/{HANDOVER_SOCKET}"
            connector = NodeConnector(self.loop, transport, agent, me, path, self._accept)
        self.core = core = Core(
            loop=self.loop, transport=transport, connector=connector, settings=settings, me=me, job_id=b"\0" * 4,
            runs_tasks=not request.is_driver, on_agent_lost=self._on_agent_lost, on_token=trust.rotate,
        )  # fmt: skip
        core.has_other_nodes = bool(registered.endpoint)
        self.inbox = Inbox(self.loop, core.flush)
        core.drain_inbox = self.inbox.drain_rest
        self._arena = arena = Arena.open(request.arena_fd if request.arena_fd >= 0 else registered.arena_path, registered.arena_bytes)
        store = StoreClient(arena, agent.send, agent.request, self._wake_store, registered.node_id)
        core.attach(agent, m.Address(registered.node_id, registered.node_id, request.agent_address), store, listener)
        core.agents.heirs.update(registered.heirs)
        self.control_address = registered.control_store
        await core.connect_control_store(registered.control_store, lasting=bool(registered.endpoint))

    def _wake_store(self) -> None:
        """A view ended somewhere: give its pin back soon. Safe in ``__del__``."""
        self.inbox.post_later(_flush_releases, self.core.store)


def _flush_releases(store: StoreClient) -> None:
    store.flush_releases()


def fresh_worker_id() -> bytes:
    return os.urandom(WORKER_BYTES)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
