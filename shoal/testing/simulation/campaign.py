"""Runs programs in the simulation, judges them, and makes those that fail small."""

from __future__ import annotations

import gc
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from shoal.testing.simulation import interpretation
from shoal.testing.simulation.cluster import Fault, Hang, Leak, SimulatedCluster
from shoal.testing.simulation.expectation import Expectation
from shoal.testing.simulation.faults import has_silence
from shoal.testing.simulation.generation import generate
from shoal.testing.simulation.nemesis import Nemesis
from shoal.testing.simulation.processes import kill_this_process
from shoal.testing.simulation.programs import Program, count_ops, show_program, smaller_programs
from shoal.testing.simulation.threads import pause
from shoal.testing.simulation.world import INLINE_BYTES, Chances


@dataclass(frozen=True)
class Mode:
    """Which programs the seeds stand for: at most so many nodes, with faults from outside or without."""

    nodes: int = 1
    faults: bool = False

    def __str__(self) -> str:
        """Return the flags of the command line."""
        return (f" --nodes {self.nodes}" if self.nodes > 1 else "") + (" --faults" if self.faults else "")


ONE_NODE = Mode()
#: Room for all that a program stores; for few of its objects, so that others are spilled.
LARGE_ARENA, SMALL_ARENA = 1 << 20, 6 << 12


@dataclass(frozen=True)
class Failure:
    """A program that went wrong, and how."""

    seed: int
    program: Program
    problem: str
    mode: Mode = ONE_NODE

    def __str__(self) -> str:
        return (
            f"seed {self.seed} ({self.program.kind}, CPUs {self.program.nodes}, {count_ops(self.program.body)} operations):\n"
            f"{self.problem}\n\n{show_program(self.program)}\n\nTo run it again: python -m shoal.testing.simulation {self.seed}{self.mode}"
        )


class SimulatedSurroundings:
    """What a program needs besides shoal, in a simulation."""

    large_bytes = INLINE_BYTES + 400
    timeout_s = None

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        #: (operation, outcome, the driver had ended) of everything that was noted in any process.
        self.outcomes: list[tuple[int, str, bool]] = []
        #: What older instances of an actor did after newer ones.
        self.relapses: list[str] = []
        self._instances: Counter[str] = Counter()
        self._acting: dict[str, int] = {}

    def pause(self, seconds: float) -> None:
        pause(seconds)

    def crash(self) -> None:
        kill_this_process()

    def kill_worker(self, pick: int) -> None:
        self._cluster.kill_some_worker(pick)

    def lose(self, ref: Any) -> None:
        self._cluster.lose(ref.binary())

    def node_id(self, position: int) -> str:
        return self._cluster.nodes[position].node_id.hex()

    def new_instance(self, actor_id: str) -> int:
        self._instances[actor_id] += 1
        return self._instances[actor_id]

    def acts(self, actor_id: str, instance: int) -> None:
        newest = self._acting.setdefault(actor_id, instance)
        if instance < newest:
            self.relapses.append(f"instance {instance} of actor {actor_id} began a call after instance {newest} had")
        self._acting[actor_id] = max(newest, instance)

    def note(self, number: int, outcome: str) -> None:
        driver = self._cluster.driver
        self.outcomes.append((number, outcome, driver is None or driver.thread.finished))


def chances_of(seed: int, program: Program) -> Chances:
    """Draw how slow the machine of this seed is."""
    draw = random.Random(f"chances {seed}")
    slowest = draw.choice((0.0002, 0.002, 0.02))
    forking, dying = draw.choice((0.005, 0.05)), draw.choice((0.001, 0.02))
    arena_bytes = draw.choice((LARGE_ARENA, LARGE_ARENA, SMALL_ARENA)) if len(program.nodes) > 1 else LARGE_ARENA
    return Chances((0.00002, slowest), (0.002, forking), (0.0, dying), program.nodes, arena_bytes)


def run_seed(seed: int, mode: Mode = ONE_NODE) -> Failure | None:
    """Run the program of this seed in its simulation. None: everything was as it must be."""
    return run_program(seed, generate(seed, mode.nodes, mode.faults), mode)


def run_program(seed: int, program: Program, mode: Mode = ONE_NODE) -> Failure | None:
    """Run a program under the delays of a seed."""
    expectation = Expectation(program.body, program.faults)
    problems: list[str] = []
    with SimulatedCluster(seed, chances_of(seed, program)) as cluster:
        around = SimulatedSurroundings(cluster)
        with mock.patch.object(interpretation, "surroundings", around):
            try:

                def main() -> None:
                    interpretation.export()
                    Nemesis(cluster, program.faults)
                    interpretation.run_driver(program.body)

                cluster.run(main)
                cluster.check_nothing_left()
            except Leak as error:
                if not (expectation.deaths and cluster.is_clean_without_driver()):
                    problems.append(f"{type(error).__name__}: {error}")
            except (Fault, Hang) as error:
                problems.append(f"{type(error).__name__}: {error}")
            except Exception as error:  # whatever a get or a put raised that the program did not expect
                problems.append(f"the driver raised {type(error).__name__}: {error}")
        if not has_silence(program.faults):
            problems += around.relapses
        problems += [problem for noted in around.outcomes if (problem := expectation.judge(*noted))]
        problems += [fault for fault in cluster.world.errors if not any(fault in problem for problem in problems)]
    return Failure(seed, program, "\n".join(problems), mode) if problems else None


def shrink(failure: Failure, tries: int = 2000, told: Callable[[str], None] = lambda text: None) -> Failure:
    """Drop operations as long as the program still fails in the same way, and return the smallest found."""
    best, left, way = failure, tries, _way(failure)
    improved = True
    while improved and left > 0:
        improved = False
        for program in smaller_programs(best.program):
            left -= 1
            if left <= 0:
                break
            again = run_program(best.seed, program, best.mode)
            if again is not None and _way(again) == way:
                best, improved = again, True
                told(f"{count_ops(program.body)} operations, {len(program.faults)} faults, {left} tries left")
                break
    return best


def _way(failure: Failure) -> str:
    """Return the first lines of the problem without its numbers."""
    return "\n".join(re.sub(r"[0-9a-f]*\d[0-9a-f]*|\[.*|\{.*", "", line) for line in failure.problem.splitlines()[:2])


def run_seeds(seeds: Iterable[int], mode: Mode = ONE_NODE, *, stop_after: int = 1) -> tuple[int, list[Failure]]:
    """Run many seeds; return how many ran and those that failed, ending after ``stop_after`` failures."""
    failures: list[Failure] = []
    done = 0
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for seed in seeds:
            failure = run_seed(seed, mode)
            done += 1
            if failure is not None:
                failures.append(failure)
                if len(failures) >= stop_after:
                    break
            if done % 20 == 0:
                gc.collect()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return done, failures
