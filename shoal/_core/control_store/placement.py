"""Which node starts an actor.

    add -> waiting, by shape -> retry -> Chosen (promised on the node) -> settled (the agent has answered)

An actor that fits nowhere now but could run on one node only is sent there at once: the agent queues it and starts it the moment there is
room. With more candidates it waits here. What no node could ever run waits for the cluster to change. Waiting actors are
grouped by shape, and one that cannot be placed answers for all of its shape, so a thousand of a kind cost one look.

In a placement group only the agents know what is free in the bundles. While several nodes have a bundle for the actor, it is ``movable``:
an agent whose bundles other actors hold refuses it, and is left out until an actor of the group has ended. Of a shape that was refused one
actor at a time is sent to a node, so that a thousand too many cost one refusal per node and second, and not a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from shoal._core.scheduling.policy import Infeasible, Placed, Refused, Wait, choose_node, need_of
from shoal._core.scheduling.resources import fits
from shoal._core.scheduling.strategies import freeze, is_spread
from shoal._core.wire.messages import NodeRecord, PlacementGroupRecord, Shape

from .nodes import NodeTable

FindGroup = Callable[[bytes], PlacementGroupRecord | None]


class Chosen(msgspec.Struct, frozen=True):
    actor_id: bytes
    node_id: bytes
    movable: bool = False


class Hopeless(msgspec.Struct, frozen=True):
    """Waiting cannot help."""

    actor_id: bytes
    message: str


class PlacementStatistics(msgspec.Struct, frozen=True):
    waiting: int
    infeasible: int
    starting: int


class _Start(msgspec.Struct, frozen=True):
    node_id: bytes
    need: Mapping[str, int]
    shape: Shape


class Placement:
    def __init__(self, nodes: NodeTable, find_group: FindGroup) -> None:
        self._nodes = nodes
        self._find_group = find_group
        #: Shape -> actor id -> name for messages; both in order of arrival.
        self._waiting: dict[Shape, dict[bytes, str]] = {}
        self._shapes: dict[bytes, Shape] = {}
        #: Shapes that nothing could run at the last look, with the reason.
        self._infeasible: dict[Shape, str] = {}
        self._starts: dict[bytes, _Start] = {}
        #: Shapes in groups that were refused -> nodes that did so since an actor of the group ended last.
        self._full: dict[Shape, set[bytes]] = {}
        #: Round of the SPREAD strategy.
        self._turn = 0

    def add(self, actor_id: bytes, shape: Shape, name: str) -> None:
        shape = freeze(shape)
        self._shapes[actor_id] = shape
        self._waiting.setdefault(shape, {})[actor_id] = name

    def remove(self, actor_id: bytes) -> None:
        """The actor no longer wants a node. Fine if it does not wait."""
        shape = self._shapes.pop(actor_id, None)
        if shape is not None:
            del self._waiting[shape][actor_id]
            if not self._waiting[shape]:
                del self._waiting[shape]
                self._infeasible.pop(shape, None)

    def settled(self, actor_id: bytes) -> None:
        """The agent has answered the start (or the node is gone); its own report counts from now on."""
        start = self._starts.pop(actor_id, None)
        node = self._nodes.get(start.node_id) if start is not None else None
        if start is not None and node is not None:
            node.starts -= 1
            node.settle(start.need, taken=False)

    def refused(self, node_id: bytes, shape: Shape) -> None:
        """Actors hold all bundles of the node that the shape fits into."""
        self._full.setdefault(freeze(shape), set()).add(node_id)

    def actor_left(self, group_id: bytes) -> None:
        """A bundle of the group may have room again."""
        for shape, full in self._full.items():
            if shape.placement_group == group_id:
                full.clear()

    def forget_refusals(self) -> None:
        """For safety, now and then: a start that failed late leaves room of which no news comes."""
        self._full = {shape: set() for shape in self._full if shape in self._waiting}

    def node_left(self, node_id: bytes) -> None:
        """Starts asked of the node are over. O(starts in flight)."""
        for actor_id in [actor_id for actor_id, start in self._starts.items() if start.node_id == node_id]:
            del self._starts[actor_id]

    def retry(self, only: Shape | None = None) -> list[Chosen | Hopeless]:
        """Place what can be placed, of all shapes or of one. O(shapes + placed)."""
        results: list[Chosen | Hopeless] = []
        for shape in [only] if only is not None else list(self._waiting):
            for actor_id, name in list(self._waiting.get(shape, {}).items()):
                result = self._choose(actor_id, shape, name)
                if result is None:
                    break
                results.append(result)
        return results

    def shapes_in(self, group_id: bytes) -> list[Shape]:
        """Shapes that wait for this placement group."""
        return [shape for shape in self._waiting if shape.placement_group == group_id]

    def counts(self) -> list[tuple[Shape, int]]:
        """How many actors of each shape wait here; those that were sent to a node wait there."""
        return [(shape, len(actors)) for shape, actors in self._waiting.items()]

    def waits_for_room(self) -> bool:
        """Whether some actor could run if a node were less busy."""
        return len(self._waiting) > len(self._infeasible)

    def why_infeasible(self, shape: Shape) -> str:
        """Return why no node can run the shape; "" when one can."""
        return self._infeasible.get(shape, "")

    def statistics(self) -> PlacementStatistics:
        infeasible = sum(len(self._waiting[shape]) for shape in self._infeasible)
        return PlacementStatistics(len(self._shapes) - infeasible, infeasible, len(self._starts))

    def check(self) -> None:
        assert all(self._waiting.values())
        assert self._infeasible.keys() <= self._waiting.keys()
        assert {actor_id: shape for shape, actors in self._waiting.items() for actor_id in actors} == self._shapes
        assert not self._shapes.keys() & self._starts.keys(), "waiting and starting"

    def _choose(self, actor_id: bytes, shape: Shape, name: str) -> Chosen | Hopeless | None:
        self._infeasible.pop(shape, None)
        need = need_of(shape)
        movable = False
        found: NodeRecord | Infeasible | Refused | None
        if shape.placement_group:
            found, movable = self._in_group(shape, need)
        else:
            found = self._in_cluster(shape, name)
        if isinstance(found, Infeasible):
            self._infeasible[shape] = found.message
            return None
        if found is None or (isinstance(found, Refused) and self._nodes.missing()):
            return None  # after a restart, the node it insists on may be on its way back
        self.remove(actor_id)
        if isinstance(found, Refused):
            return Hopeless(actor_id, found.message)
        node = self._nodes.get(found.node_id)
        assert node is not None
        node.starts += 1
        promised = {} if shape.placement_group else need  # a bundle's resources are not the node's any more
        node.promise(promised)
        self._starts[actor_id] = _Start(found.node_id, promised, shape)
        self._turn += is_spread(shape.strategy)
        return Chosen(actor_id, found.node_id, movable)

    def _in_cluster(self, shape: Shape, name: str) -> NodeRecord | Infeasible | Refused | None:
        choice = choose_node(shape, self._nodes.views(), name=name, turn=self._turn)
        if isinstance(choice, Placed):
            return choice.node
        if isinstance(choice, Wait):
            return choice.candidates[0] if len(choice.candidates) == 1 else None
        return choice

    def _in_group(self, shape: Shape, need: Mapping[str, int]) -> tuple[NodeRecord | Infeasible | Refused | None, bool]:
        """Return the choice, and whether other nodes have bundles for the shape, too."""
        group = self._find_group(shape.placement_group)
        if group is None or group.state == "REMOVED":
            return Refused("Its placement group was removed before it could start."), False
        bundles = group.spec.bundles
        if shape.bundle_index >= len(bundles):
            return Refused(f"Its placement group has {len(bundles)} bundles; bundle {shape.bundle_index} does not exist."), False
        indices = [shape.bundle_index] if shape.bundle_index >= 0 else range(len(bundles))
        fitting = [index for index in indices if fits(need, bundles[index])]
        if not fitting:
            return Infeasible("No bundle of its placement group has the resources that it needs."), False
        if group.state in ("PENDING", "PREPARED"):
            return None, False
        possible = dict.fromkeys(group.nodes[index] for index in fitting if group.nodes[index])
        full: set[bytes] = set()
        if shape in self._full:
            full = self._full[shape] | {start.node_id for start in self._starts.values() if start.shape == shape}
        nodes = [self._nodes.get(node_id) for node_id in possible if node_id not in full]
        ready = [node for node in nodes if node is not None and node.connected and node.record.takes_work]
        return (min(ready, key=lambda node: node.starts).view if ready else None), len(possible) > 1
