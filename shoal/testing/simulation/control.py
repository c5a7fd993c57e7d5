"""The simulated control store: the real one, whose process can die and be started again on its tables, and whose disk can be full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from shoal._core.control_store.node_service import Probe
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import Change, MemoryStorage
from shoal._core.transport.memory import MemoryTransport
from shoal._core.transport.presence import tell
from shoal._core.wire.messages import Message, NodeRecord
from shoal.testing.simulation.process_loop import ProcessLoop
from shoal.testing.simulation.world import World

HOST = "head"


class SimulatedControlStore:
    """One process after the other, on the same tables. ``store`` is that of now, or the last one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._storage = FillableStorage(lambda: -1 in world.full_disks)
        self._starts = 0
        self._endpoint = ""
        self.loop: ProcessLoop
        self.store: ControlStore
        self.dead = True

    def start(self) -> None:
        """Start a process that reads the tables and listens."""
        world = self._world
        self._starts += 1
        self._endpoint = f"control store {self._starts}"
        self.loop = ProcessLoop(world.loop)
        world.network.place(self._endpoint, HOST, self.loop)
        self.store = self.inside(self.loop)
        self.store.load()
        world.network.bind(self._endpoint, world.control_address, self.store.accept)
        self.dead = False

    def inside(self, loop: ProcessLoop) -> ControlStore:
        """Make one that runs in somebody else's process."""
        world = self._world
        clock = lambda: loop.time() + world.clock_error_s  # noqa: E731
        return ControlStore(loop, self._storage, world.settings, clock=clock, probe=Probe(self._is_there, self._has_ended, self._tell))

    def kill(self) -> None:
        """SIGKILL. What was not committed is forgotten."""
        if not self.dead:
            self.dead = True
            self.loop.kill()
            self._world.network.kill(self._endpoint)

    async def _is_there(self, node: NodeRecord) -> bool:
        transport = MemoryTransport(self._world.network, self._endpoint)
        try:
            connection = await transport.connect(node.endpoint, lambda _connection, _message: None)
        except OSError:
            return False
        connection.close()
        return True

    async def _tell(self, node: NodeRecord, message: Message) -> None:
        transport = MemoryTransport(self._world.network, self._endpoint)
        await tell(transport.connect(node.endpoint, lambda _connection, _message: None), message)

    async def _has_ended(self, node: NodeRecord) -> bool:
        """Knock at a node's port: a refusal comes back, silence does not."""
        return not await self._is_there(node) and not self._world.network.where(node.endpoint)


class FillableStorage(MemoryStorage):
    """Tables on a disk that can be full."""

    def __init__(self, is_full: Callable[[], bool]) -> None:
        super().__init__()
        self._is_full = is_full

    def apply(self, changes: Sequence[Change]) -> None:
        if self._is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().apply(changes)
