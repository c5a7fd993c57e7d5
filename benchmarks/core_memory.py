"""Claim: a pending task and a live reference cost hundreds of bytes, a finished one none, and a million tasks may wait in one driver."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import numpy as np
from harness import Recorder, main, scaled

PENDING = scaled(20_000, 200)
REFERENCES = scaled(50_000, 200)
FINISHED = scaled(20_000, 200)
MILLION = scaled(1_000_000, 1000)
SHARED_BYTES = scaled(128 * 2**20, 2**20)
READERS = 4


def runtime(recorder: Recorder) -> None:
    api = recorder.init(object_store_memory=512 * 2**20)

    @api.remote
    def one() -> int:
        return 1

    api.get([one.remote() for _ in range(100)])
    _readers(recorder, api)
    if recorder.wanted("memory_per_reference"):
        before = _private()
        references = [api.put(i) for i in range(REFERENCES)]
        recorder.emit("memory_per_reference", (_private() - before) / REFERENCES)
        del references
    if recorder.wanted("growth_per_task"):
        _finish(api, one, FINISHED)
        before = _private()
        _finish(api, one, FINISHED)
        recorder.emit("growth_per_task", max(0, _private() - before) / FINISHED)
    if recorder.wanted("memory_per_pending_task"):
        before = _private()
        references = [one.options(resources={"absent": 1}).remote() for _ in range(PENDING)]
        time.sleep(1)
        recorder.emit("memory_per_pending_task", (_private() - before) / PENDING)
        for reference in references:
            api.cancel(reference)
        del references
    # Last: the memory that a million tasks leave to the allocator would hide what the others take.
    if recorder.wanted("million") and recorder.system == "shoal":
        _million(recorder, api, one)
    os._exit(0) if recorder.system == "ray" else api.shutdown()


def _readers(recorder: Recorder, api) -> None:
    if not recorder.wanted("memory_per_reader"):
        return

    @api.remote(num_cpus=0)
    class Reader:
        def read(self, box: list) -> int:
            before = _private()
            self.array = api.get(box[0])
            float(self.array.sum())
            return _private() - before

    array = api.put(np.ones(SHARED_BYTES // 8))
    readers = [Reader.remote() for _ in range(READERS)]
    grown = api.get([reader.read.remote([array]) for reader in readers])
    recorder.emit("memory_per_reader", max(0, sum(grown)) / READERS / 2**20)


def _million(recorder: Recorder, api, task) -> None:
    start = time.perf_counter()
    references = [task.remote() for _ in range(MILLION)]
    assert sum(api.get(references)) == MILLION
    recorder.emit("million_tasks_rate", MILLION / (time.perf_counter() - start))
    recorder.emit("million_tasks_memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _finish(api, task, count: int) -> None:
    for _ in range(0, count, 1000):
        api.get([task.remote() for _ in range(min(1000, count))])


def _private() -> int:
    """Bytes that only this process has, without the store's pages: those would count for whoever maps them alone at the moment."""
    total, shared = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        field, *rest = line.split()
        if not field.endswith(":"):  # the first line of a mapping
            shared = rest[0].endswith("s")
        elif not shared and field in ("Private_Dirty:", "Private_Clean:"):
            total += int(rest[0]) * 1024
    return total


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime})
