"""Faults as data: each happens at a time after the start of the program, whatever the program does then. ``nemesis.py`` carries them out.

Nodes are named by their position; node 0 has the driver, and lives; -1 is the control store's host. Most faults end after ``for_s``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeGuard

#: Virtual seconds for which a process, or a connection, may stand still without being given up.
CALM_S = 1.5
#: Shortest and longest silence after which a node is declared dead (``world.SETTINGS.node_timeout_s``); it joins again as another.
SILENCE_S = (4.0, 8.0)
#: Virtual seconds that a node has to leave: till all has ended by itself; too few for that.
PATIENT_S, HASTY_S = 1000.0, 0.3
#: Share of faults that are such a silence.
SILENT = 0.1


@dataclass(frozen=True, slots=True)
class KillNode:
    """SIGKILL a node's agent, and its workers with it. Another node like it joins after ``for_s``."""

    at_s: float
    node: int
    for_s: float


@dataclass(frozen=True, slots=True)
class DrainNode:
    """Ask a node to leave in good order within ``deadline_s``. Another node like it joins after ``for_s``."""

    at_s: float
    node: int
    deadline_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class KillProcess:
    """SIGKILL one of the workers; ``pick`` chooses it."""

    at_s: float
    pick: int


@dataclass(frozen=True, slots=True)
class PauseAgent:
    """SIGSTOP, later SIGCONT, a node's agent."""

    at_s: float
    node: int
    for_s: float


@dataclass(frozen=True, slots=True)
class PauseProcess:
    """SIGSTOP, later SIGCONT, one of the workers."""

    at_s: float
    pick: int
    for_s: float


@dataclass(frozen=True, slots=True)
class Partition:
    """Cut two nodes off from each other; ``one_way``: only what ``node`` sends to ``other`` is held back."""

    at_s: float
    node: int
    other: int
    one_way: bool
    for_s: float


@dataclass(frozen=True, slots=True)
class Slow:
    """Have all between two hosts take up to ``longest_s``, so that it is overtaken by what goes other ways."""

    at_s: float
    node: int
    other: int
    longest_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class KillControlStore:
    """SIGKILL the control store; it is started again on its tables after ``for_s``."""

    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class JumpClock:
    """The control store's wall clock is set forward or back."""

    at_s: float
    by_s: float


@dataclass(frozen=True, slots=True)
class FullDisk:
    """Nothing can be written: -1 at the control store, else at a node's spill directory."""

    at_s: float
    node: int
    for_s: float


Fault = KillNode | DrainNode | KillProcess | PauseAgent | PauseProcess | Partition | Slow | KillControlStore | JumpClock | FullDisk


def ended_nodes(faults: tuple[Fault, ...]) -> list[int]:
    """Return the nodes that die, or are declared dead, one for each time."""
    return [fault.node for fault in faults if isinstance(fault, KillNode) or (_is_silence(fault) and fault.for_s > CALM_S)]


def has_silence(faults: tuple[Fault, ...]) -> bool:
    """Whether a node that lives is declared dead: till it hears so, what runs on it runs on."""
    return any(_is_silence(fault) and fault.for_s > CALM_S for fault in faults)


def _is_silence(fault: Fault) -> TypeGuard[PauseAgent | Partition]:
    return isinstance(fault, PauseAgent) or (isinstance(fault, Partition) and fault.other < 0)


def generate_faults(draw: random.Random, nodes: int) -> tuple[Fault, ...]:
    """Draw a few faults for a cluster of this size; programs last about a second."""
    faults: list[Fault] = []
    for _ in range(draw.randint(1, 4)):
        at_s = round(2 * draw.random() ** 2, 3)
        for_s = round(draw.choice((0.02, 0.3, CALM_S)) * draw.random(), 3)
        node = draw.randrange(1, nodes) if nodes > 1 else 0
        other = draw.choice([one for one in range(-1, nodes) if one != node])
        if nodes > 1 and draw.random() < SILENT:
            silence_s = round(draw.uniform(*SILENCE_S), 3)
            faults.append(draw.choice((PauseAgent(at_s, node, silence_s), Partition(at_s, node, -1, False, silence_s))))
            continue
        kind = draw.choice(
            (KillNode, DrainNode, KillProcess, PauseAgent, PauseProcess, Partition, Slow, KillControlStore, JumpClock, FullDisk)
        )
        if kind is KillNode and nodes > 1:
            faults.append(KillNode(at_s, node, for_s))
        elif kind is DrainNode and nodes > 1:
            faults.append(DrainNode(at_s, node, draw.choice((PATIENT_S, PATIENT_S, round(HASTY_S * draw.random(), 3))), for_s))
        elif kind is PauseAgent:
            faults.append(PauseAgent(at_s, draw.randrange(nodes), for_s))
        elif kind is PauseProcess:
            faults.append(PauseProcess(at_s, draw.randrange(1000), for_s))
        elif kind is Partition and nodes > 1:
            faults.append(Partition(at_s, node, other, draw.random() < 0.3, for_s))
        elif kind is Slow and nodes > 1:
            faults.append(Slow(at_s, node, other, draw.choice((0.01, 0.1)), for_s))
        elif kind is KillControlStore and nodes > 1:
            faults.append(KillControlStore(at_s, for_s))
        elif kind is JumpClock:
            faults.append(JumpClock(at_s, draw.choice((-3600.0, 3600.0))))
        elif kind is FullDisk and nodes > 1:
            faults.append(FullDisk(at_s, draw.randrange(-1, nodes), for_s))
        else:
            faults.append(KillProcess(at_s, draw.randrange(1000)))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))
