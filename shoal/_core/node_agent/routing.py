"""Where a lease request is served: on this node, or by the agent of another one.

    judge(request) -> []                      here: it waits for its turn
                      [Spill(node)]           there
                      [FindGroup]             here for now, until the control store has said where the group's bundles lie
                      [Doubt]                 here for now, until the control store has confirmed that no known node can run it
                      [TellInfeasible], [Refuse]

Outside of placement groups ``scheduling.policy`` decides, over the nodes as this one knows them. What was passed on before stays, if it can
run here at all: the nodes' views differ for moments, and it must not wander. What waits is judged again when other nodes change; from the
second hop on only after ``MOVE_S``, so that it keeps its place in a queue for a while.

A node that drains (``leaving``) serves nothing new: what no other node can run waits here unserved.

Inside a group it goes to the node of its bundle. Any bundle will do: here if one has room, else on a tour of the group's nodes, of ``TOUR``
hops at most. If none has room it waits where it is, and goes on a tour again from time to time (``restless``), as nobody tells what is free
in bundles elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from shoal._core.node_agent.bundles import Bundles
from shoal._core.node_agent.group_view import GroupView
from shoal._core.node_agent.lease_records import Doubt, FindGroup, Instruction, Refuse, Spill, TellInfeasible
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling import policy, strategies
from shoal._core.scheduling.resources import Capacity, ResourceSet, fits
from shoal._core.wire.messages import NodeRecord, Shape

#: Hops that a request may make without having waited anywhere.
FREE_HOPS = 2
#: Hops of a tour of a group's nodes: what a request costs must not grow with the nodes.
TOUR = 8
#: Seconds that a request waits before it moves on again.
MOVE_S = 1.0


@dataclass
class Routing:
    """One node's way with requests.

    Args:
        nodes: the cluster as this node sees it, itself first.
        promise: told what is sent to another node, so that ``nodes`` counts it.
        is_exact: whether ``nodes`` misses nothing that the control store knows.
    """

    node: Capacity
    node_id: bytes
    nodes: Callable[[], Sequence[NodeRecord]]
    bundles: Bundles
    promise: Callable[[bytes, ResourceSet], None]
    is_exact: Callable[[], bool]

    #: This node drains.
    leaving: bool = False
    groups: GroupView = field(default_factory=GroupView)
    #: Counts choices: which of several nodes is next.
    _turn: int = 0
    #: The same for SPREAD alone: its round must not skip nodes because others choose meanwhile.
    _round: int = 0
    #: Shapes for which no node had room, since the last news of the others: a full cluster is not looked through for every request.
    _full: dict[Shape, policy.Wait] = field(default_factory=dict)
    #: The same for those that still find room.
    _searches: dict[Shape, policy.Search] = field(default_factory=dict)

    def news(self) -> None:
        """The nodes are not as they were."""
        self._full.clear()
        self._searches.clear()

    def judge(self, request: LeaseRequest, now: float, *, again: bool = False) -> list[Instruction]:
        """Decide where the request is served; sets ``request.feasible``.

        Args:
            again: it has waited here, and something has changed.
        """
        if request.actor_id:
            return self._judge_actor(request)
        if request.shape.placement_group:
            return self._judge_in_group(request, now, again=again)
        nodes = self.nodes()
        if request.hops and not again and self._is_settled(request, nodes):
            request.feasible = True
            return []
        choice = self._choose(request, nodes, again=again)
        if isinstance(choice, policy.Refused | policy.Infeasible) and not (request.certain or self.is_exact()):
            request.feasible = False
            return [Doubt(request)]
        if isinstance(choice, policy.Refused):
            return [Refuse(request, "TaskUnschedulableError", choice.message)]
        if isinstance(choice, policy.Infeasible):
            return self._infeasible(request, choice.message)
        candidates = [choice.node] if isinstance(choice, policy.Placed) else choice.candidates
        may_stay = again and request.feasible and not self.leaving and not _may_move(request, now)
        request.feasible = may_stay or any(node.node_id == self.node_id for node in candidates)
        if may_stay or (request.feasible and (isinstance(choice, policy.Wait) or candidates[0].node_id == self.node_id)):
            return []
        self._turn += 1
        return self._spill(request, candidates[self._turn % len(candidates)].node_id)

    def judge_again(self, queue: Iterable[LeaseRequest], now: float) -> list[Instruction]:
        """Something has changed: judge requests of one owner and shape, oldest first, until one stays, which answers for the rest."""
        out: list[Instruction] = []
        stays: LeaseRequest | None = None
        for request in queue:
            if stays is not None:
                request.feasible = stays.feasible
                request.told_infeasible = stays.told_infeasible
                continue
            if request.feasible and not self.leaving and not request.shape.placement_group and self.node.fits(request.need):
                stays = request  # its turn comes
                continue
            verdict = self.judge(request, now, again=True)
            out += verdict
            if not any(isinstance(one, Spill | Refuse) for one in verdict):
                stays = request
        return out

    def restless(self, request: LeaseRequest, now: float) -> bool:
        """Whether the request has waited here long enough for any bundle of its group. One that others overtake is cared for here."""
        shape = request.shape
        return bool(shape.placement_group) and shape.bundle_index < 0 and not request.passed_over and now - request.queued_at >= MOVE_S

    def _judge_actor(self, request: LeaseRequest) -> list[Instruction]:
        """The control store has chosen this node for it."""
        if self.leaving:
            return [Refuse(request, "NodeLeaves", "The node leaves the cluster and takes no more work.")]
        if not request.shape.placement_group and not fits(request.need, self.node.total):
            return self._infeasible(request, policy.explain_infeasible(request.name or "The actor", request.need, self.nodes()))
        request.feasible = True
        return []

    def _judge_in_group(self, request: LeaseRequest, now: float, *, again: bool) -> list[Instruction]:
        shape = request.shape
        request.feasible = not self.leaving  # the control store tells when it can never be: the group is removed
        found = () if self.leaving else self.bundles.candidates(shape.placement_group, shape.bundle_index)
        here = [one for one in found if fits(request.need, one.capacity.total)]
        if here and (shape.bundle_index >= 0 or any(one.capacity.fits(request.need) for one in here)):
            return []
        if self.groups.ask(shape.placement_group):
            return [FindGroup(shape.placement_group)]
        others = self._others_of(request)
        if not others:
            return []
        if not here:
            self._turn += not request.hops  # from outside of the group: begin anywhere
            return self._spill(request, others[0 if request.hops else self._turn % len(others)])
        tour_is_over = request.hops > 0 and request.hops % min(len(others) + 1, TOUR) == 0
        if not tour_is_over or (again and self.restless(request, now)):
            return self._spill(request, others[0])
        return []

    def _others_of(self, request: LeaseRequest) -> list[bytes]:
        """Return the living nodes with bundles for the request, but this one; the next in the round first."""
        shape = request.shape
        ring = self.groups.ring(shape.placement_group, shape.bundle_index, request.need)
        if not ring:
            return []
        if self.node_id in ring:
            at = ring.index(self.node_id)
            ring = ring[at + 1 :] + ring[:at]
        alive = {node.node_id for node in self.nodes()}
        return [node_id for node_id in ring if node_id in alive]

    def _spill(self, request: LeaseRequest, node_id: bytes) -> list[Instruction]:
        if not (request.shape.placement_group or strategies.is_spread(request.shape.strategy)):  # a round piles up nowhere
            self.promise(node_id, request.need)
        return [Spill(request, node_id)]

    def _choose(self, request: LeaseRequest, nodes: Sequence[NodeRecord], *, again: bool) -> policy.Choice:
        # The first hop of a SPREAD round, to a named node or to large arguments, is made whatever is known of the room there: short tasks
        # end before anybody hears that they ran. A node that has none passes it on to one that seems to have it.
        shape, name, first = request.shape, request.name, not (again or request.hops)
        if strategies.is_spread(shape.strategy):
            choice = policy.choose_node(shape, nodes, name=name, turn=self._round, whole_nodes=first)
            self._round += 1
            if first and isinstance(choice, policy.Placed) and choice.node.node_id == self.node_id and not self.node.fits(request.need):
                choice = policy.choose_node(shape, nodes, name=name, turn=self._round)
            return choice
        strategy = strategies.parse(shape.strategy)
        target = strategy.node_id if isinstance(strategy, strategies.NodeAffinity) else shape.near
        if first and target not in (b"", self.node_id):
            return policy.choose_node(shape, nodes, local=self.node_id, name=name, whole_nodes=True)
        full = self._full.get(shape)
        if full is not None and not self.node.fits(request.need):
            return full
        search = self._searches.setdefault(shape, policy.Search()) if len(nodes) > 1 else None
        choice = policy.choose_node(shape, nodes, local=self.node_id, name=name, search=search)
        if isinstance(choice, policy.Wait) and len(nodes) > 1:  # alone it would never hear news
            self._full[shape] = choice
        return choice

    def _is_settled(self, request: LeaseRequest, nodes: Sequence[NodeRecord]) -> bool:
        """Whether this node, if it were empty, is one that the request allows, and it may wait here."""
        sent_blindly = strategies.is_spread(request.shape.strategy) or request.shape.near == self.node_id
        if sent_blindly and request.hops < FREE_HOPS and not self.node.fits(request.need):
            return False
        strategy = strategies.parse(request.shape.strategy)
        if isinstance(strategy, strategies.NodeAffinity) and (strategy.must_run_now or (strategy.may_leave and request.hops < FREE_HOPS)):
            return False
        own = [msgspec.structs.replace(node, available=node.total) for node in nodes if node.node_id == self.node_id]
        return isinstance(policy.choose_node(request.shape, own), policy.Placed)

    def _infeasible(self, request: LeaseRequest, message: str) -> list[Instruction]:
        request.feasible = False
        if request.told_infeasible:
            return []
        request.told_infeasible = True
        return [TellInfeasible(request, message)]


def _may_move(request: LeaseRequest, now: float) -> bool:
    return request.hops < FREE_HOPS or now - request.queued_at >= MOVE_S
