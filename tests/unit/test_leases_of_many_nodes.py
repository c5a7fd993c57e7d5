"""Where lease requests go when there are other nodes, and when they move on."""

from __future__ import annotations

from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.lease_records import Grant, Instruction, Refuse, Spill, TellInfeasible
from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling.resources import Capacity
from shoal._core.wire.messages import NodeRecord, Shape

UNIT = 10_000


def record(name: str, cpus: int, free: int | None = None, **custom: int) -> NodeRecord:
    total = {"CPU": cpus * UNIT, **{key: amount * UNIT for key, amount in custom.items()}}
    return NodeRecord(name.encode(), f"unix:{name}", name, "", total, {**total, "CPU": (cpus if free is None else free) * UNIT}, {})


class Node:
    """One agent's leases and view."""

    def __init__(self, own: NodeRecord, *others: NodeRecord) -> None:
        self.view = ClusterView(own)
        self.view.update(others)
        self.own = own
        self.leases = Leases(Capacity(own.total), own.node_id, self.nodes, promise=self.view.promise)
        self.rid = 0

    def nodes(self) -> list[NodeRecord]:
        self.own.available = self.leases.available()
        return self.view.nodes()

    def ask(self, cpus: int = 1, hops: int = 0, strategy: tuple[object, ...] = (), **custom: int) -> list[Instruction]:
        self.rid += 1
        need = {"CPU": cpus, **custom}
        shape = Shape(b"j", tuple(sorted((name, amount * UNIT) for name, amount in need.items() if amount)), strategy)
        out = self.leases.add(LeaseRequest(1, self.rid, shape, 0.0, hops=hops))
        out += self.leases.schedule(0.0)
        self.leases.check()
        return out

    def changed(self, *records: NodeRecord) -> list[Instruction]:
        self.view.update(records)
        out = self.leases.nodes_changed(0.0) + self.leases.schedule(0.0)
        self.leases.check()
        return out


def where(out: list[Instruction]) -> list[str]:
    return ["here" if isinstance(one, Grant) else one.node_id.decode() if isinstance(one, Spill) else type(one).__name__ for one in out]


def test_work_stays_until_half_of_the_node_is_used_then_goes_to_the_least_used() -> None:
    node = Node(record("a", 4), record("b", 4), record("c", 4, free=1))
    assert [where(node.ask()) for _ in range(4)] == [["here"], ["here"], ["b"], ["b"]]


def test_a_burst_does_not_pile_up_on_the_node_that_was_free_last() -> None:
    node = Node(record("a", 1, free=0), record("b", 2), record("c", 2))
    node.ask()
    assert sorted(where(node.ask())[0] for _ in range(4)) == ["b", "b", "c", "c"]


def test_what_cannot_run_here_goes_to_a_node_where_it_could_even_if_that_is_busy() -> None:
    node = Node(record("a", 2), record("b", 2, free=0, gpu=1))
    assert where(node.ask(gpu=1)) == ["b"]


def test_what_can_run_nowhere_waits_and_goes_when_a_node_joins() -> None:
    node = Node(record("a", 2), record("b", 2))
    [told] = node.ask(gpu=1)
    assert isinstance(told, TellInfeasible)
    assert node.changed() == []
    assert where(node.changed(record("c", 1, gpu=1))) == ["c"]
    assert len(node.leases.waiting) == 0


def test_a_request_that_was_passed_on_stays_where_it_can_run() -> None:
    node = Node(record("a", 1), record("b", 8))
    assert where(node.ask()) == ["here"]
    assert where(node.ask(hops=1)) == []
    assert len(node.leases.waiting) == 1
    assert where(node.ask(hops=1, cpus=4)) == ["b"], "here it never could"


def test_what_waits_moves_to_a_node_that_came_free_but_not_twice_on_one_word() -> None:
    node = Node(record("a", 1), record("b", 1, free=0))
    node.ask()
    for _ in range(2):
        assert node.ask(hops=1) == []
    assert where(node.changed(record("b", 1, free=1))) == ["b"]
    assert node.changed(record("b", 1, free=0)) == []
    assert len(node.leases.waiting) == 1


def test_spread_goes_round() -> None:
    node = Node(record("a", 3), record("b", 3), record("c", 3))
    places = [where(node.ask(strategy=("SPREAD",)))[0] for _ in range(6)]
    assert sorted(places) == ["b", "b", "c", "c", "here", "here"]


def test_a_dead_node_gets_nothing() -> None:
    node = Node(record("a", 1, free=0), record("b", 2))
    node.ask()
    gone = record("b", 2)
    gone.alive = False
    assert node.view.update([gone]) == [b"b"]
    assert node.view.update([gone]) == []
    assert node.view.is_alone
    assert node.view.get(b"b") is None
    assert node.ask() == []
    [refused] = node.ask(strategy=("NODE_AFFINITY", b"b" * 28, False))
    assert isinstance(refused, Refuse)
