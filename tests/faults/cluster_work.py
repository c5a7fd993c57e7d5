"""What a cluster works on while its processes are killed, and what must come out: each result is known beforehand.

tasks ─ arrays made on one node and read on others ─ tasks that submit tasks ─ actors called all the time ─ detached named actors ─ groups
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

import shoal
from shoal.util.placement_group import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

MIB = 1 << 20
#: Seconds within which everything must have come, whatever was killed: hangs show as a result that has not.
PATIENCE_S = 90.0
FOREVER = {"max_retries": -1, "scheduling_strategy": "SPREAD", "num_cpus": 0.5}


@shoal.remote
def square(number):
    time.sleep(0.02)
    return number * number


@shoal.remote
def make(number):
    return np.full(MIB, number % 251, dtype=np.uint8)


@shoal.remote
def total(*arrays):
    return sum(int(array.sum()) for array in arrays)


@shoal.remote
def nested(number):
    return sum(shoal.get([square.options(**FOREVER).remote(number + i) for i in range(4)]))


@shoal.remote
class Echo:
    def times_three(self, number):
        return number * 3

    def array(self, number):
        return np.full(MIB // 4, number % 251, dtype=np.uint8)


@shoal.remote
class Named:
    def who(self):
        return "here"


@dataclass
class Work:
    """One round of it. ``submit``, then ``check``; ``done`` says how far it is."""

    number: int
    #: (what, its reference, what must come out).
    expected: list[tuple[str, object, object]] = field(default_factory=list)
    group: object = None
    #: Held until all has come: a lost result of an actor is computed again by the actor.
    actors: list[object] = field(default_factory=list)

    def submit(self) -> None:
        first = self.number * 1000
        for i in range(first, first + 60):
            self._expect("task", square.options(**FOREVER).remote(i), i * i)
        arrays = [make.options(**FOREVER).remote(i) for i in range(first, first + 12)]
        for i in range(12):
            values = [(first + i) % 251, (first + (i + 5) % 12) % 251]
            self._expect("arrays", total.options(**FOREVER).remote(arrays[i], arrays[(i + 5) % 12]), sum(values) * MIB)
        for i in range(first, first + 6):
            self._expect("nested", nested.options(**FOREVER).remote(i), sum((i + j) ** 2 for j in range(4)))
        options = {"max_restarts": -1, "max_task_retries": -1, "num_cpus": 0, "scheduling_strategy": "SPREAD"}
        self.actors = [Echo.options(**options).remote() for _ in range(3)]
        for actor in self.actors:
            for i in range(first, first + 30):
                self._expect("actor", actor.times_three.remote(i), i * 3)
            self._expect("actor's array", total.options(**FOREVER).remote(actor.array.remote(first)), first % 251 * (MIB // 4))
        named = Named.options(
            name=f"named-{self.number}", lifetime="detached", get_if_exists=True, max_restarts=-1, max_task_retries=-1, num_cpus=0
        ).remote()
        self._expect("named", named.who.remote(), "here")
        self.group = placement_group([{"CPU": 0.25}, {"CPU": 0.25}], strategy="SPREAD")
        for index in range(2):
            inside = PlacementGroupSchedulingStrategy(self.group, index)
            self._expect("group", square.options(max_retries=-1, num_cpus=0.25, scheduling_strategy=inside).remote(index), index * index)

    def _expect(self, what, ref, value):
        self.expected.append((what, ref, value))

    def done(self) -> int:
        refs = [ref for _, ref, _ in self.expected]
        return len(shoal.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0])

    def check(self) -> list[str]:
        """Wait for everything; return what was wrong."""
        wrong = []
        deadline = time.monotonic() + PATIENCE_S
        for what, ref, value in self.expected:
            try:
                got = shoal.get(ref, timeout=max(0.001, deadline - time.monotonic()))
            except Exception as error:  # the history tells what came in its place
                wrong.append(f"{what}: {type(error).__name__} instead of {value!r}: {str(error)[:300]}")
                continue
            if got != value:
                wrong.append(f"{what}: {got!r} instead of {value!r}")
        if not wrong:
            wrong += self._clean_up()
        return wrong

    def _clean_up(self) -> list[str]:
        self.expected.clear()
        self.actors.clear()
        name = f"named-{self.number}"
        found = [one for one in shoal.util.list_named_actors() if one == name]
        if found != [name]:
            return [f"the detached actor {name} is listed {len(found)} times"]
        shoal.kill(shoal.get_actor(name))
        remove_placement_group(self.group)
        return []
