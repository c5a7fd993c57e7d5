"""The one I/O thread of a process, its loop, and how a process joins a session.

    start -> connect to the node agent, RegisterProcess -> open the arena -> listen at our own address -> connect to the control store
    stop  -> close connections, stop the loop, join the thread
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from ..._base.ids import WORKER_BYTES
from ..._base.settings import Settings
from ..object_store import Arena, StoreClient
from ..transport import SocketTransport
from ..wire import messages as m
from .core import Core
from .inbox import Inbox


@dataclass(frozen=True)
class JoinRequest:
    """Who joins which session."""

    worker_id: bytes
    agent_address: str
    token: bytes
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
        self._thread = threading.Thread(target=self._run, name="shoal-io", daemon=True)
        self._pid = os.getpid()

    def start(self) -> None:
        """Join the session; blocks until this process may submit and be called. Raises what went wrong."""
        self._thread.start()
        try:
            self.call(self._join())
        except BaseException:
            self.stop()
            raise

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
        # One turn for the transports to write and close.
        await asyncio.sleep(0)
        self.loop.call_later(0.01, self.loop.stop)

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
        transport = SocketTransport(self.loop, request.token)
        early: list[m.Message] = []
        agent = await transport.connect(request.agent_address, lambda _connection, message: early.append(message))
        own_address = f"unix:{request.session_dir}/{'d' if request.is_driver else 'w'}-{request.worker_id.hex()[:16]}.sock"
        registered: m.Registered = await agent.request(
            m.RegisterProcess(0, request.worker_id, os.getpid(), own_address, log_to_driver=request.log_to_driver)
            if not request.is_driver
            else m.RegisterProcess(0, request.worker_id, os.getpid(), own_address, b"\0" * 4, request.log_to_driver)
        )
        settings = request.settings or msgspec.msgpack.decode(registered.settings, type=Settings)
        me = m.Address(request.worker_id, registered.node_id, own_address)
        self.core = core = Core(
            loop=self.loop, transport=transport, settings=settings, me=me, job_id=b"\0" * 4, runs_tasks=not request.is_driver,
            on_agent_lost=self._on_agent_lost,
        )  # fmt: skip
        self.inbox = Inbox(self.loop, core.flush)
        arena = Arena.open(request.arena_fd if request.arena_fd >= 0 else registered.arena_path, registered.arena_bytes)
        store = StoreClient(arena, agent.send, agent.request, self._wake_store)
        core.attach_agent(agent, m.Address(registered.node_id, registered.node_id, request.agent_address), store)
        await core.listen()
        await core.connect_control_store(registered.control_store)
        for message in early:
            agent.on_message(agent, message)

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
