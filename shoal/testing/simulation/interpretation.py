"""Runs a program with the public API: in a driver, in tasks and in actors, on simulated and on real processes alike."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Protocol

import shoal
from shoal._base import runtime as holder
from shoal.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError
from shoal.testing.simulation.programs import (
    Arg,
    Body,
    Call,
    Cancel,
    Crash,
    Create,
    CreateGroup,
    Drop,
    Find,
    Get,
    KillActor,
    KillWorker,
    Lose,
    Made,
    Op,
    Pause,
    Put,
    Raise,
    RemoveGroup,
    Submit,
    Take,
    Wait,
    Where,
)
from shoal.util import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

#: What a get that returned is noted as, and an operation that found a slot empty.
FINE, SKIPPED = "fine", "skipped"


class WrongValue(AssertionError):
    """A get returned something else than what was put or returned."""


class Boom(Exception):
    """What a task raises on purpose."""


class Surroundings(Protocol):
    """What a program needs besides shoal."""

    #: Bytes of a large value.
    large_bytes: int
    #: Seconds that a get or wait takes at most; None: the simulation sees by itself that a program hangs.
    timeout_s: float | None

    def pause(self, seconds: float) -> None: ...
    def crash(self) -> None:
        """End this process as SIGKILL does."""

    def kill_worker(self, pick: int) -> None:
        """End a worker as SIGKILL does."""

    def lose(self, ref: Any) -> None:
        """Have the object store forget the value."""

    def node_id(self, position: int) -> str:
        """Return the hexadecimal id of a node that was there at the start."""

    def note(self, number: int, outcome: str) -> None:
        """A get ended in this way: ``FINE``, or the name of the error's class."""

    def new_instance(self, actor_id: str) -> int:
        """Number an instance of an actor that is being made."""

    def acts(self, actor_id: str, instance: int) -> None:
        """That instance begins a call."""


class RealSurroundings:
    """Inside real processes. ``large_bytes`` is above ``Settings.inline_limit_bytes``."""

    large_bytes = 150_000
    timeout_s: float | None = 60.0

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_worker(self, pick: int) -> None:
        raise NotImplementedError("only a driver kills workers")

    def lose(self, ref: Any) -> None:
        """Real stores lose nothing by themselves, and a program is right without the loss."""

    def node_id(self, position: int) -> str:
        raise NotImplementedError("these programs are for one node")

    def new_instance(self, actor_id: str) -> int:
        return 0

    def acts(self, actor_id: str, instance: int) -> None:
        """Nobody in this process knows of the others."""

    def note(self, number: int, outcome: str) -> None:
        """Nobody in this process collects outcomes; what is wrong is raised, and reaches the driver."""


surroundings: Surroundings = RealSurroundings()


@shoal.remote
def run_task(body: Body, bulk: bytes, *args: Any) -> Any:
    frame = Frame({})
    try:
        return frame.run(body, args)
    finally:
        frame.slots.clear()


@shoal.remote
class Keeper:
    """An actor whose slots live as long as it does."""

    def __init__(self, body: Body, *args: Any) -> None:
        self.instance = Instance()
        self.slots: dict[int, Any] = {}
        Frame(self.slots).run(body, args)

    def act(self, body: Body, bulk: bytes, *args: Any) -> Any:
        self.instance.act()
        return Frame(self.slots).run(body, args)


def export() -> None:
    """Export what programs use.

    Simulated processes share these two: were the first to use one a worker, its end could come before its export is sent.
    """
    for shared in (run_task, Keeper):
        shared._export.ensure(holder.current())  # type: ignore[union-attr]


def run_driver(body: Body) -> None:
    """Run a program's outermost body in this process, then forget all that it held. ``export`` comes first."""
    frame = Frame({})
    try:
        frame.run(body, ())
    finally:
        frame.slots.clear()


class Instance:
    """One instance of an actor, known to the surroundings."""

    def __init__(self) -> None:
        self._actor_id = shoal.get_runtime_context().get_actor_id() or ""
        self._number = surroundings.new_instance(self._actor_id)

    def act(self) -> None:
        surroundings.acts(self._actor_id, self._number)


