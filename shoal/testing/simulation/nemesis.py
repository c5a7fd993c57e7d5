"""Carries out the faults of a program, from outside of all its processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from shoal._core.transport.errors import RequestFailed
from shoal._core.transport.memory import MemoryTransport
from shoal._core.wire import messages as wire
from shoal.testing.simulation.faults import (
    DrainNode,
    Fault,
    FullDisk,
    JumpClock,
    KillControlStore,
    KillNode,
    KillProcess,
    Partition,
    PauseAgent,
    PauseProcess,
    Slow,
)
from shoal.testing.simulation.hosts import no_message
from shoal.testing.simulation.nodes import SimulatedNode
from shoal.testing.simulation.process_loop import ProcessLoop

if TYPE_CHECKING:
    from shoal.testing.simulation.cluster import SimulatedCluster


#: Virtual seconds until a control store that was not there is asked again.
_AGAIN_S = 0.2


def host_name(node: int) -> str:
    return "head" if node < 0 else f"n{node}"


class Nemesis:
    """Schedules the faults of one program from now on."""

    def __init__(self, cluster: SimulatedCluster, faults: tuple[Fault, ...]) -> None:
        self._cluster = cluster
        for fault in faults:
            cluster.loop.call_later(fault.at_s, self._begin, fault)

    def _begin(self, fault: Fault) -> None:
        cluster, network = self._cluster, self._cluster.network
        match fault:
            case KillProcess():
                cluster.kill_some_worker(fault.pick)
            case PauseProcess():
                started = [process for node in cluster.living_nodes() for process in node.workers.started()]
                if started:
                    self._pause(started[fault.pick % len(started)].loop, fault.for_s)
            case PauseAgent():
                if node := self._living(fault.node):
                    self._pause(node.loop, fault.for_s)
            case KillNode():
                if node := self._living(fault.node):
                    node.kill()
                    self._later(fault.for_s, partial(cluster.add_node, node.resources))
            case DrainNode():
                if node := self._living(fault.node):
                    cluster.loop.create_task(self._drain(node, fault.deadline_s))
                    self._later(fault.for_s, partial(cluster.add_node, node.resources))
            case Partition():
                a, b = host_name(fault.node), host_name(fault.other)
                network.partition(a, b, one_way=fault.one_way)
                self._later(fault.for_s, lambda: network.heal(a, b))
            case Slow():
                a, b = host_name(fault.node), host_name(fault.other)
                network.delay(a, b, 0.0, fault.longest_s)
                self._later(fault.for_s, lambda: network.end_delay(a, b))
            case KillControlStore():
                if not cluster.control.dead:  # else it is killed already, and started again by whoever did that
                    cluster.control.kill()
                    self._later(fault.for_s, cluster.control.start)
            case JumpClock():
                cluster.world.clock_error_s += fault.by_s
            case FullDisk():
                cluster.world.full_disks.add(fault.node)
                self._later(fault.for_s, lambda: cluster.world.full_disks.discard(fault.node))

    async def _drain(self, node: SimulatedNode, deadline_s: float) -> None:
        """Do as the command line does, again and again while the control store is not there."""
        world = self._cluster.world
        operator = MemoryTransport(world.network, "operator")
        while not (node.dead or node.agent.node.draining):
            with contextlib.suppress(OSError, RequestFailed):
                connection = await operator.connect(world.control_address, no_message)
                await connection.request(wire.DrainNode(0, node.node_id, wire.DRAIN_PREEMPTION, "simulated", deadline_s))
                connection.close()
            await asyncio.sleep(_AGAIN_S)

    def _living(self, number: int) -> SimulatedNode | None:
        node = self._cluster.nodes[number]
        return None if node.dead else node

    def _pause(self, loop: ProcessLoop, for_s: float) -> None:
        if not loop.paused:
            loop.pause()
            self._later(for_s, loop.resume)

    def _later(self, seconds: float, what: Callable[[], object]) -> None:
        self._cluster.loop.call_later(seconds, what)
