"""What a head is made of, and how the parts are wired.

    agent.sock, port ▶ NodeAgent ◀── in memory, or TCP ──▶ ControlStore (here: control.sock; or the cluster's)
                      │  │  └─ ObjectStore ─ Arena
                      │  └──── TemplateLauncher ─ template ─ workers
                      └─────── WorkerLogReader, memory monitor

The parts do not know each other beyond what is wired here; a node without a control store would leave one half out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from shoal._base import paths
from shoal._base.spill_place import directory_of, is_url
from shoal._core.control_link import ControlAddresses, ControlLink, dial
from shoal._core.node_agent.dialling import Dialling
from shoal._core.node_agent.drain_service import DrainService
from shoal._core.node_agent.joining import Joining
from shoal._core.node_agent.memory import Candidate, MemoryWatch, group_memory, read_memory
from shoal._core.node_agent.moving import Moving
from shoal._core.node_agent.neighbours import Neighbours
from shoal._core.node_agent.peers import Hooks
from shoal._core.node_agent.server import NodeAgent
from shoal._core.node_agent.spilled_objects import SpilledObjects
from shoal._core.object_store.inside import inside_client
from shoal._core.object_store.pulling import Pulling
from shoal._core.object_store.remote import RemoteFiles
from shoal._core.object_store.serving import Serving
from shoal._core.object_store.store import ObjectStore
from shoal._core.process.membership import change_token, join
from shoal._core.process.serving import HeadContext
from shoal._core.scheduling.labels import NODE_ID_LABEL
from shoal._core.transport import RequestFailed
from shoal._core.transport.addresses import announced
from shoal._core.transport.connection import Connection, OnClose, OnMessage
from shoal._core.transport.handover import Handover
from shoal._core.transport.preamble import data_of
from shoal._core.transport.shared import SharedConnections
from shoal._core.transport.sockets import SocketListener, SocketTransport
from shoal._core.transport.switchboard import Switchboard
from shoal._core.wire.messages import Address, Cause, Message, NodeRecord, ProcessExiting

if TYPE_CHECKING:
    from shoal._core.process.local_control_store import LocalControlStore

log = logging.getLogger("shoal.head")

#: Heartbeats of a node per time after which it counts as dead.
BEATS_PER_TIMEOUT = 10


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
        self._transport = SocketTransport(loop, context.trust)
        #: Connections of the node agent to other processes.
        self._peers = SharedConnections(loop, self._transport, _no_message)
        self._options = context.options
        self._start_anew = context.start_anew
        self._arena = context.arena
        self._trust = context.trust
        self._control_addresses = ControlAddresses(context.options.control_address)
        #: Ours, in a session of one node; else the cluster's is elsewhere.
        self._control_store: LocalControlStore | None = None
        if not context.options.control_address:
            # With SQLite, 2 MiB that a node of a cluster does without.
            from shoal._core.process.local_control_store import LocalControlStore

            self._control_store = LocalControlStore(loop, session, context.trust, settings)
        place = context.options.spill_dir
        #: Where objects are spilled, if that is not the local disk.
        self._remote = RemoteFiles(place, directory_of(context.node_id)) if is_url(place) else None
        disk_dir = place if place and self._remote is None else str(session.spill_dir)
        self.object_store = ObjectStore(loop, context.arena, f"{disk_dir}/{session.name}", settings, remote=self._remote)
        node = NodeRecord(
            context.node_id,
            session.agent_address,
            plan.hostname,
            context.options.node_ip,
            dict(plan.resources),
            dict(plan.resources),
            {**plan.labels, NODE_ID_LABEL: context.node_id.hex()},
            name=context.options.node_name or context.options.node_ip,
            spill_url=self._remote.url if self._remote is not None else "",
            spill_directory=self._remote.directory if self._remote is not None else "",
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
            context.options.control_address or session.control_address,
            hooks=Hooks(
                named=logs.rename,
                bound=logs.assign,
                flush_logs=logs.flush,
                token_changed=partial(change_token, session, context.trust),
                control_stores=self._learn_control_stores,
            ),
            connect=self._reach,
            rests=bool(context.options.control_address),
        )
        context.launcher.on_exit = self.node_agent.worker_exited
        logs.emit = lambda lines: self.node_agent.forward_log(lines.job_id, lines)
        self._memory = MemoryWatch(settings.memory_usage_threshold, f"The node {node.hostname}")
        self._memory_monitor_s = settings.memory_monitor_s
        self._memory_timer: asyncio.TimerHandle | None = None
        self._listeners: list[SocketListener] = []
        #: Ends those who are not in yet.
        self._hang_up: Callable[[], None] | None = None
        self._dialling: Dialling | None = None
        self._link: ControlLink | None = None
        self._serving: Serving | None = None
        self._pulling: Pulling | None = None
        self._neighbours: Neighbours | None = None
        self._moving: Moving | None = None
        self._spilled: SpilledObjects | None = None
        self._drain: DrainService | None = None
        self._end = context.end

    @property
    def endpoint(self) -> str:
        return self.node_agent.node.endpoint

    async def start(self) -> None:
        """Listen, join control store and node agent, start the first workers. ConnectionError: a part cannot be had, and why."""
        if self._remote is not None:
            await self._remote.check(self._loop)
        if self._control_store is not None:
            inside = await self._control_store.start(self._transport, _no_message)
        elif not self._options.anew:  # it has its certificate from the life before
            await join(self._transport, self._options.control_address, self._options.listen, self._session.directory)
        if self._options.listen:
            await self._open_to_others()
        self._listeners.append(await self._transport.listen(self._session.agent_address, self.node_agent.accept))
        self.node_agent.start()
        if self._control_store is not None:
            await self.node_agent.attach_control(inside)
        else:
            await self._join()
        if self._memory_monitor_s > 0:
            self._watch_memory()

    async def _join(self) -> None:
        """Register at the cluster's control store, again and again if need be."""
        agent, addresses, timeout_s = self.node_agent, self._control_addresses, self._options.settings.node_timeout_s
        self._link = link = ControlLink(
            self._loop,
            lambda on_message, on_close: dial(addresses.all(), lambda one: self._transport.connect(one, on_message, on_close)),
            agent.node.node_id,
            greet=agent.registration,
            silence_s=timeout_s,
            beat_s=timeout_s / BEATS_PER_TIMEOUT,
            always=True,
            on_refused=self._declared_dead,
        )
        link.start_beats()
        agent.obey(link)
        await link.open(patient=self._options.anew)

    def _declared_dead(self, error: RequestFailed) -> None:
        if self.node_agent.node.draining:
            self._end()
            return
        log.warning(
            "This node (%s) was declared dead while the control store did not hear it. Its workers are killed, its objects are dropped, "
            "and it joins again as another node. %s",
            self.node_agent.node.node_id.hex(),
            error.message,
        )
        self._start_anew()

    def _learn_control_stores(self, addresses: list[str]) -> str:
        self._control_addresses.learn(addresses)
        self._session.record_control_stores(str(self._control_addresses))
        return str(self._control_addresses)

    async def _open_to_others(self) -> None:
        agent = self.node_agent
        handover = Handover(self._loop, str(self._session.path / paths.HANDOVER_SOCKET))
        inside = inside_client(self._loop, self.object_store, self._arena, "other nodes")
        store, arena, node_id = self.object_store, self._arena, agent.node.node_id
        self._pulling = pulling = Pulling(
            self._loop, store, inside, arena, node_id, lambda other: dialling.open(other, data_of(other)), self._trust
        )  # fmt: skip
        self._serving = serving = Serving(self._loop, store, inside, arena, node_id, pulling, self._trust)
        store.puller = pulling
        self._neighbours = neighbours = Neighbours(self._loop, agent.view.get, self._reach)
        store.on_freed = lambda object_ids: neighbours.free_copies(serving.copies_of(object_ids))

        welcome, self._hang_up = self._transport.welcomer("this node", node_id, agent.accept)

        def serve(target: bytes, sock: socket.socket) -> bool:
            if target == node_id:  # by a way that this node has opened itself; at its port such are not asked about
                welcome(sock)
                return True
            return target == serving.target and serving.accept(sock)

        self._dialling = dialling = Dialling(
            self._loop, handover, agent.node, agent.view, lambda: agent.control, agent.connection_of,
            Joining(self._loop, Switchboard()), serve,
        )  # fmt: skip
        self._moving = moving = Moving(self._loop, node_id, store, inside, agent.adopted, neighbours, agent.connection_of)
        self._spilled = spilled = SpilledObjects(
            self._loop, node_id, store, self._remote, neighbours, agent.connection_of, agent.view.nodes
        )  # fmt: skip
        self._drain = drain = DrainService(
            agent, store.primaries, moving.copy_off, agent.leave_to_others(neighbours), neighbours.settled, self._end
        )
        listener = await self._transport.listen(self._options.listen, agent.accept, itself=node_id, route=dialling.route)
        self._listeners.append(listener)
        handlers = {**dialling.handlers(), **moving.handlers(), **spilled.handlers(), **drain.handlers()}
        agent.open_to_others(announced(listener.address, self._options.node_ip), neighbours, handlers)

    async def _reach(self, address: Address) -> Connection:
        """Connect to a process, on whatever node."""
        if address.node_id == self.node_agent.node.node_id or self._dialling is None:
            return await self._peers.connect(address.address)
        return await self._peers.connect(f"{address.node_id.hex()}/{address.worker_id.hex()}", partial(self._dial, address))

    async def _dial(self, address: Address, on_message: OnMessage, on_close: OnClose) -> Connection:
        assert self._dialling is not None
        sock = await self._dialling.open(address.node_id, address.worker_id)
        name = f"process {address.worker_id.hex()[:12]} of node {address.node_id.hex()[:12]}"
        return await self._transport.greet(sock, name, on_message, on_close, target=address.worker_id)

    async def close(self) -> None:
        """End in good order: no more connections, no more workers, nothing on disk."""
        if self._memory_timer is not None:
            self._memory_timer.cancel()
        for listener in self._listeners:
            listener.close()
        if self._hang_up is not None:
            self._hang_up()
        await self.node_agent.close()
        if self._link is not None:
            self._link.close()
        for part in (self._drain, self._moving, self._spilled):
            if part is not None:
                part.close()
        if self._neighbours is not None:
            self._neighbours.close()
        if self._serving is not None:
            self._serving.close()
        if self._pulling is not None:
            await self._pulling.close()
        await self.object_store.close()
        if self._dialling is not None:
            self._dialling.close()
        if self._control_store is not None:
            self._control_store.close()

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