class Frame:
    """One run of a body."""

    def __init__(self, slots: dict[int, Any]) -> None:
        self.slots = slots

    def run(self, body: Body, args: tuple[Any, ...]) -> Any:
        for param, value in zip(body.params, args, strict=True):
            self.slots[param] = value[0] if type(value) is list else value
        args = value = None  # type: ignore[assignment]
        for op in body.ops:
            try:
                self._do(op)
            except NO_ROOM:
                surroundings.note(op.number, SKIPPED)
        made = [self._make(one) for one in body.returns]
        return made[0] if len(made) == 1 else tuple(made)

    def _do(self, op: Op) -> None:
        slots = self.slots
        match op:
            case Put():
                slots[op.dst] = shoal.put(self._make(op.made))
            case Submit() if self._has(op.args) and self._exists(op.where):
                task = run_task.options(num_returns=len(op.dst), max_retries=op.retries, **self._place(op.where, "bundle"))
                self._fill(op.dst, task.remote(op.body, self._bulk(op.bulk), *self._args(op.args)))
            case Get() if op.src in slots:
                self._get(op)
            case Wait():
                self._wait(op)
            case Take() if op.src in slots:
                taken = slots[op.src][1][op.index]
                if taken is None:
                    surroundings.note(op.number, SKIPPED)
                else:
                    slots[op.dst] = taken
            case Drop():
                slots.pop(op.slot, None)
            case Create() if self._has(op.args) and self._exists(op.where):
                options = self._place(op.where, "seat") | ({"name": op.name, "lifetime": "detached"} if op.name else {})
                actor = Keeper.options(max_restarts=op.restarts, max_task_retries=op.call_retries, **options)  # type: ignore[attr-defined]
                slots[op.dst] = actor.remote(op.body, *self._args(op.args))
            case Find():
                self._find(op)
            case CreateGroup():
                slots[op.dst] = placement_group([{"bundle": 1, "seat": 10}] * op.bundles, strategy=op.strategy)
            case RemoveGroup() if op.slot in slots:
                remove_placement_group(slots.pop(op.slot))
            case Call() if op.actor in slots and self._has(op.args):
                method = slots[op.actor].act.options(num_returns=len(op.dst))
                self._fill(op.dst, method.remote(op.body, self._bulk(op.bulk), *self._args(op.args)))
            case Cancel() if op.slot in slots:
                shoal.cancel(slots[op.slot], force=op.force, recursive=op.recursive)
            case KillActor() if op.slot in slots:
                shoal.kill(slots[op.slot], no_restart=not op.restart)
            case KillWorker():
                surroundings.kill_worker(op.pick)
            case Lose() if op.slot in slots:
                surroundings.lose(slots[op.slot])
            case Pause():
                surroundings.pause(op.seconds)
            case Crash():
                context = holder.current().task_context()
                if context is not None and context.attempt < op.times:
                    surroundings.crash()
            case Raise():
                raise Boom
            case _:
                surroundings.note(op.number, SKIPPED)

    def _find(self, op: Find) -> None:
        try:
            self.slots[op.dst] = shoal.get_actor(op.name)
        except ValueError:  # there is none of that name
            surroundings.note(op.number, SKIPPED)

    def _exists(self, where: Where | None) -> bool:
        return where is None or where.strategy != "GROUP" or where.group in self.slots

    def _place(self, where: Where | None, of_bundle: str) -> dict[str, Any]:
        """Return the options that say where to run. ``of_bundle``: what a task, or an actor, takes of its bundle."""
        match where:
            case None:
                return {}
            case Where("SPREAD"):
                return {"scheduling_strategy": "SPREAD"}
            case Where("RESOURCE", node):
                return {"num_cpus": 0, "resources": {f"at n{node}": 1}}
            case Where("GROUP", group=slot, bundle=bundle):
                strategy = PlacementGroupSchedulingStrategy(self.slots[slot], bundle)
                return {"num_cpus": 0, "resources": {of_bundle: 1}, "scheduling_strategy": strategy}
            case Where(affinity, node):
                return {"scheduling_strategy": NodeAffinitySchedulingStrategy(surroundings.node_id(node), soft=affinity == "SOFT")}

    def _get(self, op: Get) -> None:
        try:
            value = shoal.get(self.slots[op.src], timeout=surroundings.timeout_s)
        except Exception as error:  # the program decides what is permitted
            surroundings.note(op.number, name_of(error))
            if not op.caught:
                raise
            return
        surroundings.note(op.number, FINE)
        if type(value) is not tuple or len(value) != 3 or len(value[2]) not in (0, surroundings.large_bytes):
            raise WrongValue(f"get {op.number} returned {value!r:.200}")
        surroundings.note(op.number, f"= {value[0]}")
        self.slots[op.dst] = value

    def _wait(self, op: Wait) -> None:
        refs = list({ref.binary(): ref for slot in op.srcs if (ref := self.slots.get(slot)) is not None}.values())
        count = min(op.count, len(refs))
        if count:
            ready, rest = shoal.wait(refs, num_returns=count, timeout=surroundings.timeout_s)
            if len(ready) != count or len(ready) + len(rest) != len(refs):
                raise WrongValue(f"wait {op.number} for {count} of {len(refs)} returned {len(ready)} and {len(rest)}")

    def _make(self, made: Made) -> tuple[str, list[Any], bytes]:
        return made.label, [self.slots.get(slot) for slot in made.inside], self._bulk(made.large)

    def _bulk(self, large: bool) -> bytes:
        return b"x" * surroundings.large_bytes if large else b""

    def _has(self, args: tuple[Arg, ...]) -> bool:
        return all(one.slot in self.slots for one in args)

    def _args(self, args: tuple[Arg, ...]) -> list[Any]:
        return [[self.slots[one.slot]] if one.nested else self.slots[one.slot] for one in args]

    def _fill(self, dst: tuple[int, ...], result: Any) -> None:
        if len(dst) == 1:
            self.slots[dst[0]] = result
        else:
            for slot, ref in zip(dst, result or (), strict=True):
                self.slots[slot] = ref


#: What storing something raises when there is no room, or creating something when the control store's disk is full.
NO_ROOM = (OutOfDiskError, ObjectStoreFullError)


def name_of(error: BaseException) -> str:
    """Return the class name of what went wrong, whichever task it went through."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return type(cause or error).__name__
