"""Claim: a placement group is reserved and given back in two short rounds."""

from __future__ import annotations

from harness import Recorder, main, scaled

IN_FLIGHT = scaled(100)
CYCLES = scaled(50)


def runtime(recorder: Recorder) -> None:
    api = recorder.init()
    util = recorder.load(".util")

    def many() -> None:
        groups = [util.placement_group([{"CPU": 0.01}]) for _ in range(IN_FLIGHT)]
        for group in groups:
            assert group.wait(30)
        for group in groups:
            util.remove_placement_group(group)

    def one() -> None:
        group = util.placement_group([{"CPU": 0.01}])
        api.get(group.ready())
        util.remove_placement_group(group)

    recorder.rate("placement_group_cycle", many, IN_FLIGHT)
    recorder.one_at_a_time("placement_group_ready", one, CYCLES)
    api.shutdown()


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": runtime, "ray": runtime})
