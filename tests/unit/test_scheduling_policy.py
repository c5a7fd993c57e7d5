from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._core.scheduling import strategies
from shoal._core.scheduling.policy import Infeasible, Placed, Refused, Wait, choose_node
from shoal._core.scheduling.resources import fits
from shoal._core.wire.messages import NodeRecord, Shape

CPU = (("CPU", 10_000),)


def node(
    name: str, free: float = 4, total: float = 4, gpus: float = 0, labels: dict[str, str] | None = None, alive: bool = True
) -> NodeRecord:
    extra = {"GPU": int(gpus * 10_000)} if gpus else {}
    return NodeRecord(
        name.encode(),
        f"unix:{name}",
        name,
        "",
        {"CPU": int(total * 10_000), **extra},
        {"CPU": int(free * 10_000), **extra},
        labels or {},
        alive,
    )


def chosen(shape: Shape, nodes: list[NodeRecord], **kwargs: Any) -> bytes:
    choice = choose_node(shape, nodes, **kwargs)
    assert isinstance(choice, Placed)
    return choice.node.node_id


def shape(resources: tuple[tuple[str, int], ...] = CPU, **kwargs: Any) -> Shape:
    return Shape(b"job", resources, **kwargs)


def test_the_local_node_is_preferred_until_half_full() -> None:
    assert chosen(shape(), [node("a"), node("b", free=3)], local=b"b") == b"b"
    assert chosen(shape(), [node("a"), node("b", free=2)], local=b"b") == b"a"
    assert chosen(shape(), [node("a", free=1), node("b", free=2)], local=b"a") == b"b"


def test_a_busy_cluster_waits_and_a_small_one_says_what_to_do() -> None:
    assert isinstance(choose_node(shape(), [node("a", free=0)]), Wait)
    choice = choose_node(shape((("GPU", 40_000),)), [node("a", gpus=2), node("b", gpus=1)], name="Task f")
    assert choice == Infeasible("Task f needs 4 GPUs; the largest node has 2. Ask for num_gpus<=2 or add a node with 4.")


def test_infeasible_by_combination() -> None:
    choice = choose_node(shape((("CPU", 40_000), ("GPU", 10_000))), [node("a", total=4), node("b", free=1, total=1, gpus=1)], name="f")
    assert isinstance(choice, Infeasible)
    assert "no single node has all of it" in choice.message


def test_dead_nodes_are_no_nodes() -> None:
    assert isinstance(choose_node(shape(), [node("a", alive=False)]), Infeasible)


def test_spread_goes_round() -> None:
    nodes = [node("a"), node("b"), node("c", free=0)]
    spread = shape(strategy=strategies.SPREAD)
    assert [chosen(spread, nodes, turn=turn) for turn in range(4)] == [b"a", b"b", b"a", b"a"]
    zero = shape((), strategy=strategies.SPREAD)
    assert {chosen(zero, nodes, turn=turn) for turn in range(3)} == {b"a", b"b", b"c"}


def test_affinity() -> None:
    nodes = [node("aa"), node("bb", free=0)]
    hard, soft = strategies.node_affinity(b"bb", False), strategies.node_affinity(b"bb".hex(), True)
    assert isinstance(choose_node(shape(strategy=hard), nodes), Wait)
    assert isinstance(choose_node(shape(strategy=soft), nodes), Wait)
    assert isinstance(choose_node(shape(strategy=hard), [node("aa")]), Refused)
    assert chosen(shape(strategy=soft), [node("aa")]) == b"aa"
    never = choose_node(shape((("GPU", 10_000),), strategy=hard), [node("aa", gpus=1), node("bb")], name="f")
    assert isinstance(never, Refused)
    assert never.message.startswith("f must run on node 6262, which can never hold it: it needs 1 GPU, the node has 0.")
    assert chosen(shape((("GPU", 1),), strategy=soft), [node("aa", gpus=1), node("bb")]) == b"aa"


def test_affinity_when_the_node_has_no_room_now() -> None:
    nodes = [node("aa"), node("bb", free=0)]
    leave = ("NODE_AFFINITY", b"bb", True, True, False)
    at_once = ("NODE_AFFINITY", b"bb", False, False, True)
    assert chosen(shape(strategy=leave), nodes) == b"aa"
    assert isinstance(choose_node(shape(strategy=leave), [node("aa", free=0), node("bb", free=0)]), Wait)
    refused = choose_node(shape(strategy=at_once), nodes, name="f")
    assert isinstance(refused, Refused)
    assert "0 of 1 CPU" in refused.message
    for strategy in (leave, at_once):
        assert chosen(shape(strategy=strategy), [node("aa"), node("bb", free=1)]) == b"bb"


