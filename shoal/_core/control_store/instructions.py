"""What the pure tables ask the server to do. A ``Change`` of a row (see ``storage``) is an instruction, too."""

from __future__ import annotations

from dataclasses import dataclass

from shoal._core.wire.messages import ActorUpdate, Cause

from .storage.interface import Change


@dataclass(frozen=True, slots=True)
class PlaceActor:
    """Find a node for the actor's next start. ``later``: a node has just refused it, so not at once."""

    actor_id: bytes
    later: bool = False


@dataclass(frozen=True, slots=True)
class ForgetPlacement:
    """The actor no longer waits for a node."""

    actor_id: bytes


@dataclass(frozen=True, slots=True)
class StartOn:
    """Ask the node agent to start this incarnation; the answer goes to ``ActorTable.started`` or ``start_failed``."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    #: The agent may refuse it for the sake of other actors there.
    movable: bool = False


@dataclass(frozen=True, slots=True)
class CancelStart:
    """The start in flight is not wanted any more; its answer still comes."""

    node_id: bytes
    actor_id: bytes


@dataclass(frozen=True, slots=True)
class StopOn:
    node_id: bytes
    actor_id: bytes
    graceful: bool
    cause: Cause


@dataclass(frozen=True, slots=True)
class AnnounceActor:
    """Tell the subscribers. The update travels along, since the actor may be forgotten by the time it is sent."""

    update: ActorUpdate


@dataclass(frozen=True, slots=True)
class ActorEnded:
    """The actor is dead for good; whoever keeps things for it may let go."""

    actor_id: bytes
    job_id: bytes
    detached: bool


@dataclass(frozen=True, slots=True)
class Prepare:
    """Reserve bundles on one node; the answer goes to ``PlacementGroupTable.prepared``."""

    node_id: bytes
    group_id: bytes
    bundles: dict[int, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Commit:
    node_id: bytes
    group_id: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """Give back all that the node holds of the group; the answer goes to ``PlacementGroupTable.released``."""

    node_id: bytes
    group_id: bytes


@dataclass(frozen=True, slots=True)
class GroupSettled:
    """The group is CREATED (``removed`` False) or gone: answer those who wait for it, and try its actors again."""

    group_id: bytes
    removed: bool


@dataclass(frozen=True, slots=True)
class BundlesLost:
    """Some of the group's bundles went with their node: tell those who send work there."""

    group_id: bytes


@dataclass(frozen=True, slots=True)
class RemovalDone:
    """All nodes have given their bundles back."""

    group_id: bytes


Instruction = (
    Change | PlaceActor | ForgetPlacement | StartOn | CancelStart | StopOn | AnnounceActor | ActorEnded
    | Prepare | Commit | Release | GroupSettled | BundlesLost | RemovalDone
)  # fmt: skip
