"""Programs as data: what a driver, its tasks and its actors do, step by step.

A program is a tree of bodies. A body is a list of operations on *slots*: a slot holds a reference, a value that was read, or an actor's
handle. An operation whose slots are empty (because what would have filled them failed, or was shrunk away) is skipped, so that every part
of a program is a program. Slots and operations have numbers that are unique in the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shoal.testing.simulation.faults import Fault


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument. ``nested``: inside a list, so that the body gets the reference (or handle) and not the value."""

    slot: int
    nested: bool


@dataclass(frozen=True, slots=True)
class Made:
    """A value that a put or a return makes: its label, whether it is large enough for the object store, and what is inside of it."""

    label: str
    large: bool = False
    inside: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Where:
    """Where a task or actor is to run.

    ``strategy``: SPREAD; HARD or SOFT affinity to ``node``, a position; RESOURCE that this node alone has; GROUP: in a bundle of the
    placement group in this slot.
    """

    strategy: str
    node: int = -1
    group: int = -1
    bundle: int = -1


@dataclass(frozen=True, slots=True)
class Put:
    number: int
    dst: int
    made: Made


@dataclass(frozen=True, slots=True)
class Submit:
    """Submit a task. ``bulk``: with arguments too large for a message."""

    number: int
    dst: tuple[int, ...]
    body: Body
    args: tuple[Arg, ...] = ()
    retries: int = 0
    bulk: bool = False
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class Get:
    """Read ``src`` into ``dst``. ``caught``: an error is noted and the body goes on; else it ends the body."""

    number: int
    src: int
    dst: int
    caught: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    number: int
    srcs: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Take:
    """Put what lies at ``index`` inside the value ``src`` into a slot."""

    number: int
    src: int
    index: int
    dst: int


@dataclass(frozen=True, slots=True)
class Drop:
    number: int
    slot: int


@dataclass(frozen=True, slots=True)
class Create:
    """Create an actor; ``body`` is its constructor. Its slots live as long as the instance."""

    number: int
    dst: int
    body: Body
    args: tuple[Arg, ...] = ()
    restarts: int = 0
    call_retries: int = 0
    where: Where | None = None
    #: Of a detached actor.
    name: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """Call an actor: the body works on the slots of the instance."""

    number: int
    dst: tuple[int, ...]
    actor: int
    body: Body
    args: tuple[Arg, ...] = ()
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    number: int
    slot: int
    force: bool
    recursive: bool


@dataclass(frozen=True, slots=True)
class KillActor:
    number: int
    slot: int
    restart: bool


@dataclass(frozen=True, slots=True)
class Find:
    """Look up a detached actor by its name."""

    number: int
    dst: int
    name: str


@dataclass(frozen=True, slots=True)
class CreateGroup:
    """Reserve a placement group of so many equal bundles."""

    number: int
    dst: int
    bundles: int
    strategy: str


@dataclass(frozen=True, slots=True)
class RemoveGroup:
    """Remove a placement group, and whatever runs in it. ``late``: nothing is read after it."""

    number: int
    slot: int
    late: bool


@dataclass(frozen=True, slots=True)
class KillWorker:
    """SIGKILL one of the workers; ``pick`` chooses it."""

    number: int
    pick: int


@dataclass(frozen=True, slots=True)
class Lose:
    """The object store forgets the value, if it has it."""

    number: int
    slot: int


@dataclass(frozen=True, slots=True)
class Pause:
    number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Crash:
    """End the process in the first ``times`` attempts."""

    number: int
    times: int


@dataclass(frozen=True, slots=True)
class Raise:
    number: int


Op = (
    Put | Submit | Get | Wait | Take | Drop | Create | Call | Cancel | KillActor | Find | CreateGroup | RemoveGroup | KillWorker | Lose
    | Pause | Crash | Raise
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Body:
    ops: tuple[Op, ...]
    returns: tuple[Made, ...] = ()
    #: The slots that the arguments fill.
    params: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A driver's body and the kind of trouble that it may contain.

    ``nodes``: the CPUs of each node; one node alone has its control store inside. ``faults`` come from outside, at their times.
    """

    body: Body
    kind: str = ""
    nodes: tuple[int, ...] = (2,)
    faults: tuple[Fault, ...] = ()


def count_ops(body: Body) -> int:
    """Return the number of operations in a body and all bodies inside of it."""
    return sum(1 + (count_ops(op.body) if isinstance(op, Submit | Create | Call) else 0) for op in body.ops)


def smaller_programs(program: Program) -> Iterator[Program]:
    """Yield programs with a fault less, then those with an operation less."""
    faults = program.faults
    for index in range(len(faults)):
        yield replace(program, faults=faults[:index] + faults[index + 1 :])
    for body in smaller(program.body):
        yield replace(program, body=body)


def smaller(body: Body) -> Iterator[Body]:
    """Yield the bodies with one operation less, the largest cuts first: an operation goes with its body before its parts are tried."""
    ops = body.ops
    half = len(ops) // 2
    while half > 1:
        for start in range(0, len(ops), half):
            yield replace(body, ops=ops[:start] + ops[start + half :])
        half //= 2
    for index in reversed(range(len(ops))):
        yield replace(body, ops=ops[:index] + ops[index + 1 :])
    for index, op in enumerate(ops):
        if isinstance(op, Submit | Create | Call):
            for inner in smaller(op.body):
                yield replace(body, ops=(*ops[:index], replace(op, body=inner), *ops[index + 1 :]))


def show_program(program: Program) -> str:
    """Return the program as text: its faults, then its operations."""
    return "\n".join([*map(str, program.faults), show(program.body)])


def show(body: Body, indent: str = "") -> str:
    """Return the body as text, one operation a line."""
    lines = []
    for op in body.ops:
        if isinstance(op, Submit | Create | Call):
            lines.append(f"{indent}{_line(op)}")
            lines.append(show(op.body, indent + "    "))
        else:
            lines.append(f"{indent}{op}")
    if body.returns:
        made = [f"{one.label}{' large' if one.large else ''}{list(one.inside) or ''}" for one in body.returns]
        lines.append(f"{indent}return {', '.join(made)}")
    return "\n".join(line for line in lines if line)


def _line(op: Submit | Create | Call) -> str:
    facts = {name: getattr(op, name) for name in op.__dataclass_fields__ if name not in ("body", "args")}
    args = ", ".join(f"{param}={f'[{one.slot}]' if one.nested else one.slot}" for param, one in zip(op.body.params, op.args, strict=True))
    return f"{type(op).__name__}({', '.join(f'{name}={value}' for name, value in facts.items())}, args={args or '-'}):"
