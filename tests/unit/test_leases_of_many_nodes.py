"""Where lease requests go when there are other nodes, and when they move on."""

from __future__ import annotations

import pytest

from shoal._core.node_agent.cluster_view import PAUSE_S, REPORTED_S, ClusterView
from shoal._core.node_agent.lease_records import Doubt, Grant, Instruction, Refuse, Spill, TellInfeasible, Want
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

    def __init__(self, own: NodeRecord, *others: NodeRecord, is_exact: bool = True) -> None:
        self.view = ClusterView(own)
        self.view.update(others)
        self.own = own
        self.leases = Leases(
            Capacity(own.total), own.node_id, self.nodes,
            promise=lambda node_id, need: self.view.promise(node_id, need, 0.0), is_exact=lambda: is_exact,
        )  # fmt: skip
        self.rid = 0

    def nodes(self) -> list[NodeRecord]:
        self.own.available = self.leases.available()
        return self.view.nodes()

    def ask(self, cpus: int = 1, hops: int = 0, strategy: tuple[object, ...] = (), near: bytes = b"", **custom: int) -> list[Instruction]:
        self.rid += 1
        need = {"CPU": cpus, **custom}
        shape = Shape(b"j", tuple(sorted((name, amount * UNIT) for name, amount in need.items() if amount)), strategy, near=near)
        out = self.leases.add(LeaseRequest(1, self.rid, shape, 0.0, hops=hops))
        out += [one for one in self.leases.schedule(0.0) if not isinstance(one, Want)]
        self.leases.check()
        return out

    def changed(self, *records: NodeRecord, now: float = 0.0) -> list[Instruction]:
        self.view.update(records)
        out = self.leases.nodes_changed(now) + self.leases.schedule(now)
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


def test_what_has_wandered_keeps_its_place_for_a_while() -> None:
    node = Node(record("a", 1), record("b", 1, free=0))
    node.ask()
    assert node.ask(hops=2) == []
    assert node.changed(record("b", 1), now=0.9) == []
    assert where(node.changed(record("b", 1), now=1.0)) == ["b"]


def test_the_first_that_cannot_move_answers_for_all_of_its_kind() -> None:
    node = Node(record("a", 1), record("b", 2, free=0))
    node.ask()
    for _ in range(4):
        node.ask()
    assert where(node.changed(record("b", 2, free=2))) == ["b", "b"]
    assert len(node.leases.waiting) == 2
    assert where(node.changed(record("b", 2, free=1))) == ["b"]


def test_what_was_sent_to_a_node_counts_until_its_next_word_or_for_a_while() -> None:
    node = Node(record("a", 1, free=0), record("b", 1))
    view = node.view
    need = {"CPU": UNIT}

    def free() -> int:
        known = view.get(b"b")
        assert known is not None
        return known.available.get("CPU", 0)

    view.promise(b"b", need, 0.0)
    assert (free(), view.next_expiry) == (0, REPORTED_S + PAUSE_S)
    assert not view.expire((REPORTED_S + PAUSE_S) / 2)
    assert view.expire(REPORTED_S + PAUSE_S)
    assert (free(), view.next_expiry) == (UNIT, None)
    view.promise(b"b", need, 1.0)
    view.update([record("b", 1)])
    assert not view.expire(9.0), "its word has come"
    assert free() == UNIT
    view.promise(b"b", need, 1.0)
    gone = record("b", 1)
    gone.alive = False
    view.update([gone])
    assert not view.expire(9.0)


def test_before_anything_is_called_infeasible_the_control_store_is_asked() -> None:
    node = Node(record("a", 1), record("b", 1), is_exact=False)
    impossible = [node.ask(cpus=4), node.ask(strategy=("NODE_AFFINITY", b"c" * 28, False))]
    doubts = [out[0].request for out in impossible if isinstance(out[0], Doubt)]
    assert len(doubts) == 2
    view = node.view
    view.update([record("b", 1), record("c" * 28, 1)])
    told, moved = node.leases.confirm(doubts, 0.1)
    assert isinstance(told, TellInfeasible)
    assert where([moved]) == ["c" * 28]
    assert where(node.changed(record("d", 8))) == ["d"], "it has waited for a node that fits"


def test_spread_goes_round_whatever_is_known_of_the_others_room() -> None:
    node = Node(record("a", 3), record("b", 3, free=0), record("c", 3))
    places = [where(node.ask(strategy=("SPREAD",)))[0] for _ in range(6)]
    assert sorted(places) == ["b", "b", "c", "c", "here", "here"]


