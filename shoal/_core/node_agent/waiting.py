"""Lease requests that wait, in the order of fairness: jobs take turns, within a job its owners, within an owner first come first served.

An owner's requests are queued by shape, so that a shape that cannot run now (or ever) does not block the owner's other shapes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

import msgspec

from shoal._core.scheduling.policy import need_of
from shoal._core.scheduling.resources import ResourceSet
from shoal._core.wire.messages import Shape


class LeaseRequest(msgspec.Struct, eq=False):
    """One wish for one lease. ``owner`` is the number of the connection that asked, ``rid`` its request number."""

    owner: int
    rid: int
    shape: Shape
    queued_at: float
    retriable: bool = True
    name: str = ""
    #: Set when the lease is for an actor: the worker is its own until death.
    actor_id: bytes = b""
    #: Agents that passed it on before.
    hops: int = 0
    #: An actor that other nodes have bundles for, too: it does not wait for the end of other actors.
    movable: bool = False
    #: The control store knows no other nodes than those it was judged by.
    certain: bool = False
    #: Tasks that wait at the owner for leases of this shape, by its last word: more than it has asked for.
    backlog: int = 1
    #: What must be free for the grant, and what is held afterwards.
    need: ResourceSet = {}
    hold: ResourceSet = {}
    #: Order of arrival; given by the queue.
    sequence: int = 0
    #: Grants made to later requests, of resources that this one lacked.
    passed_over: int = 0
    #: How long resources are set aside for it; grows with each attempt that brought nothing.
    patience_s: float = 0.0
    told_infeasible: bool = False
    feasible: bool = True

    def __post_init__(self) -> None:
        self.hold = dict(self.shape.resources)
        self.need = need_of(self.shape)


OwnerQueue = dict[Shape, deque[LeaseRequest]]


class WaitingRequests:
    """The queue. Adding and removing is O(1), a round over the heads O(owners)."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[bytes, OrderedDict[int, OwnerQueue]] = OrderedDict()
        self._sequence = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, request: LeaseRequest) -> None:
        self._sequence += 1
        request.sequence = self._sequence
        owners = self._jobs.setdefault(request.shape.job_id, OrderedDict())
        owners.setdefault(request.owner, {}).setdefault(request.shape, deque()).append(request)
        self._length += 1

    def remove(self, request: LeaseRequest) -> None:
        owners = self._jobs[request.shape.job_id]
        shapes = owners[request.owner]
        queue = shapes[request.shape]
        queue.remove(request)  # almost always the head
        self._length -= 1
        if not queue:
            del shapes[request.shape]
            if not shapes:
                del owners[request.owner]
                if not owners:
                    del self._jobs[request.shape.job_id]

    def served(self, request: LeaseRequest) -> None:
        """Remove a request that was granted: its owner and its job go to the end of the round."""
        job_id, owner = request.shape.job_id, request.owner
        self.remove(request)
        if job_id in self._jobs:
            self._jobs.move_to_end(job_id)
            if owner in self._jobs[job_id]:
                self._jobs[job_id].move_to_end(owner)

    def heads(self) -> Iterator[LeaseRequest]:
        """The first request of each owner and shape, in the order in which they have their turn."""
        for owners in self._jobs.values():
            for shapes in owners.values():
                if len(shapes) == 1:
                    yield next(iter(shapes.values()))[0]
                else:
                    yield from sorted((queue[0] for queue in shapes.values()), key=lambda request: request.sequence)

    def queues(self) -> list[list[LeaseRequest]]:
        """Return the requests by owner and shape."""
        return [list(queue) for owners in self._jobs.values() for shapes in owners.values() for queue in shapes.values()]

    def counts(self) -> Iterator[tuple[Shape, int]]:
        """By owner and shape: how many tasks and actors wait. O(owners and their shapes)."""
        for owners in self._jobs.values():
            for shapes in owners.values():
                for shape, queue in shapes.items():
                    yield shape, max(len(queue), queue[-1].backlog)

    def of_owner(self, owner: int) -> list[LeaseRequest]:
        return [request for owners in self._jobs.values() for queue in owners.get(owner, {}).values() for request in queue]

    def __iter__(self) -> Iterator[LeaseRequest]:
        for owners in self._jobs.values():
            for shapes in owners.values():
                for queue in shapes.values():
                    yield from queue

    def check(self) -> None:
        assert self._length == sum(1 for _ in self)
        for job_id, owners in self._jobs.items():
            assert owners
            for owner, shapes in owners.items():
                assert shapes
                for shape, queue in shapes.items():
                    assert queue
                    assert all(one.owner == owner and one.shape == shape and shape.job_id == job_id for one in queue)
                    assert [one.sequence for one in queue] == sorted(one.sequence for one in queue)
