"""Claim: encryption between machines costs less than a tenth of the tasks that a caller can have done on another node.

Two clusters of two nodes on this machine, the same but for their addresses: at 127.0.0.1 sockets are plain, at the machine's own they
are encrypted. They run by turns, so that both meet the same moods of the machine.
"""

from __future__ import annotations

import socket
import statistics
from collections.abc import Callable

import numpy as np
from harness import Recorder, main, repeat, scaled, seconds

ALONE = scaled(500)
IN_FLIGHT = scaled(2000)
LARGE = scaled(200e6, 8_000_000)
TURNS = 4
#: Batches per turn: single ones differ by half on a machine of two cores, five times what is looked for.
BATCHES = scaled(30, 3)


class Plain:
    def call(self) -> bytes:
        return b"ok"


def own_address() -> str:
    """Return an address of this machine that is not loopback. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))
        return str(sock.getsockname()[0])


def runtime(recorder: Recorder) -> None:
    found: dict[str, list[float]] = {}
    both = [("_plain", "127.0.0.1"), ("_encrypted", own_address())]
    for turn in range(TURNS):
        for suffix, address in both if turn % 2 == 0 else reversed(both):  # neither is always the one that comes after
            for metric, value in _measure(recorder, address).items():
                found.setdefault(metric + suffix, []).append(value)
    for metric, values in sorted(found.items(), reverse=True):  # plain before encrypted
        recorder.emit(metric, statistics.median(values))


def _measure(recorder: Recorder, address: str) -> dict[str, float]:
    """Return the rates between two nodes at this address."""
    api, cluster_utils = recorder.load(), recorder.load(".cluster_utils")
    room = {"node_ip_address": address, "object_store_memory": max(4 * LARGE, 200 * 2**20)}
    cluster = cluster_utils.Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1, **room})
    try:
        cluster.add_node(num_cpus=1, resources={"far": 1}, **room)
        far = {"num_cpus": 0, "resources": {"far": 0.001}}

        @api.remote(**far)
        def task() -> bytes:
            return b"ok"

        @api.remote(**far)
        def look(array: np.ndarray) -> int:
            return len(array)

        actor = api.remote(**far)(Plain).remote()
        api.get([actor.call.remote(), task.remote(), look.remote(api.put(np.ones(2**20)))])
        arrays = [np.full(LARGE // 8, value) for value in range(4)]  # of other content each time: nothing to find again

        def transfer() -> None:
            api.get(look.remote(api.put(arrays.pop())))

        return {
            "remote_calls_alone": _rate(lambda: repeat(lambda: api.get(actor.call.remote()), ALONE), ALONE),
            "remote_calls_in_flight": _rate(lambda: api.get([actor.call.remote() for _ in range(IN_FLIGHT)]), IN_FLIGHT, BATCHES),
            "remote_tasks_in_flight": _rate(lambda: api.get([task.remote() for _ in range(IN_FLIGHT)]), IN_FLIGHT, BATCHES),
            "remote_argument": _rate(transfer, LARGE / 1e9),
        }
    finally:
        api.shutdown()
        cluster.shutdown()


def _rate(work: Callable[[], object], amount: float, batches: int = 3) -> float:
    work()
    return amount / statistics.median(seconds(work) for _ in range(batches))


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime})
