"""The records of ``leases``: a lease, what is set aside, and what the state tells the server to do."""

from __future__ import annotations

import msgspec

from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling.resources import Allocation, Capacity, ResourceSet
from shoal._core.wire.messages import Shape


class Lease(msgspec.Struct, eq=False):
    lease_id: int
    request: LeaseRequest
    allocation: Allocation
    #: What the resources were taken from: the node, or a bundle.
    capacity: Capacity
    granted_at: float
    bundle_index: int = -1
    #: Nested blocking calls (several threads of one worker); CPU is lent out while above zero.
    blocked: int = 0
    #: The owner was asked to return it.
    wanted: bool = False

    @property
    def owner(self) -> int:
        return self.request.owner

    @property
    def shape(self) -> Shape:
        return self.request.shape

    @property
    def is_actor(self) -> bool:
        return bool(self.request.actor_id)


class Grant(msgspec.Struct, frozen=True):
    lease: Lease


class Want(msgspec.Struct, frozen=True):
    """Ask the owner for the lease back when its work is done."""

    lease: Lease


class TellInfeasible(msgspec.Struct, frozen=True):
    """The request can never be met as things stand; it stays queued."""

    request: LeaseRequest
    message: str


class Refuse(msgspec.Struct, frozen=True):
    """The request has left the queue unmet."""

    request: LeaseRequest
    kind: str
    message: str


class Spill(msgspec.Struct, frozen=True):
    """The request has left the queue: its owner is to ask the agent of this node."""

    request: LeaseRequest
    node_id: bytes


class FindGroup(msgspec.Struct, frozen=True):
    """Ask the control store where the group's bundles lie; the answer goes to ``Leases.group_changed``."""

    group: bytes


class Doubt(msgspec.Struct, frozen=True):
    """No known node can run it: ask the control store whether there are others, then call ``Leases.confirm``."""

    request: LeaseRequest


Instruction = Grant | Want | TellInfeasible | Refuse | Spill | FindGroup | Doubt


class Reservation(msgspec.Struct):
    """What nobody but its holder is granted for now. ``request`` is None for a placement group."""

    request: LeaseRequest | None
    group: bytes
    need: ResourceSet
    until: float
