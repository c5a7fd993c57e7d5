"""What a head is made of, and how the parts are wired.

    agent.sock ────▶ NodeAgent ◀── in memory ──▶ ControlStore ◀──── control.sock
                      │  │  └─ ObjectStore ─ Arena
                      │  └──── TemplateLauncher ─ template ─ workers
                      └─────── WorkerLogReader, memory monitor

The parts do not know each other beyond what is wired here; a node without a control store would leave one half out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import SqliteStorage
from shoal._core.node_agent.memory import Candidate, MemoryWatch, group_memory, read_memory
from shoal._core.node_agent.peers import Hooks
from shoal._core.node_agent.server import NodeAgent
from shoal._core.object_store.store import ObjectStore
from shoal._core.process.serving import HeadContext
from shoal._core.scheduling.labels import NODE_ID_LABEL
from shoal._core.transport.connection import Connection
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.transport.shared import SharedConnections
from shoal._core.transport.sockets import SocketListener, SocketTransport
from shoal._core.wire.messages import Cause, Message, NodeRecord, ProcessExiting

log = logging.getLogger("shoal.head")

TABLES_FILE = "tables.sqlite"


async def compose(context: HeadContext) -> HeadParts:
    """Make the parts of a head and let them listen."""
    parts = HeadParts(context)
    await parts.start()
    return parts


class HeadParts:
    """Control store, node agent and object store of one head."""

    def __init__(self, context: HeadContext) -> None:
        loop, settings, session, plan = context.loop, context.options.settings, context.session, context.plan
        self._loop = loop
        self._session = session
        self._transport = SocketTransport(loop, context.token)
        #: Connections of the node agent to other processes.
        self._peers = SharedConnections(loop, self._transport, _no_message)
        self._storage = SqliteStorage(session.directory / TABLES_FILE)
        self.control_store = ControlStore(loop, self._storage, settings)
        spill_dir = os.path.abspath(context.options.spill_dir) if context.options.spill_dir else str(session.spill_dir)
        self.object_store = ObjectStore(loop, context.arena, f"{spill_dir}/{session.name}", settings)
        node = NodeRecord(
            context.node_id,
            session.agent_address,
            plan.hostname,
            context.options.node_ip,
            dict(plan.resources),
            dict(plan.resources),
            {**plan.labels, NODE_ID_LABEL: context.node_id.hex()},
            name=context.options.node_name or context.options.node_ip,
        )
        logs = context.logs
        self.node_agent = NodeAgent(
            loop,
            node,
            self.object_store,
            context.launcher,
            settings,
            str(session.path),
            context.arena.path,
            context.arena.nbytes,
            session.control_address,
            hooks=Hooks(named=logs.rename, bound=logs.assign, flush_logs=logs.flush),
            connect=lambda address: self._peers.connect(address.address),
        )
        context.launcher.on_exit = self.node_agent.worker_exited
        logs.emit = lambda lines: self.node_agent.forward_log(lines.job_id, lines)
        self._memory = MemoryWatch(settings.memory_usage_threshold, f"The node {node.hostname}")
        self._memory_monitor_s = settings.memory_monitor_s
        self._memory_timer: asyncio.TimerHandle | None = None
        self._listeners: list[SocketListener] = []

    async def start(self) -> None:
        """Listen, join control store and node agent, start the first workers."""
        self._listeners.append(await self._transport.listen(self._session.control_address, self.control_store.accept))
        inside = MemoryNetwork(self._loop, copy=False)
        await MemoryTransport(inside, "control store").listen("control", self.control_store.accept)
        connection = await MemoryTransport(inside, "node agent").connect("control", _no_message)
        registered = self.node_agent.attach_control(connection)
        self._listeners.append(await self._transport.listen(self._session.agent_address, self.node_agent.accept))
        self.node_agent.start()
        await registered
        if self._memory_monitor_s > 0:
            self._watch_memory()

    async def close(self) -> None:
        """End in good order: no more connections, no more workers, nothing on disk."""
        if self._memory_timer is not None:
            self._memory_timer.cancel()
        for listener in self._listeners:
            listener.close()
        await self.node_agent.close()
        await self.object_store.close()
        self.control_store.close()
        self._storage.close()

    def _watch_memory(self) -> None:
        """Look at the node's memory; measure the workers only when it is short."""
        self._memory_timer = self._loop.call_later(self._memory_monitor_s, self._watch_memory)
        with contextlib.suppress(OSError):
            sample, now = read_memory(), self._loop.time()
            if not self._memory.is_short(sample, now):
                return
            workers = self.node_agent.leased_workers()
            used = group_memory(worker.pid for worker in workers)
            candidates = [
                Candidate(worker.worker_id, worker.pid, worker.name, worker.retriable, worker.granted_at, used[worker.pid])
                for worker in workers
            ]
            kill = self._memory.handle(sample, candidates, now)
            if kill is not None:
                log.warning("%s", kill.reason)
                self.node_agent.kill_worker(kill.worker_id, Cause("oom", kill.reason))


def _no_message(connection: Connection, message: Message) -> None:
    if isinstance(message, ProcessExiting):  # its objects are the node agent's now
        connection.finish()
        return
    log.warning("A %s came from %s unasked.", type(message).__name__, connection.peer)
