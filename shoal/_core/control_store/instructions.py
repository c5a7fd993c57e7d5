"""What the pure tables ask the server to do. A ``Change`` of a row (see ``storage``) is an instruction, too."""

from __future__ import annotations

import msgspec

from shoal._core.wire.messages import ActorUpdate, Cause

from .storage.interface import Change


class PlaceActor(msgspec.Struct, frozen=True):
    """Find a node for the actor's next start. ``later``: a node has just refused it, so not at once."""

    actor_id: bytes
    later: bool = False


class ForgetPlacement(msgspec.Struct, frozen=True):
    """The actor no longer waits for a node."""

    actor_id: bytes


class StartOn(msgspec.Struct, frozen=True):
    """Ask the node agent to start this incarnation; the answer goes to ``ActorTable.started`` or ``start_failed``."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    #: The agent may refuse it for the sake of other actors there.
    movable: bool = False


class CancelStart(msgspec.Struct, frozen=True):
    """The start in flight is not wanted any more; its answer still comes."""

    node_id: bytes
    actor_id: bytes


class StopOn(msgspec.Struct, frozen=True):
    node_id: bytes
    actor_id: bytes
    graceful: bool
    cause: Cause


class AnnounceActor(msgspec.Struct, frozen=True):
    """Tell the subscribers. The update travels along, since the actor may be forgotten by the time it is sent."""

    update: ActorUpdate


class ActorEnded(msgspec.Struct, frozen=True):
    """The actor is dead for good; whoever keeps things for it may let go."""

    actor_id: bytes
    job_id: bytes
    detached: bool


class Prepare(msgspec.Struct, frozen=True):
    """Reserve bundles on one node; the answer goes to ``PlacementGroupTable.prepared``."""

    node_id: bytes
    group_id: bytes
    bundles: dict[int, dict[str, int]]


class Commit(msgspec.Struct, frozen=True):
    node_id: bytes
    group_id: bytes


class Release(msgspec.Struct, frozen=True):
    """Give back all that the node holds of the group; the answer goes to ``PlacementGroupTable.released``."""

    node_id: bytes
    group_id: bytes


class GroupSettled(msgspec.Struct, frozen=True):
    """The group is CREATED (``removed`` False) or gone: answer those who wait for it, and try its actors again."""

    group_id: bytes
    removed: bool


class BundlesLost(msgspec.Struct, frozen=True):
    """Some of the group's bundles went with their node: tell those who send work there."""

    group_id: bytes


class RemovalDone(msgspec.Struct, frozen=True):
    """All nodes have given their bundles back."""

    group_id: bytes


Instruction = (
    Change | PlaceActor | ForgetPlacement | StartOn | CancelStart | StopOn | AnnounceActor | ActorEnded
    | Prepare | Commit | Release | GroupSettled | BundlesLost | RemovalDone
)  # fmt: skip
