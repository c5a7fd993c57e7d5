"""Claim: a call to an actor costs little more than a message, for plain and for async actors, from one caller and from several."""

from __future__ import annotations

from harness import Recorder, main, scaled

IN_FLIGHT = scaled(2000)
ALONE = scaled(1000)


class Plain:
    def call(self) -> bytes:
        return b"ok"

    def stream(self, count: int):
        for i in range(count):  # noqa: UP028 - Ray 2.60 refuses `yield from` over anything but a generator
            yield i


class Async:
    async def call(self) -> bytes:
        return b"ok"


def runtime(recorder: Recorder) -> None:
    api = recorder.init()
    plain = api.remote(num_cpus=0)(Plain)
    actor = plain.remote()
    api.get(actor.call.remote())
    recorder.one_at_a_time("actor_calls_one_at_a_time", lambda: api.get(actor.call.remote()), ALONE)
    recorder.rate("actor_calls_in_flight", lambda: api.get([actor.call.remote() for _ in range(IN_FLIGHT)]), IN_FLIGHT)
    other = api.remote(num_cpus=0)(Async).remote()
    api.get(other.call.remote())
    recorder.rate("async_actor_calls_in_flight", lambda: api.get([other.call.remote() for _ in range(IN_FLIGHT)]), IN_FLIGHT)
    stream = actor.stream.options(num_returns="streaming")
    recorder.rate("actor_stream_items", lambda: [api.get(item) for item in stream.remote(IN_FLIGHT)], IN_FLIGHT)

    @api.remote(num_cpus=0)
    class Caller:
        def drive(self, actors: list, count: int) -> None:
            api.get([actors[i % len(actors)].call.remote() for i in range(count)])

    called = [plain.remote() for _ in range(2)]
    callers = [Caller.remote() for _ in range(2)]
    api.get([x.call.remote() for x in called])
    recorder.rate("actor_calls_n_to_n", lambda: api.get([x.drive.remote(called, IN_FLIGHT) for x in callers]), 2 * IN_FLIGHT)
    api.shutdown()


def dask(recorder: Recorder) -> None:
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        actor = client.submit(Plain, actor=True).result()
        recorder.one_at_a_time("actor_calls_one_at_a_time", lambda: actor.call().result(), ALONE)
        recorder.rate("actor_calls_in_flight", lambda: [f.result() for f in [actor.call() for _ in range(IN_FLIGHT)]], IN_FLIGHT)


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime, "dask": dask})
