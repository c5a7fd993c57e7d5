"""Runs the same programs on real processes: real workers, real SIGKILLs, real time."""

from __future__ import annotations

import os
import signal

import shoal
from shoal._base import runtime as holder
from shoal._core.worker.runtime import CoreRuntime
from shoal.testing.session_processes import SessionProcesses
from shoal.testing.simulation import interpretation
from shoal.testing.simulation.campaign import Failure
from shoal.testing.simulation.expectation import Expectation
from shoal.testing.simulation.generation import generate
from shoal.testing.simulation.interpretation import RealSurroundings
from shoal.testing.simulation.leftovers import core_leftovers
from shoal.testing.waiting import wait_for

#: Seconds in which everything that was dropped must be gone: an owner's death has a grace of five.
DRAIN_S = 20.0


class DriverSurroundings(RealSurroundings):
    """What a real driver's program needs besides shoal."""

    def __init__(self, processes: SessionProcesses) -> None:
        self._processes = processes
        self.outcomes: list[tuple[int, str]] = []

    def kill_worker(self, pick: int) -> None:
        workers = list(self._processes.workers())
        if workers:
            try:
                os.kill(workers[pick % len(workers)], signal.SIGKILL)
            except ProcessLookupError:
                pass  # it left by itself meanwhile

    def note(self, number: int, outcome: str) -> None:
        self.outcomes.append((number, outcome))


def run_seed_on_processes(seed: int, processes: SessionProcesses) -> Failure | None:
    """Run the program of this seed in the session that this process has started. None: everything was as it must be.

    Afterwards this driver may hold nothing and nothing may be leased. Blocks for seconds.
    """
    program = generate(seed)
    expectation = Expectation(program.body)
    around = DriverSurroundings(processes)
    problems: list[str] = []
    before, interpretation.surroundings = interpretation.surroundings, around
    try:
        interpretation.export()
        interpretation.run_driver(program.body)
    except Exception as error:  # whatever a get or a put raised that the program did not expect
        problems.append(f"the driver raised {type(error).__name__}: {error}")
    finally:
        interpretation.surroundings = before
    problems += [problem for noted in around.outcomes if (problem := expectation.judge(*noted))]
    try:
        wait_for(lambda: not _left(), DRAIN_S, "The end of what was dropped")
    except TimeoutError:
        problems.append("left over at the end:\n  " + "\n  ".join(_left()))
    return Failure(seed, program, "\n".join(problems)) if problems else None


def _left() -> list[str]:
    """Name what this driver still holds, and what is still leased."""
    runtime = holder.current()
    assert isinstance(runtime, CoreRuntime)
    core = runtime.core

    async def look() -> list[str]:
        return core_leftovers(core)

    found: list[str] = runtime.bridge.call(lambda: core.loop.create_task(look()))
    total, free = shoal.cluster_resources(), shoal.available_resources()
    return found + [f"{name}: {free.get(name, 0)} of {amount} are free" for name, amount in total.items() if free.get(name, 0) != amount]
