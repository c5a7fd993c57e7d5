"""One simulated node: a real node agent and object store, workers that are simulated processes, and the ways in which it can fail.

A node's processes have endpoints ``NAME/agent``, ``NAME/w1``... on the host ``NAME`` (``hosts.py`` says who reaches whom).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from shoal._base.ids import NODE_BYTES
from shoal._core.control_link import ControlLink
from shoal._core.node_agent.drain_service import DrainService
from shoal._core.node_agent.moving import Moving
from shoal._core.node_agent.neighbours import Neighbours
from shoal._core.node_agent.server import NodeAgent
from shoal._core.object_store import Arena, ObjectStore
from shoal._core.object_store.disk import DiskUsage
from shoal._core.object_store.entries import Entry
from shoal._core.object_store.inside import inside_client
from shoal._core.object_store.pulling import Pulling
from shoal._core.object_store.serving import Serving
from shoal._core.process.composition import BEATS_PER_TIMEOUT
from shoal._core.transport.connection import Connection
from shoal._core.transport.errors import ConnectFailed, RequestFailed
from shoal._core.transport.memory import MemoryTransport
from shoal._core.transport.shared import SharedConnections
from shoal._core.transport.trust import Tokens, Trust
from shoal._core.wire.messages import Address, NodeRecord
from shoal.testing.simulation.hosts import HostTransport, SimulatedDialling, no_message
from shoal.testing.simulation.process_loop import ProcessLoop
from shoal.testing.simulation.transfer import DataWay
from shoal.testing.simulation.workers import SimulatedWorkers
from shoal.testing.simulation.world import World


class SimulatedNode:
    """Started by ``start``; ended by ``kill`` or ``close``.

    Args:
        number: its position among all nodes that the cluster ever had.
        resources: fixed-point amounts.
        find: returns a living node, by its id.
        is_alone: the one node of a session of its own, with the control store in its agent's process.
    """

    def __init__(
        self, world: World, number: int, resources: dict[str, int], find: Callable[[bytes], SimulatedNode | None], *, is_alone: bool
    ) -> None:
        self.world = world
        self.name = f"n{number}"
        self.node_id = (b"node%04d" % number).ljust(NODE_BYTES, b"\0")
        self.resources = resources
        self.dead = False
        self.loop = ProcessLoop(world.loop)
        # Named as no other session is: exports of functions are known by the name of the session.
        self.directory = f"{world.directory}/{os.path.basename(world.directory)}-{self.name}"
        self.address = f"unix:{self.directory}/agent.sock"
        os.mkdir(self.directory)
        endpoint = f"{self.name}/agent"
        world.network.place(endpoint, self.name, self.loop)
        self._transport = HostTransport(world.network, endpoint)
        self._peers = SharedConnections(self.loop, self._transport, no_message)
        self.arena = Arena.create(world.chances.arena_bytes)

        def usage(_path: str) -> DiskUsage:
            return DiskUsage(100 << 30, 100 << 30, 0) if number in world.full_disks else DiskUsage(100 << 30, 1 << 30, 99 << 30)

        self.object_store = ObjectStore(self.loop, self.arena, f"{self.directory}/spill", world.settings, warm_ahead_bytes=0, usage=usage)
        self.workers = SimulatedWorkers(world, self.name, self.loop, self.address, self.directory, self.arena)
        record = NodeRecord(
            self.node_id, self.address, self.name, "127.0.0.1", dict(resources), dict(resources), {"name": self.name}, name=self.name
        )
        self.agent = NodeAgent(
            self.loop, record, self.object_store, self.workers, world.settings, self.directory, self.arena.path, self.arena.nbytes,
            world.control_address, connect=self._reach, new_worker_id=world.new_worker_id,
        )  # fmt: skip
        self.workers.worker_exited = self.agent.worker_exited
        self.serving: Serving | None = None
        self._pulling: Pulling | None = None
        self._neighbours: Neighbours | None = None
        self._find = find
        self._dialling: SimulatedDialling | None = None
        self._link: ControlLink | None = None
        self._moving: Moving | None = None
        self._drain: DrainService | None = None
        #: The node was declared dead.
        self.on_declared_dead: Callable[[], object] = lambda: None
        if not is_alone:
            self._open_to_others()

    async def _reach(self, address: Address) -> Connection:
        """Connect to a process, on whatever node: the agent of a node opens the way itself."""
        if address.node_id == self.node_id:
            return await self._peers.connect(address.address)
        if address.worker_id == address.node_id:
            node = self.agent.view.get(address.node_id)
            if node is None:
                raise ConnectFailed(f"Node {address.node_id.hex()} has died, or is not known here.")
            return await self._peers.connect(node.endpoint)
        way = MemoryTransport(self.world.network, self._transport.name)
        return await self._peers.connect(address.address, partial(way.connect, address.address))

    def _open_to_others(self) -> None:
        """Do as a head does that has other nodes."""
        agent, store, trust = self.agent, self.object_store, Trust(Tokens(b""), "")
        self._dialling = dialling = SimulatedDialling(self.loop, self.world.network, self._transport.name, agent.view)
        inside = inside_client(self.loop, store, self.arena, "other nodes")
        self._pulling = pulling = Pulling(self.loop, store, inside, self.arena, self.node_id, self._way_to, trust)
        self.serving = serving = Serving(self.loop, store, inside, self.arena, self.node_id, pulling, trust)
        self._neighbours = neighbours = Neighbours(self.loop, agent.view.get, self._reach)
        store.puller = pulling
        store.on_freed = lambda object_ids: neighbours.free_copies(serving.copies_of(object_ids))
        self._moving = moving = Moving(self.loop, self.node_id, store, inside, agent.adopted, neighbours, agent.connection_of)
        self._drain = drain = DrainService(
            agent, store.primaries, moving.copy_off, agent.leave_to_others(neighbours), neighbours.settled, self._leave
        )
        agent.open_to_others(f"tcp:{self.name}", neighbours, {**dialling.handlers(), **moving.handlers(), **drain.handlers()})

    async def _way_to(self, node_id: bytes) -> Any:
        """Connect to the DATA side of a node."""
        source = self._find(node_id)
        if source is None or self.agent.view.get(node_id) is None:
            raise ConnectFailed(f"Node {node_id.hex()} has died, or is not known here.")
        return DataWay(self.world.network, self.name, source)

    async def start(self, inside: MemoryTransport | None) -> None:
        """Join the cluster; ``inside`` leads to a control store in this very process."""
        agent = self.agent
        await self._transport.listen(self.address, agent.accept)
        if agent.node.endpoint:
            await self._transport.listen(agent.node.endpoint, agent.accept)
        agent.start()
        if inside is not None:
            await agent.attach_control(await inside.connect(self.world.control_address, no_message))
        else:
            await self._join()

    async def _join(self) -> None:
        timeout_s = self.world.settings.node_timeout_s
        self._link = ControlLink(
            self.loop,
            lambda on_message, on_close: self._transport.connect(self.world.control_address, on_message, on_close),
            self.node_id,
            greet=self.agent.registration,
            silence_s=timeout_s,
            beat_s=timeout_s / BEATS_PER_TIMEOUT,
            always=True,
            on_refused=self._declared_dead,
        )
        self.agent.obey(self._link)
        await self._link.open(patient=True)

    def _declared_dead(self, _error: RequestFailed) -> None:
        if self.agent.node.draining:
            self._leave()
        else:
            self.on_declared_dead()

    def _leave(self) -> None:
        """Nothing is here any more that anybody waits for."""
        self.world.loop.call_soon(self.kill)

    async def close(self) -> None:
        """End in good order, after the workers."""
        if self._dialling is not None:
            self._dialling.close()
        await self.agent.close()
        if self._link is not None:
            self._link.close()
        for part in (self._drain, self._moving, self._neighbours):
            if part is not None:
                part.close()
        if self._pulling is not None:
            await self._pulling.close()
        await self.object_store.close()
        self.arena.close()

    def kill(self) -> None:
        """SIGKILL the agent; its workers die with it (PDEATHSIG). Not from a process of this node."""
        if self.dead:
            return
        self.dead = True
        self.loop.kill()
        self.world.network.kill(f"{self.name}/agent")
        self.workers.kill_all()
        self.arena.close()

    # --- looking ---

    def check(self) -> None:
        self.agent.check()
        self.object_store.check()

    def leftovers(self) -> list[str]:
        """Name what a node without work and objects should not hold."""
        agent, found = self.agent, []
        leases = agent.leases
        if leases.leases:
            found.append(f"node agent: leases {list(leases.leases)}")
        if leases.waiting:
            found.append("node agent: lease requests that wait")
        if (available := leases.available()) != agent.node.total:
            found.append(f"node agent: free are {available} of {agent.node.total}")
        if agent.adopted.state.objects:
            found.append(f"node agent: adopted {list(agent.adopted.state.objects.values())}")
        if hosted := len(agent.actors._actors):
            found.append(f"node agent: {hosted} actors")
        objects = [entry for entry in self.object_store._residence.objects.values() if self._is_left_over(entry)]
        if objects or self.object_store.statistics().waiting or any(entry.pins for entry in objects):
            found.append(f"object store: {objects} {self.object_store.statistics()}")
        return [f"{self.name} {what}" for what in found]

    def _is_left_over(self, entry: Entry) -> bool:
        if not entry.is_copy:
            return True
        # A copy goes with its primary; one whose primary's node has died is a cache that goes when room is needed.
        primary = self._find(entry.owner.node_id)
        return primary is not None and not primary.object_store.contains(entry.object_id)
