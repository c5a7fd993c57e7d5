"""Claim: a task costs shoal a small part of what it costs elsewhere, alone and by the thousand."""

from __future__ import annotations

from harness import Recorder, main, scaled

IN_FLIGHT = scaled(1000)
ALONE = scaled(500)


def nothing(argument: object = None) -> bytes:
    return b"ok"


def runtime(recorder: Recorder) -> None:
    api = recorder.init()
    task = api.remote(nothing)
    api.get([task.remote() for _ in range(20)])
    recorder.one_at_a_time("tasks_one_at_a_time", lambda: api.get(task.remote()), ALONE)
    # Each task is submitted before the first result is asked for.
    recorder.rate("tasks_in_flight", lambda: api.get([task.remote() for _ in range(IN_FLIGHT)]), IN_FLIGHT, repeat=5)
    recorder.rate("tasks_with_argument", lambda: api.get([task.remote(i) for i in range(IN_FLIGHT)]), IN_FLIGHT)

    def chain() -> None:
        last = task.remote()
        for _ in range(ALONE):
            last = task.remote(last)
        api.get(last)

    recorder.rate("tasks_chained", chain, ALONE)
    api.shutdown()


def pool(recorder: Recorder) -> None:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as executor:
        _futures(recorder, executor)


def loky(recorder: Recorder) -> None:
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=2)
    _futures(recorder, executor)
    executor.shutdown()


def dask(recorder: Recorder) -> None:
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        client.submit(nothing, pure=False).result()
        recorder.one_at_a_time("tasks_one_at_a_time", lambda: client.submit(nothing, pure=False).result(), ALONE)
        recorder.rate("tasks_in_flight", lambda: client.gather(client.map(nothing, range(IN_FLIGHT), pure=False)), IN_FLIGHT, repeat=5)


def _futures(recorder: Recorder, executor) -> None:
    executor.submit(nothing).result()
    recorder.one_at_a_time("tasks_one_at_a_time", lambda: executor.submit(nothing).result(), ALONE)
    recorder.rate(
        "tasks_in_flight", lambda: [f.result() for f in [executor.submit(nothing) for _ in range(IN_FLIGHT)]], IN_FLIGHT, repeat=5
    )


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime, "pool": pool, "loky": loky, "dask": dask})
