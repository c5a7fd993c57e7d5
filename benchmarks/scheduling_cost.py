"""What one decision of the scheduler costs in a large cluster, in the pure parts alone: no process, no socket.

    python benchmarks/scheduling_cost.py [nodes]

Prints microseconds per call.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import count

from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling.packing import place_bundles
from shoal._core.scheduling.policy import choose_node
from shoal._core.scheduling.resources import UNIT, Capacity
from shoal._core.wire.messages import NodeRecord, Shape

CPU = Shape(b"job", (("CPU", UNIT),))
SPREAD = Shape(b"job", (("CPU", UNIT),), ("SPREAD",))
LABEL = Shape(b"job", (("CPU", UNIT),), label_selector=(("zone", "7"),))
AFFINE = Shape(b"job", (("CPU", UNIT),), ("NODE_AFFINITY", b"500".ljust(28), True))


def record(number: int, free: int) -> NodeRecord:
    fixed = {"memory": 64 << 40, "object_store_memory": 16 << 40, f"node:10.0.{number >> 8}.{number & 255}": UNIT}
    total = {"CPU": 16 * UNIT, **fixed}
    node_id = str(number).encode().ljust(28)
    return NodeRecord(
        node_id, "", "", "", total, {**total, "CPU": free * UNIT}, {"zone": str(number % 10), "ray.io/node-id": node_id.hex()}
    )


def cost_us(call: Callable[[], object]) -> float:
    call()
    best = float("inf")
    for _ in range(5):
        rounds, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.05:
            call()
            rounds += 1
        best = min(best, (time.perf_counter() - start) / rounds)
    return best * 1e6


def leases_of(nodes: list[NodeRecord]) -> Leases:
    view = ClusterView(nodes[0])
    view.update(nodes[1:])
    leases = Leases(Capacity(nodes[0].total), nodes[0].node_id, view.nodes)
    leases.node.free["CPU"] = nodes[0].available["CPU"]
    return leases


def asking(leases: Leases) -> Callable[[], object]:
    """Return what asks for a lease, and withdraws the request if it was queued."""
    numbers = count()

    def ask() -> None:
        leases.add(LeaseRequest(1, next(numbers), CPU, 0.0))
        leases.owner_lost(1)

    return ask


def main(number_of_nodes: int) -> None:
    idle = [record(number, 16) for number in range(number_of_nodes)]
    full = [record(number, 0) for number in range(number_of_nodes)]
    last = [*full[:-1], record(number_of_nodes - 1, 16)]
    away = [full[0], *idle[1:]]
    rows: list[tuple[str, Callable[[], object]]] = [
        ("task, this node idle", lambda: choose_node(CPU, idle, local=idle[0].node_id)),
        ("task, this node full", lambda: choose_node(CPU, away, local=away[0].node_id)),
        ("task, one node has room", lambda: choose_node(CPU, last, local=last[0].node_id)),
        ("task, all nodes full", lambda: choose_node(CPU, full, local=full[0].node_id)),
        ("SPREAD, all nodes idle", lambda: choose_node(SPREAD, idle, turn=5)),
        ("SPREAD, all nodes full", lambda: choose_node(SPREAD, full, turn=5)),
        ("label of every tenth node", lambda: choose_node(LABEL, idle, local=idle[0].node_id)),
        ("node affinity", lambda: choose_node(AFFINE, idle, local=idle[0].node_id)),
        ("group of 4, PACK", lambda: place_bundles([{"CPU": UNIT}] * 4, "PACK", idle)),
        ("group of 4, STRICT_SPREAD", lambda: place_bundles([{"CPU": UNIT}] * 4, "STRICT_SPREAD", idle)),
        ("group of 100, SPREAD", lambda: place_bundles([{"CPU": UNIT}] * 100, "SPREAD", idle)),
    ]
    for name, nodes in (("all idle", idle), ("this full", away), ("all full", full)):
        rows.append((f"request at an agent, {name}", asking(leases_of(nodes))))
    for name, call in rows:
        print(f"{name:32} {cost_us(call):10.1f} us")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
