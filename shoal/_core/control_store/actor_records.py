"""What the control store knows of one actor."""

from __future__ import annotations

import msgspec

from shoal._core.wire.messages import ACTOR_ALIVE, ACTOR_PENDING, ActorSpec, ActorUpdate, Address, Cause

from .rows import ActorRow, encode

#: The worker's end was the actor's own wish, or would come again: no restart.
FINAL_CAUSES = frozenset({"exit_actor", "init_failed", "out_of_scope", "job_finished", "owner_died"})


class NameTaken(Exception):
    """A live actor has this name in this namespace."""


class Actor(msgspec.Struct):
    spec: ActorSpec
    state: str = ACTOR_PENDING
    incarnation: int = 0
    restarts: int = 0
    #: Where this incarnation starts or lives; b"" while it waits for a node. Kept after death until an open start is answered.
    node_id: bytes = b""
    address: Address | None = None
    #: Of the last end, also while the actor is alive again.
    cause: Cause | None = None
    #: Set when the end of the worker, however it comes, is the end of the actor.
    ending: Cause | None = None
    #: A StartActor of this incarnation is not answered yet.
    starting: bool = False
    #: This incarnation, starting or alive, is being killed in order to start again.
    interrupted: bool = False
    #: Starts that were due to the drain of a node: they count against nothing.
    moves: int = 0
    #: The worker's end was reported before the answer to StartActor was handled.
    early_death: Cause | None = None

    def restarts_left(self) -> int:
        limit = self.spec.max_restarts
        return -1 if limit < 0 else max(0, limit - self.restarts)

    def may_move(self) -> bool:
        """Whether it may be ended on a node that drains, to start elsewhere."""
        return self.spec.max_restarts != 0 and self.state == ACTOR_ALIVE and self.ending is None and not self.interrupted

    def update(self) -> ActorUpdate:
        return ActorUpdate(self.spec.actor_id, self.state, self.incarnation, self.address, self.cause, self.restarts_left())

    def row(self) -> bytes:
        row = ActorRow(
            self.state, self.incarnation, self.restarts, self.node_id, self.starting, self.address, self.cause, self.ending,
            self.interrupted, self.moves,
        )  # fmt: skip
        return encode(row)


class ActorStatistics(msgspec.Struct, frozen=True):
    pending: int
    alive: int
    restarting: int
    dead: int
