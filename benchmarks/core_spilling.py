"""Claim: values of twice the store's size go to disk and back at least as fast as with Ray, whether the driver or workers make them."""

from __future__ import annotations

import numpy as np
from harness import Recorder, main, scaled, seconds

STORE = scaled(512 * 2**20, 80 * 2**20)
CHUNK = scaled(16 * 2**20, 2**20)
CHUNKS = 2 * STORE // CHUNK
GIGABYTES = CHUNKS * CHUNK / 1e9


def runtime(recorder: Recorder) -> None:
    api = recorder.init(object_store_memory=STORE)
    if recorder.wanted("spill_write", "spill_read"):
        _driver(recorder, api)
    if recorder.wanted("spill_write_workers", "spill_read_workers"):
        _workers(recorder, api)
    api.shutdown()


def block_of(number: int) -> np.ndarray:
    block = np.arange(CHUNK // 8)
    block[0] = number
    return block


def check(number: int, block: np.ndarray) -> int:
    assert block[0] == number, "the wrong block came back"
    assert block[-1] == CHUNK // 8 - 1, "a torn block came back"
    return number


def _driver(recorder: Recorder, api) -> None:
    block = block_of(0)
    references = []

    def write() -> None:
        for number in range(CHUNKS):
            block[0] = number
            references.append(api.put(block))

    def read() -> None:
        for number, reference in enumerate(references):
            check(number, api.get(reference))

    recorder.emit("spill_write", GIGABYTES / seconds(write))
    recorder.emit("spill_read", GIGABYTES / seconds(read))


def _workers(recorder: Recorder, api) -> None:
    make, look = api.remote(block_of), api.remote(check)
    api.get([look.remote(number, make.remote(number)) for number in range(2)])
    references = []

    def write() -> None:
        references.extend(make.remote(number) for number in range(CHUNKS))
        # Not fetched: what is brought to this process in vain would push out what was just made.
        api.wait(references, num_returns=CHUNKS, fetch_local=False)

    def read() -> None:
        assert api.get([look.remote(number, reference) for number, reference in enumerate(references)]) == list(range(CHUNKS))

    recorder.emit("spill_write_workers", GIGABYTES / seconds(write))
    recorder.emit("spill_read_workers", GIGABYTES / seconds(read))


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime})
