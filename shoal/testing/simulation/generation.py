"""Random programs: any seed gives one, the same on every machine.

A program is made by walking it (``expectation.Expectation.step``) while it grows, so that each operation finds its slots filled. The kind
says which trouble it may contain: most programs contain none, and of these every outcome is known exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from shoal.testing.simulation.expectation import Expectation, Group, Handle, Place, ReadValue, Reference, Thing, keeps
from shoal.testing.simulation.faults import Fault, generate_faults
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
    Program,
    Put,
    Raise,
    RemoveGroup,
    Submit,
    Take,
    Wait,
    Where,
)

#: Kinds of programs, and how often each is drawn.
KINDS = {"calm": 5, "errors": 2, "cancels": 3, "crashes": 3, "kills": 3, "losses": 2, "storm": 3}
#: Operations of the driver's body, and of the bodies inside (less with each level).
DRIVER_OPS = (4, 26)
BODY_OPS = 5
#: Operations at the end, which look at what is left.
LAST_OPS = 60
#: Bodies inside of bodies.
DEPTH = 3
#: Fewest nodes of a cluster.
LEAST_NODES = 3
#: Share of tasks and actors in clusters that say where they are to run.
PLACED = 0.4


@dataclass(frozen=True)
class Trouble:
    """Which faults a program may contain."""

    raises: bool = False
    cancels: bool = False
    crashes: bool = False
    kills: bool = False
    losses: bool = False


TROUBLE = {
    "calm": Trouble(),
    "errors": Trouble(raises=True),
    "cancels": Trouble(cancels=True),
    "crashes": Trouble(crashes=True, raises=True),
    "kills": Trouble(kills=True),
    "losses": Trouble(losses=True),
    "storm": Trouble(raises=True, cancels=True, crashes=True, kills=True),
}


def generate(seed: int, most_nodes: int = 1, with_faults: bool = False) -> Program:
    """Return the program of this seed. With several nodes: for a cluster of ``LEAST_NODES`` to ``most_nodes``, and at will with faults."""
    draw = random.Random(seed)
    kind = draw.choices(list(KINDS), weights=list(KINDS.values()))[0]
    nodes = draw.randint(LEAST_NODES, max(most_nodes, LEAST_NODES)) if most_nodes > 1 else 1
    faults = generate_faults(draw, nodes) if with_faults else ()
    grower = _Grower(draw, TROUBLE[kind], nodes, faults)
    body = grower.driver()
    return Program(body, kind, tuple(draw.choice((1, 2, 2, 3)) for _ in range(nodes)), faults)


def _has_handle(thing: Thing | None) -> bool:
    """Whether a handle is kept alive by it: inside the value, or among the arguments of the task that makes it (its lineage)."""
    if thing is None or isinstance(thing, Handle | Group):
        return isinstance(thing, Handle)
    one = thing.object
    return any(map(_has_handle, one.inside)) or (one.run is not None and any(map(_has_handle, one.run.given)))


class _Grower:
    def __init__(self, draw: random.Random, trouble: Trouble, nodes: int = 1, faults: tuple[Fault, ...] = ()) -> None:
        self._draw = draw
        self._trouble = trouble
        self._nodes = nodes
        self._names: list[str] = []
        self._numbers = 0
        self._slots = 0
        self._walked = Expectation(faults=faults)

    def driver(self) -> Body:
        place = Place({})
        ops = self._ops(place, self._draw.randint(*DRIVER_OPS), DEPTH, self._driver_choices())
        return Body((*ops, *self._look_at_everything(place), *self._end_everything(place)))

    def _end_everything(self, place: Place) -> list[Op]:
        """End what does not end with its last reference."""
        ops: list[Op] = []
        for name in self._names:
            slot = self._slot()
            ops += [Find(self._number(), slot, name), KillActor(self._number(), slot, restart=False)]
        groups = [slot for slot, thing in place.slots.items() if isinstance(thing, Group)]
        ops += [RemoveGroup(self._number(), slot, late=True) for slot in groups]
        for op in ops:
            self._walked.step(op, place)
        return ops

    def _look_at_everything(self, place: Place) -> list[Op]:
        """Read all that is left, in any order, and what lies inside, mostly after what held it was dropped."""
        draw = self._draw
        ops: list[Op] = []

        def do(op: Op) -> None:
            self._walked.step(op, place)
            ops.append(op)

        left = [slot for slot, thing in place.slots.items() if isinstance(thing, Reference)]
        draw.shuffle(left)
        while left and len(ops) < LAST_OPS:
            slot, value = left.pop(0), self._slot()
            thing = place.slots[slot]
            assert isinstance(thing, Reference)
            do(Get(self._number(), slot, value, caught=True))
            for index, inner in enumerate(thing.object.inside):
                if isinstance(inner, Reference) and draw.random() < 0.7:
                    taken = self._slot()
                    do(Take(self._number(), value, index, taken))
                    left.insert(draw.randrange(len(left) + 1), taken)
            if draw.random() < 0.7:
                do(Drop(self._number(), value))
                do(Drop(self._number(), slot))
        return ops

    # --- bodies --------------------------------------------------------------------------------------------

    def _ops(self, place: Place, count: int, depth: int, choices: list[tuple[Callable[[Place, int], Op | None], float]]) -> list[Op]:
        ops: list[Op] = []
        makers, weights = [maker for maker, _ in choices], [weight for _, weight in choices]
        for _ in range(count):
            maker = self._draw.choices(makers, weights)[0]
            for one in self._turns(place) if maker == self._in_turn else (maker,):
                op = one(place, depth)
                if op is not None:
                    self._walked.step(op, place)
                    ops.append(op)
        return ops

    def _driver_choices(self) -> list[tuple[Callable[[Place, int], Op | None], float]]:
        trouble = self._trouble
        return [
            (self._submit, 6), (self._in_turn, 0.7), (self._put, 2), (self._caught_get, 3),
            (self._take, 2), (self._wait, 1), (self._drop, 2.5),
            (self._create, 1.5), (self._call, 5), (self._pause, 1),
            (self._cancel, 3 if trouble.cancels else 0),
            (self._kill_actor, 0.7 if trouble.kills else 0),
            (self._kill_worker, 1.2 if trouble.kills else 0),
            (self._lose, 2 if trouble.losses else 0),
            (self._create_group, 0.7 if self._nodes > 1 else 0),
            (self._remove_group, 0.2 if self._nodes > 1 and trouble.kills else 0),
            (self._create_detached, 0.5 if self._nodes > 1 else 0),
            (self._find, 0.5 if self._nodes > 1 else 0),
        ]  # fmt: skip

    def _body_choices(self, depth: int) -> list[tuple[Callable[[Place, int], Op | None], float]]:
        trouble = self._trouble
        return [
            (self._submit, 3 if depth else 0), (self._in_turn, 0.4 if depth else 0), (self._put, 2), (self._get, 4),
            (self._caught_get, 1), (self._take, 2), (self._wait, 0.5),
            (self._drop, 1), (self._pause, 2), (self._create, 0.3 if depth else 0), (self._call, 1.5),
            (self._cancel, 0.7 if trouble.cancels else 0),
            (self._crash, 0.5 if trouble.crashes else 0),
            (self._raise, 0.4 if trouble.raises else 0),
        ]  # fmt: skip

    def _body(
        self, place: Place, args: tuple[Arg, ...], returns: int, depth: int, actor: dict[int, object] | None = None, holds: bool = False
    ) -> Body:
        """Make a body for these arguments.

        ``place`` is where it is submitted; ``actor``: the slots it works on, if not its own; ``holds``: it holds something while it runs
        that what it waits for may need, so it waits for nothing.
        """
        draw = self._draw
        params = tuple(self._slot() for _ in args)
        inner = self._walked._start(place, args, 0)
        slots = dict(actor or {})
        slots.update(self._walked._bound(Body((), params=params), args, place.slots))
        body_place = Place(slots, inner)  # type: ignore[arg-type]
        choices = self._body_choices(depth)
        if actor is not None:  # a call of an actor that waits for a call of an actor may wait for itself
            choices = [(maker, 0 if maker in (self._call, self._create, self._in_turn) else weight) for maker, weight in choices]
            choices = [(self._calm_get if maker in (self._get, self._caught_get) else maker, weight) for maker, weight in choices]
        if holds:
            waits = (self._get, self._caught_get, self._wait, self._in_turn)
            choices = [(maker, 0 if maker in waits else weight) for maker, weight in choices]
        ops = self._ops(body_place, draw.randint(0, BODY_OPS - (DEPTH - depth)), depth, choices)
        made = tuple(self._made(body_place, 0.5) for _ in range(returns))
        return Body(tuple(ops), made, params)

    # --- what ops need -------------------------------------------------------------------------------------

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _slot(self) -> int:
        self._slots += 1
        return self._slots

    def _made(self, place: Place, share: float) -> Made:
        draw = self._draw
        inside: list[int] = []
        while draw.random() < share and len(inside) < 3 and (slot := self._pick(place, Reference, Handle)) is not None:
            inside.append(slot)
        return Made(f"v{self._number()}", draw.random() < 0.3, tuple(inside))

    def _pick(self, place: Place, *kinds: type) -> int | None:
        slots = [slot for slot, thing in place.slots.items() if isinstance(thing, kinds)]
        if not slots:
            return None
        # The newest most of all: it is the one that is still on its way.
        return slots[-1] if self._draw.random() < 0.3 else self._draw.choice(slots)

    def _args(self, place: Place) -> tuple[Arg, ...]:
        draw = self._draw
        args = []
        for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
            slot = self._pick(place, Reference, Handle)
            if slot is not None:
                args.append(Arg(slot, isinstance(place.slots[slot], Handle) or draw.random() < 0.4))
        return tuple(args)

    def _handleless(self, place: Place, args: tuple[Arg, ...]) -> tuple[Arg, ...]:
        """Return those that bring no handle into an actor: an actor that holds itself, by whatever detour, never ends."""
        return tuple(one for one in args if not _has_handle(place.slots[one.slot]))

    def _where(self, place: Place) -> Where | None:
        """Draw where a task or actor is to run."""
        draw = self._draw
        if self._nodes == 1 or draw.random() > PLACED:
            return None
        group = self._pick(place, Group)
        if group is not None and draw.random() < 0.5:
            thing = place.slots[group]
            assert isinstance(thing, Group)
            return Where("GROUP", group=group, bundle=draw.randint(-1, thing.group.bundles - 1))
        strategy = draw.choice(("SPREAD", "SPREAD", "HARD", "SOFT", "RESOURCE"))
        return Where(strategy) if strategy == "SPREAD" else Where(strategy, node=draw.randrange(self._nodes))

    # --- ops -----------------------------------------------------------------------------------------------

    def _submit(self, place: Place, depth: int) -> Op | None:
        draw = self._draw
        args = self._args(place)
        returns = draw.choice((1, 1, 1, 2, 3))
        where = self._where(place)
        holds = where is not None and where.strategy in ("GROUP", "RESOURCE")
        body = self._body(place, args, returns, max(depth - 1, 0), holds=holds)
        dst = tuple(self._slot() for _ in range(returns))
        return Submit(self._number(), dst, body, args, draw.choice((0, 0, 1, 2, 3)), draw.random() < 0.15, where)

    def _in_turn(self, place: Place, depth: int) -> Op | None:
        """Stands for ``_turns`` among the choices."""
        raise NotImplementedError

    def _turns(self, place: Place) -> list[Callable[[Place, int], Op | None]]:
        """Calls of one kind, each after the result of the one before: a worker or an actor with one thing to do at a time."""
        draw = self._draw
        actor = self._pick(place, Handle) if draw.random() < 0.5 else None
        retries, newest = draw.choice((0, 3)), 0

        def call(place: Place, depth: int) -> Op | None:
            nonlocal newest
            newest = self._slot()
            if actor is None:
                return Submit(self._number(), (newest,), self._body(place, (), 1, 0), (), retries, False)
            handle = place.slots[actor]
            assert isinstance(handle, Handle)
            body = self._body(place, (), 1, 0, actor=dict(handle.actor.slots) if keeps(handle, place) else {})
            return Call(self._number(), (newest,), actor, body, (), False)

        def get(place: Place, depth: int) -> Op | None:
            return Get(self._number(), newest, self._slot(), caught=True)

        def drop(place: Place, depth: int) -> Op | None:
            return Drop(self._number(), newest) if draw.random() < 0.6 else None

        def pause(place: Place, depth: int) -> Op | None:
            return self._pause(place, depth) if draw.random() < 0.2 else None

        return [call, get, drop, pause] * draw.randint(2, 4)

    def _put(self, place: Place, depth: int) -> Op | None:
        return Put(self._number(), self._slot(), self._made(place, 0.4))

    def _get(self, place: Place, depth: int) -> Op | None:
        slot = self._pick(place, Reference)
        return None if slot is None else Get(self._number(), slot, self._slot())

    def _caught_get(self, place: Place, depth: int) -> Op | None:
        slot = self._pick(place, Reference)
        return None if slot is None else Get(self._number(), slot, self._slot(), caught=True)

    def _calm_get(self, place: Place, depth: int) -> Op | None:
        """A get that cannot wait for the very actor that gets."""
        slot = self._pick(place, Reference)
        if slot is None:
            return None
        thing = place.slots[slot]
        assert isinstance(thing, Reference)
        run = thing.object.run
        if run is not None and (run.calls_actors or run.actor is not None):
            return None
        return Get(self._number(), slot, self._slot(), caught=self._draw.random() < 0.3)

    def _wait(self, place: Place, depth: int) -> Op | None:
        if place.run is not None and place.run.actor is not None:
            return None
        slots = [slot for slot, thing in place.slots.items() if isinstance(thing, Reference)]
        if not slots:
            return None
        some = self._draw.sample(slots, self._draw.randint(1, len(slots)))
        return Wait(self._number(), tuple(some), self._draw.randint(1, len(some)))

    def _take(self, place: Place, depth: int) -> Op | None:
        values = [(slot, thing.object) for slot, thing in place.slots.items() if isinstance(thing, ReadValue) and thing.object.inside]
        if not values:
            return None
        slot, value = self._draw.choice(values)
        return Take(self._number(), slot, self._draw.randrange(len(value.inside)), self._slot())

    def _drop(self, place: Place, depth: int) -> Op | None:
        slot = self._pick(place, Reference, Handle, ReadValue)
        return None if slot is None else Drop(self._number(), slot)

    def _create(self, place: Place, depth: int) -> Op | None:
        draw = self._draw
        args = self._handleless(place, self._args(place))
        body = self._body(place, args, 0, 0, actor={})
        where = self._where(place)
        if where is not None and where.strategy == "RESOURCE":  # it would keep it for as long as it lives
            where = None
        often = (0, 1, 3) if self._walked.killed_nodes or self._walked.drained_nodes else (0, 0, 1)
        return Create(self._number(), self._slot(), body, args, draw.choice(often), draw.choice(often), where)

    def _create_detached(self, place: Place, depth: int) -> Op | None:
        op = self._create(place, 0)
        assert isinstance(op, Create)
        self._names.append(f"actor {op.number}")
        return replace(op, name=self._names[-1])

    def _find(self, place: Place, depth: int) -> Op | None:
        return Find(self._number(), self._slot(), self._draw.choice(self._names)) if self._names else None

    def _create_group(self, place: Place, depth: int) -> Op | None:
        strategy = self._draw.choice(("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"))
        return CreateGroup(self._number(), self._slot(), self._draw.randint(1, min(3, self._nodes)), strategy)

    def _remove_group(self, place: Place, depth: int) -> Op | None:
        slot = self._pick(place, Group)
        return None if slot is None else RemoveGroup(self._number(), slot, late=False)

    def _call(self, place: Place, depth: int) -> Op | None:
        draw = self._draw
        slot = self._pick(place, Handle)
        if slot is None:
            return None
        handle = place.slots[slot]
        assert isinstance(handle, Handle)
        args = self._handleless(place, self._args(place))
        returns = draw.choice((1, 1, 2))
        body = self._body(place, args, returns, min(depth, 1), actor=dict(handle.actor.slots) if keeps(handle, place) else {})
        dst = tuple(self._slot() for _ in range(returns))
        return Call(self._number(), dst, slot, body, args, draw.random() < 0.1)

    def _pause(self, place: Place, depth: int) -> Op | None:
        longest = self._draw.choices((0.0005, 0.005, 0.03, 1.5), (5, 5, 5, 1))[0]
        return Pause(self._number(), round(longest * self._draw.random(), 4))

    def _cancel(self, place: Place, depth: int) -> Op | None:
        slot = self._pick(place, Reference)
        if slot is None:
            return None
        thing = place.slots[slot]
        assert isinstance(thing, Reference)
        run = thing.object.run
        force = run is not None and run.actor is None and self._draw.random() < 0.3
        return Cancel(self._number(), slot, force, self._draw.random() < 0.5)

    def _kill_actor(self, place: Place, depth: int) -> Op | None:
        slot = self._pick(place, Handle)
        return None if slot is None else KillActor(self._number(), slot, self._draw.random() < 0.4)

    def _kill_worker(self, place: Place, depth: int) -> Op | None:
        return KillWorker(self._number(), self._draw.randrange(1000))

    def _lose(self, place: Place, depth: int) -> Op | None:
        slot = self._pick(place, Reference)
        return None if slot is None else Lose(self._number(), slot)

    def _crash(self, place: Place, depth: int) -> Op | None:
        return Crash(self._number(), self._draw.choice((1, 1, 2)))

    def _raise(self, place: Place, depth: int) -> Op | None:
        return Raise(self._number())
