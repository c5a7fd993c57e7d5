"""What all parts of a simulated cluster share: the clock, the network, chance, settings, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass

from shoal._base.ids import WORKER_BYTES
from shoal._base.settings import Settings
from shoal._core.transport.memory import MemoryNetwork
from shoal.testing.virtual_loop import VirtualLoop

#: Values above this many bytes lie in the object store: small, so that a program need not move megabytes.
INLINE_BYTES = 600
SETTINGS = Settings(
    inline_limit_bytes=INLINE_BYTES, idle_worker_s=0.5, cancel_grace_s=2.0, adoption_grace_s=2.0, log_to_driver=False,
    ignore_unhandled_errors=True, node_timeout_s=3.0, node_return_s=3.0,
)  # fmt: skip


@dataclass(frozen=True)
class Chances:
    """How slow things are, in virtual seconds (shortest, longest), and how large the nodes are.

    ``nodes``: the CPUs of each; one number is a session of one node.
    """

    frame_s: tuple[float, float] = (0.00005, 0.002)
    fork_s: tuple[float, float] = (0.002, 0.03)
    death_s: tuple[float, float] = (0.0, 0.004)
    nodes: tuple[int, ...] = (2,)
    arena_bytes: int = 1 << 20


class World:
    """One cluster's."""

    control_address = "tcp:control"

    def __init__(self, loop: VirtualLoop, chances: Chances, settings: Settings) -> None:
        self.loop = loop
        self.random = loop.random
        self.chances = chances
        self.settings = settings
        self.network = MemoryNetwork(loop, loop.random, delay_s=chances.frame_s)
        #: Everybody's session directories lie in it; made by the cluster.
        self.directory = ""
        #: What was logged as an error, or raised where nobody catches it.
        self.errors: list[str] = []
        #: What the nemesis has done: to the control store's wall clock; nodes whose spill disk is full (-1: the control store's disk).
        self.clock_error_s = 0.0
        self.full_disks: set[int] = set()
        self._worker_ids = 0

    def draw(self, bounds: tuple[float, float]) -> float:
        """Draw a time between two."""
        return self.random.uniform(*bounds)

    def new_worker_id(self) -> bytes:
        """Return the next id of a worker: on every machine the same."""
        self._worker_ids += 1
        return (b"w%06d" % self._worker_ids).ljust(WORKER_BYTES, b"-")
