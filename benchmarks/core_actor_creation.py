"""Claim: an actor is a fork away: tens of times more of them start in a second."""

from __future__ import annotations

from harness import Recorder, main, scaled

#: Few, since each is a process and Ray needs a third of a second for one.
ACTORS = scaled(20)


def runtime(recorder: Recorder) -> None:
    api = recorder.init()

    @api.remote(num_cpus=0)
    class Actor:
        def call(self) -> bytes:
            return b"ok"

    api.get(Actor.remote().call.remote())

    def create() -> None:
        actors = [Actor.remote() for _ in range(ACTORS)]
        api.get([actor.call.remote() for actor in actors])

    recorder.rate("actors_created", create, ACTORS, repeat=1, warmup=0)
    api.shutdown()


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime})