def test_large_arguments_draw_their_tasks_while_there_is_room() -> None:
    near = shape(near=b"b")
    assert chosen(near, [node("a"), node("b", free=1)], local=b"a") == b"b", "however busy, and however idle this one is"
    assert chosen(near, [node("a"), node("b", free=0)], local=b"a") == b"a"
    assert chosen(near, [node("a"), node("b", alive=False)], local=b"a") == b"a"
    assert chosen(shape(near=b"b", label_selector=(("zone", "x"),)), [node("a", labels={"zone": "x"}), node("b")], local=b"a") == b"a"


def test_agents_that_see_the_same_large_cluster_do_not_all_choose_the_same_nodes() -> None:
    nodes = [node(f"{number:04}") for number in range(1000)]
    full = node("home", free=0)
    choices = {chosen(shape(), [full, *nodes], local=bytes([0, 0, number, 0])) for number in range(8)}
    assert len(choices) == 8
    assert chosen(shape(), [full, *nodes], local=b"\0\0\1\0") in choices, "and always the same"


@pytest.mark.parametrize("bad", ["zz", "", b"\xff" * 28, "ff" * 28])
def test_a_malformed_node_id_is_refused(bad: str | bytes) -> None:
    with pytest.raises(ValueError, match="node_id"):
        strategies.node_affinity(bad, False)


def test_labels_hard_and_soft() -> None:
    nodes = [node("a", labels={"zone": "x"}), node("b", labels={"zone": "y"})]
    assert chosen(shape(strategy=("NODE_LABEL", (("zone", "in", ("y",)),), ())), nodes) == b"b"
    assert chosen(shape(strategy=("NODE_LABEL", (), (("zone", "not_in", ("x",)),))), nodes) == b"b"
    assert chosen(shape(strategy=("NODE_LABEL", (), (("zone", "in", ("nowhere",)),))), nodes) == b"a"
    assert isinstance(choose_node(shape(strategy=("NODE_LABEL", (("zone", "does_not_exist", ()),), ())), nodes), Infeasible)
    assert chosen(shape(label_selector=(("zone", "!x"),)), nodes) == b"b"
    assert isinstance(choose_node(shape(label_selector=(("rack", "1"),)), nodes), Infeasible)


def test_fallback_selectors_are_tried_in_order() -> None:
    nodes = [node("a", labels={"zone": "x"}), node("b", labels={"zone": "y"})]
    fallback = ("FALLBACK", (), (("zone", "nowhere"),), (("zone", "y"),))
    assert chosen(shape(label_selector=(("zone", "z"),), strategy=fallback), nodes) == b"b"
    assert chosen(shape(label_selector=(("zone", "x"),), strategy=fallback), nodes) == b"a"


def test_an_actor_is_placed_by_other_resources_than_it_holds() -> None:
    assert isinstance(choose_node(shape((), placement_resources=CPU), [node("a", free=0)]), Wait)
    assert chosen(shape(()), [node("a", free=0)]) == b"a"


def test_shapes_off_the_wire_can_be_hashed_again() -> None:
    sent = shape(strategy=("NODE_LABEL", (("zone", "in", ("y",)),), ()))
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Shape)
    assert strategies.freeze(received) == sent
    assert hash(strategies.freeze(received)) == hash(sent)
    assert strategies.freeze(sent) is sent


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 8),
    st.sampled_from([(), strategies.SPREAD]),
    st.integers(0, 10),
)
def test_a_choice_always_fits(facts: list[tuple[int, int, bool]], cpus: int, strategy: Any, turn: int) -> None:
    nodes = [node(str(i), free=min(free, total), total=total, alive=alive) for i, (free, total, alive) in enumerate(facts)]
    need = {"CPU": cpus * 10_000}
    choice = choose_node(shape(tuple(need.items()), strategy=strategy), nodes, local=b"0", turn=turn)
    alive = [one for one in nodes if one.alive]
    if isinstance(choice, Placed):
        assert choice.node in alive
        assert fits(need, choice.node.available)
    elif isinstance(choice, Wait):
        assert not any(fits(need, one.available) for one in alive)
    else:
        assert not any(fits(need, one.total) for one in alive)
