"""Claim: waiting for 1,000 results, one by one as they come, costs time in proportion to the results, not to their square."""

from __future__ import annotations

from harness import Recorder, main, scaled

RESULTS = scaled(1000)


def nothing(argument: object = None) -> bytes:
    return b"ok"


def runtime(recorder: Recorder) -> None:
    api = recorder.init()
    task = api.remote(nothing)
    api.get([task.remote() for _ in range(20)])

    def drain() -> None:
        left = [task.remote() for _ in range(RESULTS)]
        while left:
            _, left = api.wait(left)

    recorder.rate("wait_1k", drain, 1)
    api.shutdown()


def pool(recorder: Recorder) -> None:
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

    with ProcessPoolExecutor(2) as executor:

        def drain() -> None:
            left = {executor.submit(nothing) for _ in range(RESULTS)}
            while left:
                _, left = wait(left, return_when=FIRST_COMPLETED)

        recorder.rate("wait_1k", drain, 1)


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime, "pool": pool})
