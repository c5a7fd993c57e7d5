"""Claim: shoal is up, and gone again, in a fraction of the time and memory.

Each round is a fresh interpreter. The interpreter's own start is not counted; the import is, on a line of its own.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from harness import Recorder, family, main, pss_bytes

#: Long enough for warm-up work in the background to end.
SETTLE_S = 3.0


def runtime(recorder: Recorder) -> None:
    start = time.perf_counter()
    api = recorder.load()
    imported = time.perf_counter()
    recorder.init()

    @api.remote
    def one() -> int:
        return 1

    assert api.get(one.remote()) == 1
    first_result = time.perf_counter()
    time.sleep(SETTLE_S)
    processes = family(os.getpid())
    recorder.emit("import_time", imported - start)
    recorder.emit("start_to_first_result", first_result - imported)
    recorder.emit("idle_memory", pss_bytes(processes) / 2**20)
    recorder.emit("idle_processes", len(processes) - 1)
    stop = time.perf_counter()
    api.shutdown()
    recorder.emit("shutdown", time.perf_counter() - stop)
    recorder.emit("installed_size", _package_bytes(Path(api.__file__).parent) / 2**20)


def dask(recorder: Recorder) -> None:
    start = time.perf_counter()
    import distributed

    imported = time.perf_counter()
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        assert client.submit(int, 1).result() == 1
        first_result = time.perf_counter()
        time.sleep(SETTLE_S)
        processes = family(os.getpid())
        recorder.emit("import_time", imported - start)
        recorder.emit("start_to_first_result", first_result - imported)
        recorder.emit("idle_memory", pss_bytes(processes) / 2**20)
        recorder.emit("idle_processes", len(processes) - 1)
        stop = time.perf_counter()
    recorder.emit("shutdown", time.perf_counter() - stop)


def loky(recorder: Recorder) -> None:
    start = time.perf_counter()
    from joblib.externals.loky import get_reusable_executor

    imported = time.perf_counter()
    executor = get_reusable_executor(max_workers=2)
    assert executor.submit(int, 1).result() == 1
    recorder.emit("import_time", imported - start)
    recorder.emit("start_to_first_result", time.perf_counter() - imported)
    stop = time.perf_counter()
    executor.shutdown()
    recorder.emit("shutdown", time.perf_counter() - stop)


def _package_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.suffix != ".pyc")


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime, "dask": dask, "loky": loky})