def test_a_node_of_the_round_without_room_passes_it_on_once_and_keeps_it_if_none_has() -> None:
    node = Node(record("a", 1), record("b", 3, free=0), record("c", 3))
    spread = ("SPREAD",)
    assert where(node.ask()) == ["here"]
    assert where(node.ask(hops=1, strategy=spread)) == ["c"]
    assert where(node.ask(hops=2, strategy=spread)) == []
    node.changed(record("c", 3, free=0))
    assert where(node.ask(hops=1, strategy=spread)) == []
    assert sorted(where(node.ask(strategy=spread))[0:1] for _ in range(3)) == [[], ["b"], ["c"]], "its own room it knows"


def test_large_arguments_are_gone_to_whatever_is_known_of_the_room_there() -> None:
    away = Node(record("a", 2), record("b", 1, free=0), record("c", 1))
    assert where(away.ask(near=b"b")) == ["b"]
    there = Node(record("b", 1), record("a", 2, free=0), record("c", 1))
    assert where(there.ask(hops=1, near=b"b")) == ["here"]
    assert where(there.ask(hops=1, near=b"b")) == ["c"], "no room after all"
    assert where(there.ask(hops=2, near=b"b")) == []
    assert where(away.ask(hops=2, near=b"b")) == ["here"]
    assert where(away.ask(hops=2)) == ["here"]
    assert where(away.ask(hops=1, near=b"b")) == [], "it could run here, so it stays"


def test_an_affinity_that_cannot_wait_is_judged_where_it_is_known_what_is_free() -> None:
    at_once = ("NODE_AFFINITY", b"a", False, False, True)
    leaves = ("NODE_AFFINITY", b"a", True, True, False)
    node = Node(record("a", 1), record("b", 1))
    assert where(node.ask(hops=1, strategy=at_once)) == ["here"]
    [refused] = node.ask(hops=1, strategy=at_once)
    assert isinstance(refused, Refuse)
    assert refused.kind == "TaskUnschedulableError"
    assert where(node.ask(hops=1, strategy=leaves)) == ["b"]
    assert node.ask(hops=2, strategy=leaves) == []


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


@pytest.mark.parametrize("strategy", [(), ("SPREAD",)], ids=str)
@pytest.mark.parametrize("count", [2, 20, 200])
def test_what_a_lease_costs_in_messages_does_not_grow_with_the_nodes(count: int, strategy: tuple[object, ...]) -> None:
    """One owner asks for as many leases as the cluster has CPUs, and for twice as many as it then has room for."""
    names = [f"{number:03}" for number in range(count)]
    nodes = {name: Node(record(name, 2), *(record(other, 2) for other in names if other != name)) for name in names}
    asked = granted = 0
    for number in range(6 * count):
        at, hops = names[0], 0
        if number == 2 * count:  # ten times a second
            for node in nodes.values():
                node.changed(*(record(name, 2, free=0) for name in names))
        while True:
            asked += 1
            [answer] = where(nodes[at].ask(hops=hops, strategy=strategy)) or ["waits"]
            if answer in ("here", "waits"):
                granted += answer == "here"
                break
            at, hops = answer, hops + 1
    assert granted == 2 * count
    assert asked <= 3 * 6 * count


def leaves(name: str, cpus: int) -> NodeRecord:
    found = record(name, cpus)
    found.draining = "preemption"
    return found


def test_nothing_is_sent_to_a_node_that_leaves() -> None:
    node = Node(record("a", 1), leaves("b", 8), record("c", 1))
    assert [where(node.ask()) for _ in range(3)] == [["here"], ["c"], []]


def test_a_node_that_leaves_sends_away_what_waits_calls_back_its_leases_and_grants_nothing() -> None:
    node = Node(record("a", 1), record("b", 1, free=0))
    assert where(node.ask()) == ["here"]
    assert where(node.ask()) == [], "it waits"
    node.own.draining = "preemption"
    out = node.leases.drain(0.0)
    assert [type(one) for one in out] == [Want, Spill]
    assert where(node.ask()) == ["b"]
    (lease,) = node.leases.leases.values()
    node.leases.end(lease.lease_id)
    assert where(node.ask(hops=3)) == ["b"], "free as it is"
    assert not node.leases.prepare(b"g", {0: {"CPU": UNIT}}, 0.0)


def test_what_no_other_node_can_run_waits_unserved_on_a_node_that_leaves() -> None:
    node = Node(record("a", 2, gpu=1), record("b", 2))
    node.own.draining = "preemption"
    node.leases.drain(0.0)
    assert where(node.ask(gpu=1)) == ["TellInfeasible"]
    assert where(node.changed(record("c", 2, gpu=1))) == ["c"]


def test_an_actor_that_was_sent_to_a_node_that_leaves_is_refused() -> None:
    node = Node(record("a", 2))
    node.own.draining = "preemption"
    node.leases.drain(0.0)
    refused = node.leases.add(LeaseRequest(0, 1, Shape(b"j"), 0.0, actor_id=b"actor"))
    assert [one.kind for one in refused if isinstance(one, Refuse)] == ["NodeLeaves"]
