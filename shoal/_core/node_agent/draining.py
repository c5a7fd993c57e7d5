"""How a node leaves in good order: what keeps it, what is done about that, and when it goes.

    refusal(wish, load) -- idle termination was asked for, and something is here --> no drain
        |
     RUNNING    objects that processes of other nodes own are copied off (CopyOff), work runs on,
        |       what this node's agent owns goes to another one (Bequeath), copies of that, too
        |  deadline                          | nothing that must stay
     ENDING     EndWork, once                |
        |  nothing runs, or END_S later      |
     GONE      <-- Leave, once --------------+

What must stay until the deadline: tasks that run, actors that may not be restarted (the others are told by the control store to move),
drivers, workers whose own tasks run elsewhere, and objects until their owners have let go of the copy here.

Must not know: clocks, connections, the store. ``step`` is called again and again with what is there now, so no event can be missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import msgspec

from shoal._core.wire.messages import DRAIN_IDLE

#: Objects that are copied off at the same time, and of these to one node with one request.
MOST_UNDER_WAY, BATCH = 128, 32
#: Seconds until an object that no node had room for is offered again.
RETRY_S = 0.5
#: Seconds after the deadline that processes which were killed have to be gone.
END_S = 2.0
#: Seconds in which everybody has heard who the heir is: the control store tells changes ten times a second.
SPREAD_S = 0.5


class Load(msgspec.Struct, frozen=True):
    """What is on the node now."""

    tasks: int = 0
    actors: int = 0
    drivers: int = 0
    #: Workers that wait for tasks that they submitted.
    unfinished: int = 0
    #: Workers that are about to end, and hand over what they own.
    leaving: int = 0
    #: Objects that the agent owns in the place of processes that have ended, and that others hold.
    owned: int = 0
    #: Objects whose primary copy is here, and the nodes of their owners. Those of dead nodes' owners are nobody's.
    objects: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)

    def describe(self) -> str:
        """Return what it is busy with; "" if it is idle."""
        counts = {
            "running task": self.tasks, "actor": self.actors, "driver": self.drivers, "worker that waits for its tasks": self.unfinished,
            "object": len(self.objects),
        }  # fmt: skip
        return ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)


class CopyOff(msgspec.Struct, frozen=True):
    """Ask this node to take over the primary copies; the answer goes to ``answered``."""

    node_id: bytes
    object_ids: list[bytes]


class Bequeath(msgspec.Struct, frozen=True):
    """Hand on what the agent owns to this node's agent, and have everybody know; the outcome goes to ``bequeathed``."""

    heir: bytes


class EndWork(msgspec.Struct, frozen=True):
    """The time is over: kill what runs."""


class Leave(msgspec.Struct, frozen=True):
    """Nothing is left to wait for."""


Instruction = CopyOff | Bequeath | EndWork | Leave


class Phase(Enum):
    RUNNING = "running"
    ENDING = "ending"
    GONE = "gone"


def refusal(reason: str, load: Load) -> str:
    """Return why the node is not drained for this reason; "" if it is."""
    busy = load.describe()
    return f"The node is not idle: it has {busy}." if reason == DRAIN_IDLE and busy else ""


