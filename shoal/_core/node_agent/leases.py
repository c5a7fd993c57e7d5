"""Who may use how much of this node: lease requests in, grants out.

Owns: the queue of requests, the leases, the node's capacity and its bundles.
Must not know: workers, processes, connections, clocks (times are passed in).

    add / cancel / end / owner_lost / blocked / unblocked / prepare...  ->  schedule(now)  ->  [Grant, Want]
    add / nodes_changed / group_changed / confirm                        ->  [Spill, Refuse, TellInfeasible...]   (``routing.py``)

Fairness. Jobs and owners take turns (``waiting.py``). Who finds no room while others hold leases has some of them called back (``Want``):
the holder returns a lease when what it pushed is done, and queues again. Only those with at least two leases more than the one who waits
are asked, unless he has none, so that two owners with enough work do not pass leases to and fro.

Starvation. A request that lacks a resource which later requests were granted ``PASSED_OVER_LIMIT`` times, or for ``PASSED_OVER_S``, gets
what it needs set aside: nobody else is granted it. One request at a time, and with an end (``RESERVE_S``, doubled per attempt), because a
task that polls for a child of its own would otherwise wait for it for ever. Resources held by actors are not waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from shoal._core.node_agent.bundles import Bundle, Bundles
from shoal._core.node_agent.lease_records import Grant, Instruction, Lease, Refuse, Reservation, Spill, Want
from shoal._core.node_agent.routing import Routing
from shoal._core.node_agent.waiting import LeaseRequest, WaitingRequests
from shoal._core.scheduling import policy
from shoal._core.scheduling.demands import MOST_SHAPES, add_up, demand_of
from shoal._core.scheduling.resources import Allocation, Capacity, ResourceSet, fits, lacking, subtract, total_of
from shoal._core.wire.messages import Demand, GroupChanged, NodeRecord, Shape

#: Later requests that may overtake one that does not fit.
PASSED_OVER_LIMIT = 16
#: Seconds after which a single overtaking is enough.
PASSED_OVER_S = 1.0
#: Seconds for which resources are set aside at first.
RESERVE_S = 5.0
#: Seconds between two attempts, in which everybody else has a go.
PAUSE_S = 0.5


class LeaseStatistics(msgspec.Struct, frozen=True):
    leases: int
    queued: int
    granted_total: int
    blocked: int


@dataclass
class Leases:
    """State of one node's leases.

    Args:
        nodes: the cluster as this node sees it, itself included: decides what is infeasible.
        promise: told what is sent to another node, so that ``nodes`` counts it.
        is_exact: whether ``nodes`` misses nothing that the control store knows; else it is asked before a request is called infeasible.
    """

    node: Capacity
    node_id: bytes
    nodes: Callable[[], Sequence[NodeRecord]]
    history_limit: int = 1000
    promise: Callable[[bytes, ResourceSet], None] = lambda node_id, need: None
    is_exact: Callable[[], bool] = lambda: True

    leases: dict[int, Lease] = field(default_factory=dict)
    waiting: WaitingRequests = field(default_factory=WaitingRequests)
    #: All and only leases that are not for actors: those that can be called back.
    _tasks: dict[int, Lease] = field(default_factory=dict)
    #: Groups that are gone, oldest first: requests for them are refused instead of waiting for bundles.
    _removed: dict[bytes, None] = field(default_factory=dict)
    _reservation: Reservation | None = None
    #: No reservation before this time.
    _pause_until: float = 0.0
    _next_id: int = 1
    _granted_total: int = 0

    def __post_init__(self) -> None:
        self.bundles = Bundles(self.node)
        self.routing = Routing(self.node, self.node_id, self.nodes, self.bundles, self.promise, self.is_exact)

    # --- events ---------------------------------------------------------------------------------------------------------------

    def add(self, request: LeaseRequest) -> list[Instruction]:
        """Queue a request; ``schedule`` grants it. Refused at once when its group or its node is gone; passed on to a better node."""
        group = request.shape.placement_group
        if group in self._removed:
            return [refusal_of(request)]
        if request.movable and not self._has_room_beside_actors(request):
            return [Refuse(request, "NoRoom", "Other actors hold the bundles of this node.")]
        out = self.routing.judge(request, request.queued_at)
        if not any(isinstance(one, Refuse | Spill) for one in out):
            self.waiting.add(request)
        return out

    def demands(self) -> list[Demand]:
        """Return what waits here for resources, the largest counts first. O(owners and their shapes)."""
        found = (demand_of(shape, count) for shape, count in self.waiting.counts())
        return add_up((one for one in found if one is not None), MOST_SHAPES)

    def backlog(self, owner: int, rid: int, tasks: int) -> None:
        """So many tasks wait at the owner for leases of the shape of this request."""
        for request in self.waiting.of_owner(owner):
            if request.rid == rid:
                request.backlog = tasks

    def cancel(self, owner: int, rid: int) -> bool:
        """Forget a queued request; False when it is not queued (any more)."""
        for request in self.waiting.of_owner(owner):
            if request.rid == rid:
                self._forget(request)
                return True
        return False

    def owner_lost(self, owner: int) -> list[Lease]:
        """Drop what the owner had queued and return the leases it holds; they end with their workers."""
        for request in self.waiting.of_owner(owner):
            self._forget(request)
        return [lease for lease in self.leases.values() if lease.owner == owner]

    def end(self, lease_id: int) -> Lease | None:
        """Give the lease's resources back. None when it has ended before."""
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            return None
        self._tasks.pop(lease_id, None)
        if lease.blocked:
            lease.blocked = 0
            self._take_back(lease)
        lease.capacity.release(lease.allocation)
        return lease

    def worker_blocked(self, lease_id: int) -> None:
        """The lease's worker waits in ``get``: lend its CPUs to others. GPUs and custom resources stay."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return
        lease.blocked += 1
        if lease.blocked == 1 and lease.allocation.amounts.get("CPU"):
            lease.capacity.lend("CPU", lease.allocation.amounts["CPU"])

    def worker_unblocked(self, lease_id: int) -> None:
        """The worker goes on at once; availability may become negative until others finish."""
        lease = self.leases.get(lease_id)
        if lease is None or not lease.blocked:
            return
        lease.blocked -= 1
        if not lease.blocked:
            self._take_back(lease)

    def prepare(self, group: bytes, bundles: Mapping[int, Mapping[str, int]], now: float) -> bool:
        """Reserve bundles, all or none. When it fails, room is made: leases are called back and capacity is set aside for a while."""
        if self.routing.leaving:
            return False
        need = total_of(bundles.values())
        held = self._reservation
        if held is not None and held.group != group and not self.node.fits(need, held.need) and not held.group:
            return False
        if self.bundles.prepare(group, bundles):
            if held is not None and held.request is None and held.group == group:
                self._reservation = None
            return True
        if held is None and now >= self._pause_until and self._attainable(need):
            self._reservation = Reservation(None, group, need, now + RESERVE_S)
        return False

    def commit(self, group: bytes) -> bool:
        return self.bundles.commit(group)

    def release_group(self, group: bytes, *, removed: bool) -> tuple[list[Instruction], list[Lease]]:
        """Close the group's bundles: (refusals of what was queued for it, leases whose workers must end first).

        When no lease is left (now or later), call ``drop_group``. Of a group that is not ``removed`` an attempt is rolled back: what is
        queued for it goes on waiting. It may have been committed here, which a control store that was started again does not know.
        """
        if self._reservation is not None and self._reservation.request is None and self._reservation.group == group:
            self._reservation = None
        self.bundles.close(group)
        return self._refuse_group(group) if removed else [], self.leases_of_group(group)

    def leases_of_group(self, group: bytes) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.shape.placement_group == group]

    def drop_group(self, group: bytes) -> None:
        """Return a closed group's resources to the node."""
        assert not self.leases_of_group(group)
        self.bundles.drop(group)

    def group_changed(self, news: GroupChanged, now: float) -> list[Instruction]:
        """The control store's word about where a group's bundles lie."""
        group = news.placement_group_id
        if news.state == "REMOVED":
            return self._refuse_group(group)
        self.routing.groups.learn(news)
        return self._judge_again((queue for queue in self.waiting.queues() if queue[0].shape.placement_group == group), now)

    def drain(self, now: float) -> list[Instruction]:
        """This node leaves: nothing is granted any more, what waits goes elsewhere, leases come back when what was pushed is done."""
        self.routing.leaving = True
        self.routing.news()
        self._reservation = None
        out: list[Instruction] = []
        for lease in self._tasks.values():
            if not lease.wanted:
                lease.wanted = True
                out.append(Want(lease))
        return out + self._judge_again(self.waiting.queues(), now)

    def nodes_changed(self, now: float) -> list[Instruction]:
        """Other nodes have come, gone, or have other resources than before: judge again what waits. O(owners and shapes * nodes)."""
        self.routing.news()
        return self._judge_again(self.waiting.queues(), now)

    def confirm(self, requests: Iterable[LeaseRequest], now: float) -> list[Instruction]:
        """``nodes`` misses nothing now: judge again those that were in doubt."""
        doubted = {id(request): request for request in requests}
        for request in doubted.values():
            request.certain = True
        self.routing.news()
        return self._judge_again(([one] for one in list(self.waiting) if id(one) in doubted), now)

    def tick(self, now: float) -> list[Instruction]:
        """Let those look elsewhere who wait in vain for any bundle of their group."""
        return self._judge_again((queue for queue in self.waiting.queues() if self.routing.restless(queue[0], now)), now)

    def _judge_again(self, queues: Iterable[list[LeaseRequest]], now: float) -> list[Instruction]:
        out = [one for queue in queues for one in self.routing.judge_again(queue, now)]
        for one in out:
            if isinstance(one, Refuse | Spill):
                self._forget(one.request)
        return out

    # --- decisions --------------------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> list[Instruction]:
        """Grant what fits, in turns; then call leases back for those who found no room. O(owners that wait) per grant."""
        if self.routing.leaving or (not self.waiting and self._reservation is None):
            return []
        self._renew_reservation(now)
        out: list[Instruction] = []
        refused: dict[LeaseRequest, None] = {}
        tried: set[tuple[object, ...]] = set()
        while (lease := self._grant_next(now, tried, refused)) is not None:
            out.append(Grant(lease))
            self._count_overtaken(lease, refused)
        out += self._call_back(now)
        return out

    def _grant_next(self, now: float, tried: set[tuple[object, ...]], passed: dict[LeaseRequest, None]) -> Lease | None:
        """Grant the first head that fits. ``tried``: demands that did not fit in this pass (room only shrinks within it)."""
        for request in self.waiting.heads():
            shape = request.shape
            if not request.feasible:
                continue
            demand = (shape.placement_group, shape.bundle_index, shape.resources, shape.placement_resources)
            holder = self._reservation is not None and self._reservation.request is request
            if demand in tried and not holder:
                passed[request] = None
                continue
            lease = self._try_grant(request, now)
            if lease is not None:
                return lease
            passed[request] = None
            if not holder:
                tried.add(demand)
        return None

    def _try_grant(self, request: LeaseRequest, now: float) -> Lease | None:
        found = self._find_room(request)
        if found is None:
            return None
        capacity, bundle_index = found
        allocation = capacity.acquire(request.hold)
        if allocation is None:
            return None
        if self._reservation is not None and self._reservation.request is request:
            self._reservation = None
        self.waiting.served(request)
        lease = Lease(self._next_id, request, allocation, capacity, now, bundle_index)
        self._next_id += 1
        self._granted_total += 1
        self.leases[lease.lease_id] = lease
        if not lease.is_actor:
            self._tasks[lease.lease_id] = lease
        return lease

    def _find_room(self, request: LeaseRequest) -> tuple[Capacity, int] | None:
        shape = request.shape
        held = self._reservation
        if not shape.placement_group:
            reserved = held.need if held is not None and held.request is not request and not _in_bundle(held) else None
            return (self.node, -1) if self.node.fits(request.need, reserved) else None
        reserved = None
        if held is not None and held.request is not None and held.request is not request and held.group == shape.placement_group:
            reserved = held.need
        for bundle in self.bundles.candidates(shape.placement_group, shape.bundle_index):
            if bundle.capacity.fits(request.need, reserved):
                return bundle.capacity, bundle.index
        return None

    def _has_room_beside_actors(self, request: LeaseRequest) -> bool:
        """Could a bundle of this node hold the request if all tasks in it ended? Actors that wait for their turn count as there."""
        shape = request.shape
        room = {one.index: dict(one.capacity.total) for one in self.bundles.candidates(shape.placement_group, shape.bundle_index)}
        for lease in self.leases_of_group(shape.placement_group):
            if lease.is_actor and lease.bundle_index in room:
                room[lease.bundle_index] = subtract(room[lease.bundle_index], lease.allocation.amounts)
        queued = [one for one in self.waiting if one.actor_id and one.shape.placement_group == shape.placement_group]
        for other in sorted(queued, key=lambda one: one.sequence):
            index = next((index for index, free in room.items() if fits(other.need, free)), None)
            if index is not None:
                room[index] = subtract(room[index], other.hold)
        return any(fits(request.need, free) for free in room.values())

    def _refuse_group(self, group: bytes) -> list[Instruction]:
        """The group is gone: refuse what waits for it, and what comes."""
        self.routing.groups.forget(group)
        self._removed[group] = None
        while len(self._removed) > self.history_limit:
            del self._removed[next(iter(self._removed))]
        refused: list[Instruction] = []
        for request in [one for one in self.waiting if one.shape.placement_group == group]:
            self._forget(request)
            refused.append(refusal_of(request))
        return refused

    # --- fairness ---------------------------------------------------------------------------------------------------------------

    def _count_overtaken(self, lease: Lease, passed: dict[LeaseRequest, None]) -> None:
        for request in passed:
            if request.sequence < lease.request.sequence and policy.could_help(
                request.need, self._free_for(request), lease.allocation.amounts
            ):
                request.passed_over += 1

    def _renew_reservation(self, now: float) -> None:
        """End a reservation that is over; make one for the oldest request that was overtaken too often."""
        held = self._reservation
        if held is not None:
            if now < held.until:
                return
            self._reservation = None
            self._pause_until = now + PAUSE_S
        if now < self._pause_until:
            return
        starved = [
            one
            for one in self.waiting.heads()
            if one.feasible and (one.passed_over >= PASSED_OVER_LIMIT or (one.passed_over and now - one.queued_at >= PASSED_OVER_S))
        ]
        for request in sorted(starved, key=lambda one: one.sequence):
            group = request.shape.placement_group
            if self._attainable(request.need) if not group else self.bundles.candidates(group, request.shape.bundle_index):
                request.patience_s = max(RESERVE_S, 2 * request.patience_s)
                self._reservation = Reservation(request, group, dict(request.need), now + request.patience_s)
                return

    def _attainable(self, need: ResourceSet) -> bool:
        """Could ``need`` be met if every task on the node ended? Actors and other groups' bundles stay."""
        stay = [lease.allocation.amounts for lease in self.leases.values() if lease.is_actor and lease.capacity is self.node]
        stay += [bundle.taken.amounts for bundle in self.bundles]
        return fits(need, subtract(self.node.total, total_of(stay)))

    def _call_back(self, now: float) -> list[Instruction]:
        """Choose leases whose return would let those run who wait."""
        held = self._reservation
        for_group = held is not None and held.request is None
        if not self._tasks or not (self.waiting or for_group):
            return []
        counts: dict[tuple[int, Shape], int] = {}
        for lease in self._tasks.values():
            counts[lease.owner, lease.shape] = counts.get((lease.owner, lease.shape), 0) + 1
        # What is on its way back already; each waiting request uses up its part of it.
        coming = total_of(lease.allocation.amounts for lease in self._tasks.values() if lease.wanted)
        out: list[Instruction] = []
        if held is not None and for_group:
            missing = subtract(lacking(held.need, self.node.free), coming)
            out += self._want(missing, coming, self._callable(self.node, None, counts))
        for request in self.waiting.heads():
            if not request.feasible:
                continue
            urgent = held is not None and held.request is request
            missing = subtract(lacking(request.need, self._free_for(request)), coming)
            capacity = self._capacity_for(request)
            if capacity is not None:
                out += self._want(missing, coming, self._callable(capacity, None if urgent else request, counts))
        return out

    def _callable(self, capacity: Capacity, request: LeaseRequest | None, counts: dict[tuple[int, Shape], int]) -> Iterator[Lease]:
        """Leases that may be called back for ``request`` (None: for anybody), longest held first."""
        mine = counts.get((request.owner, request.shape), 0) if request is not None else 0
        for lease in list(self._tasks.values()):
            if lease.wanted or lease.blocked or lease.capacity is not capacity:
                continue
            key = (lease.owner, lease.shape)
            if request is not None and (key == (request.owner, request.shape) or (mine and counts[key] <= mine + 1)):
                continue
            yield lease
            if lease.wanted:
                counts[key] -= 1

    def _want(self, missing: ResourceSet, coming: ResourceSet, leases: Iterator[Lease]) -> Iterator[Instruction]:
        need = {name: amount for name, amount in missing.items() if amount > 0}
        for name, amount in missing.items():
            # The part that comes back anyway is spoken for.
            coming[name] = max(0, -amount)
        if not need:
            return
        for lease in leases:
            held = lease.allocation.amounts
            if not any(held.get(name) for name in need):
                continue
            lease.wanted = True
            yield Want(lease)
            need = {name: amount - held.get(name, 0) for name, amount in need.items() if amount > held.get(name, 0)}
            if not need:
                return

    # --- what there is ------------------------------------------------------------------------------------------------------------

    def available(self) -> ResourceSet:
        """Return what is free on the node, outside of bundles. Negative amounts count as zero."""
        return {name: max(0, amount) for name, amount in self.node.free.items()}

    def group_waits(self) -> bytes:
        """Return the placement group for which resources are being set aside and have become free; b"" if there is none."""
        held = self._reservation
        return held.group if held is not None and held.request is None and self.node.fits(held.need) else b""

    def statistics(self) -> LeaseStatistics:
        return LeaseStatistics(
            len(self.leases), len(self.waiting), self._granted_total, sum(1 for one in self.leases.values() if one.blocked)
        )

    def check(self) -> None:
        """Assert that nothing is granted twice and that the sums agree."""
        self.node.check()
        self.bundles.check()
        self.waiting.check()
        capacities: list[tuple[Capacity, list[Allocation]]] = [(self.node, [bundle.taken for bundle in self.bundles])]
        capacities += [(bundle.capacity, []) for bundle in self.bundles]
        for capacity, allocations in capacities:
            inside = [lease for lease in self.leases.values() if lease.capacity is capacity]
            used = total_of([one.amounts for one in allocations] + [lease.allocation.amounts for lease in inside])
            lent = sum(lease.allocation.amounts.get("CPU", 0) for lease in inside if lease.blocked)
            for name, total in capacity.total.items():
                assert capacity.free[name] == total - used.get(name, 0) + (lent if name == "CPU" else 0), name
                if name != "CPU":
                    assert capacity.free[name] >= 0, f"{name} over-granted"
        assert self._tasks == {lease_id: lease for lease_id, lease in self.leases.items() if not lease.is_actor}
        for lease in self.leases.values():
            assert lease.capacity is self.node or any(lease.capacity is bundle.capacity for bundle in self.bundles)

    def _free_for(self, request: LeaseRequest) -> ResourceSet:
        capacity = self._capacity_for(request)
        return capacity.free if capacity is not None else {}

    def _capacity_for(self, request: LeaseRequest) -> Capacity | None:
        """The node, or the bundle that is nearest to having room."""
        shape = request.shape
        if not shape.placement_group:
            return self.node
        bundles: list[Bundle] = [
            one for one in self.bundles.candidates(shape.placement_group, shape.bundle_index) if fits(request.need, one.capacity.total)
        ]
        if not bundles:
            return None
        return min(bundles, key=lambda one: sum(lacking(request.need, one.capacity.free).values())).capacity

    def _take_back(self, lease: Lease) -> None:
        if lease.allocation.amounts.get("CPU"):
            lease.capacity.take_back("CPU", lease.allocation.amounts["CPU"])

    def _forget(self, request: LeaseRequest) -> None:
        self.waiting.remove(request)
        if self._reservation is not None and self._reservation.request is request:
            self._reservation = None


def _in_bundle(reservation: Reservation) -> bool:
    return reservation.request is not None and bool(reservation.group)


def refusal_of(request: LeaseRequest) -> Refuse:
    """Answer a request for a placement group that has been removed."""
    kind = "ActorPlacementGroupRemoved" if request.actor_id else "TaskPlacementGroupRemoved"
    group = request.shape.placement_group.hex()
    return Refuse(request, kind, f"{request.name or 'The request'} was to run in placement group {group}, which has been removed.")
