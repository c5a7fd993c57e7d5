"""Claim: small objects cost a dictionary entry, large ones one copy in and none out."""

from __future__ import annotations

import functools
import shutil
import tempfile

import numpy as np
from harness import Recorder, main, repeat, scaled

LARGE = scaled(800e6, 8_000_000)
MANY = scaled(10_000)


def runtime(recorder: Recorder) -> None:
    api = recorder.init(object_store_memory=max(3 * LARGE, 200 * 2**20))
    small = b"x" * 100
    kept = api.put(small)
    recorder.one_at_a_time("put_small", lambda: api.put(small), scaled(5000))
    recorder.one_at_a_time("get_small", lambda: api.get(kept), scaled(5000))

    array = np.ones(LARGE // 8)
    recorder.rate("put_large", lambda: api.put(array), array.nbytes / 1e9, repeat=5, warmup=2)
    recorder.one_at_a_time("get_large", functools.partial(api.get, api.put(array)), scaled(1000))

    @api.remote
    def produce():
        return np.zeros(2**17)

    results = scaled(100)
    recorder.rate("task_returns_1_mib", lambda: _get_each(api, [produce.remote() for _ in range(results)]), results)
    references = [api.put(i) for i in range(MANY)]
    box = api.put(references)
    recorder.rate("get_10k_references", lambda: api.get(box), 1, repeat=5)
    recorder.rate("get_10k_values", lambda: api.get(references), 1, repeat=5)
    api.shutdown()


def _get_each(api, references: list) -> None:
    for reference in references:
        api.get(reference)


def dask(recorder: Recorder) -> None:
    from distributed import Client

    folder = tempfile.mkdtemp()
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=folder) as client:
        small = b"x" * 100
        recorder.one_at_a_time("put_small", lambda: client.scatter(small, hash=False), scaled(200))
        kept = client.scatter(small, hash=False)
        repeat(kept.result, 3)
        recorder.one_at_a_time("get_small", kept.result, scaled(200))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime, "dask": dask})
