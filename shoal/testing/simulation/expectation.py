"""What each get of a program may end with: the oracle of the simulation.

The program is walked once without running anything. Values are exact: whatever returns, returns the label that the program gave it.
Errors are upper bounds, and tight ones: a get may raise only what some fault of this very program can cause.

    WorkerCrashedError      the task's process can be killed more often than the task may be retried
    TaskCancelledError      the task, or with ``recursive`` one that started it, is cancelled somewhere in the program
    OwnerDiedError          a worker owns the object, and some process is killed
    ActorDiedError, ActorUnavailableError   the actor's process, or its creator's, can be killed, or its constructor can fail
    ObjectReconstructionFailedError, ObjectLostError   the store lost the object, and no task may run again for it
    Boom                    the body raises it
    NodeDiedError           the same, and nodes are killed, or drained in haste
    TaskUnschedulableError  the task must run on a node that is killed
    TaskPlacementGroupRemoved   the task is to run in a placement group that is removed while results are still read
    any of these            an argument, or something that the body gets and does not catch, may end with it
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.testing.simulation.faults import PATIENT_S, DrainNode, Fault, FullDisk, KillProcess, ended_nodes
from shoal.testing.simulation.interpretation import FINE, SKIPPED
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
    Put,
    Raise,
    RemoveGroup,
    Submit,
    Take,
    Where,
)

CRASHED, CANCELLED, OWNER_DIED, BOOM = "WorkerCrashedError", "TaskCancelledError", "OwnerDiedError", "Boom"
LOST = frozenset({"ObjectReconstructionFailedError", "ObjectLostError"})
ACTOR = frozenset({"ActorDiedError", "ActorUnavailableError"})
NODE_DIED = "NodeDiedError"
NO_ROOM = frozenset({"OutOfDiskError", "ObjectStoreFullError"})
UNSCHEDULABLE, ACTOR_UNSCHEDULABLE = "TaskUnschedulableError", "ActorUnschedulableError"
GROUP_REMOVED, ACTOR_GROUP_REMOVED = "TaskPlacementGroupRemoved", "ActorPlacementGroupRemoved"


@dataclass(eq=False)
class ExpectedGroup:
    """One placement group."""

    bundles: int
    removed: bool = False


@dataclass(eq=False)
class ExpectedActor:
    """One actor of the program."""

    create: Create
    #: The slots of its instance.
    slots: dict[int, Thing] = field(default_factory=dict)
    killed: bool = False
    crashes: bool = False
    created_in_worker: bool = False
    group: ExpectedGroup | None = None
    constructor: ExpectedRun | None = None


@dataclass(eq=False)
class ExpectedRun:
    """One task, actor call or constructor, and what its body does."""

    parent: ExpectedRun | None
    args: list[ExpectedObject]
    retries: int = 0
    actor: ExpectedActor | None = None
    group: ExpectedGroup | None = None
    #: The node that it must run on.
    node: int = -1
    #: Everything among the arguments, also what is nested.
    given: list[Thing] = field(default_factory=list)
    children: list[ExpectedRun] = field(default_factory=list)
    #: What the body gets and does not catch.
    needs: list[ExpectedObject] = field(default_factory=list)
    crashes: int = 0
    raises: bool = False
    cancelled: bool = False
    #: It, or something that it waits for, calls an actor; an actor that waits for it might wait for itself.
    calls_actors: bool = False


@dataclass(eq=False)
class ExpectedObject:
    """The value of a put or of a return."""

    label: str
    large: bool
    #: None: the driver put it.
    run: ExpectedRun | None
    owned_by_worker: bool
    inside: list[Thing | None] = field(default_factory=list)
    lost: bool = False


@dataclass(frozen=True)
class Reference:
    object: ExpectedObject


@dataclass(frozen=True)
class ReadValue:
    object: ExpectedObject


@dataclass(frozen=True)
class Handle:
    actor: ExpectedActor


@dataclass(frozen=True)
class Group:
    group: ExpectedGroup


#: What a slot holds.
Thing = Reference | ReadValue | Handle | Group


@dataclass(eq=False)
class Place:
    """Where a body runs: the slots, and the run that it belongs to (None: the driver)."""

    slots: dict[int, Thing]
    run: ExpectedRun | None = None


def keeps(handle: Handle, place: Place) -> bool:
    """Whether what a call from this place leaves in the actor's slots is known to later calls.

    Calls of several callers have no order among them, so only the driver's count, and only for its own actors.
    """
    return place.run is None and not handle.actor.created_in_worker


class Expectation:
    """The whole program, walked. ``step`` may also be used op by op, by who makes a program up."""

    def __init__(self, body: Body | None = None, faults: tuple[Fault, ...] = ()) -> None:
        #: What each get reads.
        self.reads: dict[int, ExpectedObject] = {}
        #: Which run it belongs to; None: the driver.
        self.readers: dict[int, ExpectedRun | None] = {}
        #: SIGKILLs from outside: any task may be the victim of each.
        self.kills = 0
        #: A group is removed while tasks that nobody waits for may still run.
        self._late_removals = False
        #: Values that the store forgets: any task may run again for the sake of each.
        self.losses = 0
        #: Some process dies without handing over what it owns.
        self.deaths = False
        #: Something can fail, so that slots may stay empty.
        self.faulty = False
        #: Their stored values go with them.
        self.killed_nodes = set(ended_nodes(faults))
        #: They leave in good order: what processes on them own goes with them, and the instances of actors that may be restarted elsewhere.
        self.drained_nodes = {fault.node for fault in faults if isinstance(fault, DrainNode)}
        self.faulty |= bool(self.drained_nodes)
        self._gone = self.killed_nodes | self.drained_nodes
        #: Ends of what ran when the deadline of a drain came; it runs again for free, if it may at all.
        self.evictions = sum(isinstance(fault, DrainNode) and fault.deadline_s < PATIENT_S for fault in faults)
        self.deaths |= bool(self.evictions)
        #: Something may not be stored.
        self.full = any(isinstance(fault, FullDisk) for fault in faults)
        self.faulty |= self.full
        if kills := len(ended_nodes(faults)) + sum(isinstance(fault, KillProcess) for fault in faults):
            self.kills = kills
            self.deaths = self.faulty = True
        self._detached: dict[str, Handle] = {}
        #: The operations that find what they need.
        self._steps: set[int] = set()
        self._errors: dict[ExpectedRun, frozenset[str]] = {}
        if body is not None:
            self.walk(body, Place({}))

    # --- walking -------------------------------------------------------------------------------------------

    def walk(self, body: Body, place: Place) -> list[ExpectedObject]:
        """Walk a body; return what it returns."""
        for op in body.ops:
            self.step(op, place)
        return [self._made(made, place, place.run) for made in body.returns]

    def step(self, op: Op, place: Place) -> None:
        slots = place.slots
        self._steps.add(op.number)
        match op:
            case Put():
                slots[op.dst] = Reference(self._made(op.made, place, None))
            case Submit() if self._has(op.args, slots) and self._exists(op.where, slots):
                run = self._start(place, op.args, op.retries)
                run.group, run.node = _group(op.where, slots), _node(op.where)
                self._returned(op.dst, self.walk(op.body, Place(self._bound(op.body, op.args, slots), run)), run, slots)
            case Create() if self._has(op.args, slots) and self._exists(op.where, slots):
                actor = ExpectedActor(op, created_in_worker=place.run is not None and not op.name, group=_group(op.where, slots))
                run = actor.constructor = self._start(place, op.args, 0)
                run.node = _node(op.where)
                actor.slots.update(self._bound(op.body, op.args, slots))
                run.actor = actor
                self.walk(op.body, Place(actor.slots, run))
                slots[op.dst] = Handle(actor)
                if op.name:
                    self._detached[op.name] = Handle(actor)
            case Find() if op.name in self._detached:
                slots[op.dst] = self._detached[op.name]
            case CreateGroup():
                slots[op.dst] = Group(ExpectedGroup(op.bundles))
            case RemoveGroup() if op.slot in slots:
                group = slots.pop(op.slot)
                assert isinstance(group, Group)
                group.group.removed = not op.late
                self._late_removals |= op.late
                self.deaths = True
                self.faulty |= not op.late
            case Call() if op.actor in slots and self._has(op.args, slots):
                handle = slots[op.actor]
                assert isinstance(handle, Handle)
                actor = handle.actor
                run = self._start(place, op.args, actor.create.call_retries)
                run.actor = actor
                self._calls_actors(place.run)
                inner = actor.slots if keeps(handle, place) else {}
                inner.update(self._bound(op.body, op.args, slots))
                self._returned(op.dst, self.walk(op.body, Place(inner, run)), run, slots)
            case Get() if op.src in slots:
                self._get(op, place)
            case Take() if op.src in slots:
                value = slots[op.src]
                assert isinstance(value, ReadValue)
                taken = value.object.inside[op.index]
                if taken is not None:
                    slots[op.dst] = taken
                else:
                    self._steps.discard(op.number)
            case Drop():
                slots.pop(op.slot, None)
            case Cancel() if op.slot in slots:
                self._cancel(op, slots[op.slot])
            case KillActor() if op.slot in slots:
                handle = slots[op.slot]
                assert isinstance(handle, Handle)
                handle.actor.killed = self.deaths = self.faulty = True
            case KillWorker():
                self.kills += 1
                self.deaths = self.faulty = True
            case Lose() if op.slot in slots:
                thing = slots[op.slot]
                assert isinstance(thing, Reference)
                thing.object.lost = self.faulty = True
                self.losses += 1
            case Crash() if place.run is not None:
                place.run.crashes = max(place.run.crashes, op.times)
                if place.run.actor is not None:
                    place.run.actor.crashes = True
                self.deaths = self.faulty = True
            case Raise() if place.run is not None:
                place.run.raises = self.faulty = True
            case Find() | RemoveGroup() | Get() | Take() | Lose() | Cancel() | KillActor() | Submit() | Create() | Call():
                self._steps.discard(op.number)
            case _:
                pass  # nothing that a get could show

    def _made(self, made: Made, place: Place, run: ExpectedRun | None) -> ExpectedObject:
        inside = [place.slots.get(slot) for slot in made.inside]
        return ExpectedObject(made.label, made.large, run, place.run is not None, inside)

    def _returned(self, dst: tuple[int, ...], made: list[ExpectedObject], run: ExpectedRun, slots: dict[int, Thing]) -> None:
        for slot, one in zip(dst, made, strict=True):
            one.owned_by_worker = run.parent is not None
            slots[slot] = Reference(one)

    def _start(self, place: Place, args: tuple[Arg, ...], retries: int) -> ExpectedRun:
        read = [thing.object for one in args if not one.nested and isinstance(thing := place.slots[one.slot], Reference)]
        run = ExpectedRun(place.run, read, retries, given=[place.slots[one.slot] for one in args])
        if place.run is not None:
            place.run.children.append(run)
        return run

    def _bound(self, body: Body, args: tuple[Arg, ...], slots: dict[int, Thing]) -> dict[int, Thing]:
        """Return what the parameters hold."""
        bound: dict[int, Thing] = {}
        for param, one in zip(body.params, args, strict=True):
            thing = slots[one.slot]
            bound[param] = ReadValue(thing.object) if isinstance(thing, Reference) and not one.nested else thing
        return bound

    def _exists(self, where: Where | None, slots: dict[int, Thing]) -> bool:
        return where is None or where.strategy != "GROUP" or where.group in slots

    def _has(self, args: tuple[Arg, ...], slots: dict[int, Thing]) -> bool:
        return all(one.slot in slots for one in args)

    def _get(self, op: Get, place: Place) -> None:
        thing = place.slots[op.src]
        assert isinstance(thing, Reference)
        self.reads[op.number] = thing.object
        self.readers[op.number] = place.run
        place.slots[op.dst] = ReadValue(thing.object)
        if place.run is not None:
            if not op.caught:
                place.run.needs.append(thing.object)
            if thing.object.run is not None and thing.object.run.calls_actors:
                self._calls_actors(place.run)

    def _calls_actors(self, run: ExpectedRun | None) -> None:
        if run is not None:
            run.calls_actors = True

    def _cancel(self, op: Cancel, thing: Thing) -> None:
        if not isinstance(thing, Reference) or thing.object.run is None:
            return
        self.faulty = True
        todo = [thing.object.run]
        while todo:
            run = todo.pop()
            run.cancelled = True
            if op.recursive:
                todo += run.children
        if op.force:
            # Its process dies with all that it owns, and so may those of its children; which may run something else by then.
            self.kills += 1 + (len(self.reads) if op.recursive else 0)
            self.deaths = True

    # --- judging -------------------------------------------------------------------------------------------

    def errors_of(self, one: ExpectedObject) -> frozenset[str]:
        """Return the names of the errors that a get of the object may raise."""
        errors = NO_ROOM if self.full else frozenset[str]()
        if one.run is not None:
            errors |= self._run_errors(one.run)
        if one.owned_by_worker and (self.deaths or self.drained_nodes):
            errors |= {OWNER_DIED}
        # What has references inside may be too large for a message, too.
        losses = self.losses + (self.kills if self.killed_nodes else 0) + self.evictions
        lost = one.lost or (
            (self.killed_nodes or self.evictions) and (one.large or one.inside) and (one.run is not None or one.owned_by_worker)
        )
        again = one.run is not None and one.run.actor is None and one.run.retries >= losses and one.run.node not in self._gone
        if lost and (one.owned_by_worker or not again):
            errors |= LOST
        return errors

    def _run_errors(self, run: ExpectedRun) -> frozenset[str]:
        known = self._errors.get(run)
        if known is not None:
            return known
        errors: frozenset[str] = frozenset()
        for one in (*run.args, *run.needs):
            errors |= self.errors_of(one)
        if run.cancelled:
            errors |= {CANCELLED}
        if run.raises:
            errors |= {BOOM}
        if run.node in self._gone:
            errors |= {ACTOR_UNSCHEDULABLE} if run.actor is not None else {UNSCHEDULABLE}
        if run.group is not None and run.group.removed:
            errors |= {GROUP_REMOVED, CRASHED}
        if run.actor is None:
            if run.crashes + self.kills > run.retries and (run.crashes or self.kills):
                errors |= {CRASHED, NODE_DIED} if self.killed_nodes else {CRASHED}
            if self.evictions and not run.retries:
                errors |= {CRASHED, NODE_DIED}
        elif run.actor.constructor is not run:
            actor = run.actor
            disturbed = actor.killed or actor.crashes or self.kills > 0 or (actor.created_in_worker and self.deaths)
            constructor = actor.constructor
            disturbed |= self.full or bool(self.evictions and not (actor.create.restarts and actor.create.call_retries))
            if constructor is not None and constructor.node in self._gone:
                errors |= {ACTOR_UNSCHEDULABLE}
            if actor.group is not None and actor.group.removed:
                errors |= {ACTOR_GROUP_REMOVED}
                disturbed = True
            if disturbed or (constructor is not None and self._run_errors(constructor)):
                errors |= ACTOR
        self._errors[run] = errors
        return errors

    def _abandoned(self, run: ExpectedRun | None) -> bool:
        """Whether the run may go on when nobody wants its result any more: then what it was given may be gone."""
        while run is not None:
            if run.cancelled:
                return True
            if run.actor is not None and (self.deaths or run.actor.constructor is run):  # a start is given up when the handles are gone
                return True
            if self.deaths and run.parent is not None:
                return True
            run = run.parent
        return False

    def judge(self, number: int, outcome: str, afterwards: bool = False) -> str:
        """Return what is wrong with the outcome of an operation; "" if nothing is. ``afterwards``: the driver had ended."""
        if outcome == SKIPPED:
            return f"operation {number} found a slot empty, and nothing can fail" if number in self._steps and not self.faulty else ""
        one = self.reads.get(number)
        if one is None:
            return f"get {number} was not expected to run; it ended with {outcome}"
        if outcome.startswith("= "):
            return "" if outcome[2:] == one.label else f"get {number} read {outcome[2:]!r} instead of {one.label!r}"
        run = one.run
        if outcome == FINE:
            if run is not None and run.raises and run.actor is None:
                return f"get {number} of {one.label} read a value, but its task raises"
            return ""
        errors = self.errors_of(one)
        if afterwards or self._abandoned(self.readers[number]):
            errors |= {OWNER_DIED, "ObjectFreedError"}
        if self._late_removals and self.readers[number] is not None:
            errors |= ACTOR | {GROUP_REMOVED, ACTOR_GROUP_REMOVED, CRASHED}
        return "" if outcome in errors else f"get {number} of {one.label} raised {outcome}; permitted: {sorted(errors) or 'nothing'}"


def _group(where: Where | None, slots: dict[int, Thing]) -> ExpectedGroup | None:
    if where is None or where.strategy != "GROUP":
        return None
    group = slots[where.group]
    assert isinstance(group, Group)
    return group.group


def _node(where: Where | None) -> int:
    """Return the node that a task must run on and that no other can stand for; -1: any."""
    return where.node if where is not None and where.strategy == "HARD" else -1
