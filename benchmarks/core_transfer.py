"""Claim: objects move between two nodes at Ray's rate at least, a large one at 60 % of a bare sendfile loop, and a broadcast is relayed."""

from __future__ import annotations

import numpy as np
from harness import Recorder, main, scaled, seconds

LARGE = scaled(256 * 2**20, 8 * 2**20) // 8 * 8
BROADCAST = scaled(100 * 2**20, 16 * 2**20) // 8 * 8
SMALL = 2**17
MANY = scaled(1000, 20)
STORE = 2**30
NODES = 4


def runtime(recorder: Recorder) -> None:
    api = recorder.load()
    cluster = recorder.load(".cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    )
    api.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    for index in range(NODES + 1):
        cluster.add_node(num_cpus=2, resources={f"n{index}": 1}, object_store_memory=STORE)

    def on(index: int) -> dict[str, object]:
        return {"resources": {f"n{index}": 0.01}, "num_cpus": 0.01}

    make = api.remote(lambda nbytes: np.ones(nbytes // 8))
    look = api.remote(lambda array: array.nbytes)
    api.get([look.options(**on(index)).remote(make.options(**on(index)).remote(SMALL)) for index in range(NODES + 1)])

    def made(nbytes: int):
        reference = make.options(**on(0)).remote(nbytes)
        api.wait([reference], fetch_local=False)
        return reference

    def moved(nbytes: int, nodes: range) -> float:
        reference = made(nbytes)
        return seconds(lambda: api.get([look.options(**on(index)).remote(reference) for index in nodes]))

    if recorder.wanted("transfer_large"):
        moved(LARGE, range(1, 2))  # pages that were never used before cost more than the way
        recorder.emit("transfer_large", LARGE / 1e9 / min(moved(LARGE, range(1, 2)) for _ in range(3)))
    if recorder.wanted("transfer_many"):
        # A whole CPU each, so that two workers read them all: dozens that start and import numpy would be what is measured.
        read = look.options(resources={"n1": 0.01}, num_cpus=1)

        def many() -> float:
            references = [make.options(**on(0)).remote(SMALL) for _ in range(MANY)]
            api.wait(references, num_returns=MANY, fetch_local=False)
            return seconds(lambda: api.get([read.remote(reference) for reference in references]))

        many()
        recorder.emit("transfer_many", MANY / min(many() for _ in range(3)))
    if recorder.wanted("transfer_get_many"):

        def many_gets() -> float:
            references = [make.options(**on(0)).remote(SMALL) for _ in range(MANY)]
            api.wait(references, num_returns=MANY, fetch_local=False)
            return seconds(lambda: api.get(references))

        many_gets()
        recorder.emit("transfer_get_many", MANY / min(many_gets() for _ in range(3)))
    if recorder.wanted("broadcast"):
        moved(BROADCAST, range(1, NODES + 1))
        one = min(moved(BROADCAST, range(1, 2)) for _ in range(5))
        recorder.emit("broadcast", min(moved(BROADCAST, range(1, NODES + 1)) for _ in range(5)) / one)
    api.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime})