class Draining:
    """One drain. ``node_id``: of the node that leaves; times are seconds of a monotonic clock."""

    def __init__(self, node_id: bytes, deadline: float) -> None:
        self.node_id = node_id
        self.deadline = deadline
        self.phase = Phase.RUNNING
        #: Object -> the node that copies it now.
        self._under_way: dict[bytes, bytes] = {}
        #: Objects that another node has; here until their owners say so.
        self._taken: set[bytes] = set()
        #: Object -> nodes that had no room for it.
        self._refused: dict[bytes, set[bytes]] = {}
        #: Objects that no node had room for -> when to try again.
        self._resting: dict[bytes, float] = {}
        #: The node that gets what this one's agent owns; b"": none is chosen.
        self._heir = b""
        self._bequeathing = False
        self._heirs_in_vain: set[bytes] = set()
        self._leaves_not_before = 0.0

    def again(self, deadline: float) -> None:
        """It was asked to leave once more: earlier perhaps, never later."""
        self.deadline = min(self.deadline, deadline)

    def step(self, load: Load, others: Sequence[bytes], now: float) -> list[Instruction]:
        """Say what to do next. ``others``: the nodes that take work, in the order in which they are asked."""
        self._forget_freed(load.objects)
        if self.phase is Phase.RUNNING:
            needed = load.objects if others else {}
            works = load.tasks or load.actors or load.drivers or load.unfinished or load.leaving
            owned = load.owned if others else 0
            if not (works or needed or owned or self._bequeathing or now < self._leaves_not_before):
                self.phase = Phase.GONE
                return [Leave()]
            if now < self.deadline:
                bequest = self._bequeath(others) if owned and not self._bequeathing else []
                return [*bequest, *self._copy_off(load.objects, others, now)]
            self.phase = Phase.ENDING
            return [EndWork()]
        if self.phase is Phase.ENDING and (not (load.tasks or load.actors or self._bequeathing) or now >= self.deadline + END_S):
            self.phase = Phase.GONE
            return [Leave()]
        return []

    def answered(self, node_id: bytes, object_ids: Sequence[bytes], taken: Sequence[bytes]) -> None:
        """The node has taken these over, and not the others; none if it was lost."""
        for object_id in object_ids:
            if self._under_way.pop(object_id, None) is None:
                continue  # freed meanwhile
            if object_id in taken:
                self._taken.add(object_id)
            else:
                self._refused.setdefault(object_id, set()).add(node_id)

    def bequeathed(self, ok: bool, now: float) -> None:
        """The heir has it, and the control store knows; or not: then another one is chosen."""
        self._bequeathing = False
        if ok:
            self._leaves_not_before = now + SPREAD_S
        else:
            self._heirs_in_vain.add(self._heir)
            self._heir = b""

    def check(self) -> None:
        assert not self._taken & self._under_way.keys()
        assert len(self._under_way) <= MOST_UNDER_WAY

    def _bequeath(self, others: Sequence[bytes]) -> list[Instruction]:
        """All goes to one node; if that has failed, to the next one."""
        if not self._heir:
            self._heirs_in_vain &= set(others)
            self._heir = next((node_id for node_id in others if node_id not in self._heirs_in_vain), others[0])
        self._bequeathing = True
        return [Bequeath(self._heir)]

    def _forget_freed(self, objects: Mapping[bytes, bytes]) -> None:
        self._taken &= objects.keys()
        for table in (self._under_way, self._refused, self._resting):
            for object_id in [one for one in table if one not in objects]:
                del table[object_id]

    def _copy_off(self, objects: Mapping[bytes, bytes], others: Sequence[bytes], now: float) -> list[Instruction]:
        batches: dict[bytes, list[bytes]] = {}
        for object_id, home in objects.items():
            if len(self._under_way) >= MOST_UNDER_WAY:
                break
            if object_id in self._taken or object_id in self._under_way or self._resting.get(object_id, 0.0) > now:
                continue
            node_id = self._place(object_id, home, others, now)
            if node_id:
                self._under_way[object_id] = node_id
                batches.setdefault(node_id, []).append(object_id)
        return [
            CopyOff(node_id, object_ids[start : start + BATCH])
            for node_id, object_ids in batches.items()
            for start in range(0, len(object_ids), BATCH)
        ]

    def _place(self, object_id: bytes, home: bytes, others: Sequence[bytes], now: float) -> bytes:
        """Return the owner's node, or another one if that has no room or leaves too; b"": none has room now."""
        refused = self._refused.get(object_id, ())
        for node_id in sorted(others, key=lambda node_id: node_id != home):
            if node_id not in refused:
                return node_id
        if others:
            self._refused.pop(object_id, None)
            self._resting[object_id] = now + RETRY_S
        return b""
