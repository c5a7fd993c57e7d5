"""Choices over random small clusters, against the slow twin that tries everything: sound, complete where promised, and always the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from shoal._core.scheduling import labels, policy
from shoal._core.scheduling.packing import STRATEGIES, place_bundles
from shoal._core.scheduling.policy import Infeasible, Placed, Refused, Wait, choose_node
from shoal._core.scheduling.resources import fits, subtract, total_of
from shoal._core.wire.messages import NodeRecord, Shape

NAMES = ("CPU", "GPU", "gold")
ZONES = ("a", "b")

amounts = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 4), max_size=3)
needs = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), min_size=1, max_size=2)
selectors = st.sampled_from([{}, {}, {"zone": "a"}, {"zone": "!a"}])


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeRecord]:
    facts = draw(st.lists(st.tuples(amounts, st.sampled_from([*ZONES, ""]), st.integers(0, 4), st.booleans()), min_size=1, max_size=4))
    return [
        NodeRecord(
            b"node %d" % number, "", "", "", total, {name: max(0, amount - used) for name, amount in total.items()},
            {"zone": zone} if zone else {}, alive or number == 0,
        )
        for number, (total, zone, used, alive) in enumerate(facts)
    ]  # fmt: skip


def placements(
    bundles: Sequence[Mapping[str, int]],
    strategy: str,
    nodes: list[NodeRecord],
    wanted: Sequence[Mapping[str, str]],
    taken: dict[int, bytes],
) -> list[tuple[NodeRecord, ...]]:
    """Return all placements that are right, by trying all."""
    alive = [node for node in nodes if node.alive]
    found = []
    for places in product(alive, repeat=len(bundles)):
        ids = [node.node_id for node in places]
        if any(ids[index] != node_id for index, node_id in taken.items()):
            continue
        if strategy == "STRICT_PACK" and len(set(ids)) > 1:
            continue
        if strategy == "STRICT_SPREAD" and len(set(ids)) < len(ids):
            continue
        todo = [index for index in range(len(bundles)) if index not in taken]
        if not all(labels.matches(wanted[index].items(), places[index].labels) for index in todo):
            continue
        if all(fits(total_of(bundles[index] for index in todo if ids[index] == node.node_id), node.available) for node in alive):
            found.append(places)
    return found


@given(clusters(), st.lists(st.tuples(needs, selectors), min_size=1, max_size=4), st.sampled_from(STRATEGIES), st.data())
def test_groups_are_placed_right_and_strict_ones_whenever_they_can_be(
    nodes: list[NodeRecord], group: list[tuple[dict[str, int], dict[str, str]]], strategy: str, data: st.DataObject
) -> None:
    bundles, wanted = [need for need, _ in group], [selector for _, selector in group]
    taken = {}
    if data.draw(st.booleans()):  # a group that has lost a node: one bundle is where it was
        index = data.draw(st.integers(0, len(bundles) - 1))
        taken[index] = data.draw(st.sampled_from([node.node_id for node in nodes if node.alive]))
    right = placements(bundles, strategy, nodes, wanted, taken)
    placed = place_bundles(bundles, strategy, nodes, wanted, taken=taken)
    assert placed == place_bundles(bundles, strategy, list(nodes), wanted, taken=dict(taken)), "the same question, the same answer"
    if placed is not None:
        assert tuple(placed) in {tuple(node.node_id for node in places) for places in right}
    elif strategy.startswith("STRICT") or len(bundles) == 1:
        assert not right


@given(clusters(), st.lists(st.tuples(st.lists(needs, min_size=1, max_size=3), st.sampled_from(STRATEGIES)), max_size=6))
def test_one_group_after_the_other_never_takes_more_than_there_is(nodes: list[NodeRecord], groups: list[tuple[Any, str]]) -> None:
    for bundles, strategy in groups:
        places = place_bundles(bundles, strategy, nodes)
        for bundle, node_id in zip(bundles, places or (), strict=False):
            node = next(one for one in nodes if one.node_id == node_id)
            assert node.alive
            node.available = subtract(node.available, bundle)
            assert all(amount >= 0 for amount in node.available.values())


strategies_of_tasks = st.one_of(
    st.just(()),
    st.just(("SPREAD",)),
    st.tuples(st.just("NODE_AFFINITY"), st.sampled_from([b"node 0", b"node 1", b"gone"]), st.booleans(), st.booleans(), st.booleans()),
    st.tuples(
        st.just("NODE_LABEL"), st.sampled_from([(), (("zone", "in", ("a",)),)]), st.sampled_from([(), (("zone", "not_in", ("a",)),)])
    ),
)


@given(
    clusters(), needs, strategies_of_tasks, selectors, st.sampled_from([b"", b"node 0", b"node 2"]), st.sampled_from([b"", b"node 1"]),
    st.integers(0, 9),
)  # fmt: skip
def test_a_request_is_placed_whenever_an_allowed_node_has_room(
    nodes: list[NodeRecord], need: dict[str, int], strategy: tuple[Any, ...], selector: dict[str, str], local: bytes, near: bytes, turn: int
) -> None:
    shape = Shape(b"j", tuple(sorted(need.items())), strategy, label_selector=tuple(selector.items()), near=near)
    before = msgspec.msgpack.encode(nodes)
    choice = choose_node(shape, nodes, local=local, turn=turn)
    assert choice == choose_node(shape, nodes, local=local, turn=turn)
    assert msgspec.msgpack.encode(nodes) == before
    kind, allowed = strategy[:1], [node for node in nodes if node.alive and labels.matches(selector.items(), node.labels)]
    if kind == ("NODE_LABEL",) and strategy[1]:
        allowed = [node for node in allowed if node.labels.get("zone") == "a"]
    if kind == ("NODE_AFFINITY",):
        named = next((node for node in nodes if node.node_id == strategy[1] and node.alive and fits(need, node.total)), None)
        if named is not None:
            assert not isinstance(choice, Infeasible)
            if fits(need, named.available):
                assert choice == Placed(named)
            return
        if not strategy[2]:
            assert isinstance(choice, Refused)
            return
    ready = [node for node in allowed if fits(need, node.available)]
    feasible = [node for node in allowed if fits(need, node.total)]
    if ready:
        assert isinstance(choice, Placed)
        assert choice.node in ready
    elif feasible:
        assert choice == Wait(feasible)
    else:
        assert isinstance(choice, Infeasible)


@given(st.integers(9, 60), st.integers(0, 59), st.binary(min_size=4, max_size=4), st.sampled_from([(), ("SPREAD",)]))
def test_the_one_node_with_room_is_found_in_a_large_cluster(count: int, free: int, local: bytes, strategy: tuple[str, ...]) -> None:
    assert count > policy.FEW
    free %= count
    nodes = [NodeRecord(b"%d" % n, "", "", "", {"CPU": 4}, {"CPU": 4 if n == free else 0}, {}) for n in range(count)]
    assert choose_node(Shape(b"j", (("CPU", 1),), strategy), nodes, local=local, turn=7) == Placed(nodes[free])


@given(
    clusters(),
    needs,
    strategies_of_tasks,
    selectors,
    st.sampled_from([b"", b"node 0", b"node 2"]),
    st.lists(st.integers(0, 5), max_size=30),
)
def test_a_search_that_goes_on_finds_what_a_new_one_finds_while_nodes_fill_up(
    nodes: list[NodeRecord], need: dict[str, int], strategy: tuple[Any, ...], selector: dict[str, str], local: bytes, fills: list[int]
) -> None:
    """Nodes only lose room between two looks; the local one may also come free."""
    shape = Shape(b"j", tuple(sorted(need.items())), strategy, label_selector=tuple(selector.items()))
    search = policy.Search()
    for fill in fills:
        assert choose_node(shape, nodes, local=local, search=search) == choose_node(shape, nodes, local=local)
        at = fill % len(nodes)
        comes_free = nodes[at].node_id == local and not any(nodes[at].available.values())
        nodes[at] = msgspec.structs.replace(nodes[at], available=dict(nodes[at].total) if comes_free else dict.fromkeys(nodes[at].total, 0))
