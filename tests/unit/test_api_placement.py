"""Placement groups and strategies: what is refused, and groups in local mode."""

from __future__ import annotations

import pickle

import pytest

import shoal
from shoal.util import get_current_placement_group, get_placement_group, placement_group, placement_group_table, remove_placement_group
from shoal.util.placement_group import PlacementGroup
from shoal.util.scheduling_strategies import In, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn


@pytest.fixture
def session():
    shoal.init(local_mode=True, num_cpus=4)
    yield
    shoal.shutdown()


@pytest.mark.parametrize(
    "arguments",
    [
        {"bundles": 3},
        {"bundles": []},
        {"bundles": [{}]},
        {"bundles": [{"CPU": 0}]},
        {"bundles": ["a"]},
        {"bundles": [{"CPU": -1}]},
        {"strategy": "x"},
        {"lifetime": "x"},
        {"bundle_label_selector": []},
        {"bundle_label_selector": [{}, {}]},
    ],
)
@pytest.mark.usefixtures("session")
def test_groups_that_are_refused(arguments):
    with pytest.raises(ValueError):
        placement_group(**{"bundles": [{"CPU": 1}], **arguments})


@pytest.mark.usefixtures("session")
def test_the_life_of_a_group():
    group = placement_group([{"CPU": 1}, {"CPU": 2}], name="g")
    assert shoal.get(group.ready()) == group
    assert group.wait(1)
    assert (group.bundle_specs, group.bundle_count, group.is_empty) == ([{"CPU": 1.0}, {"CPU": 2.0}], 2, False)
    assert get_placement_group("g") == group
    assert pickle.loads(pickle.dumps(group)) == group
    assert hash(get_placement_group("g")) == hash(group)
    table = placement_group_table(group)
    assert (table["state"], table["bundles"], table["name"]) == ("CREATED", {0: {"CPU": 1.0}, 1: {"CPU": 2.0}}, "g")
    assert list(placement_group_table()) == [group.id.hex()]
    remove_placement_group(group)
    remove_placement_group(group)
    assert placement_group_table(group)["state"] == "REMOVED"
    with pytest.raises(shoal.exceptions.TaskPlacementGroupRemoved):
        shoal.get(group.ready())
    assert not group.wait(0)
    for unknown in ("g", "", "nope"):
        with pytest.raises(ValueError):
            get_placement_group(unknown)
    assert get_current_placement_group() is None


@pytest.mark.usefixtures("session")
def test_a_group_that_does_not_fit_waits():
    group = placement_group([{"CPU": 100}])
    ready = group.ready()
    assert not group.wait(0.01)
    assert placement_group_table(group)["state"] == "PENDING"
    remove_placement_group(group)
    with pytest.raises(shoal.exceptions.TaskPlacementGroupRemoved):
        shoal.get(ready)


def test_the_empty_group():
    assert PlacementGroup.empty().is_empty
    assert PlacementGroup.empty().bundle_specs == []


@pytest.mark.parametrize("node_id", ["zz", "ab", "ff" * 28, 3, None, shoal.NodeID.nil()])
def test_bad_node_ids(node_id):
    with pytest.raises(ValueError, match="node_id"):
        NodeAffinitySchedulingStrategy(node_id, soft=False)


def test_node_ids_of_both_kinds():
    node_id = shoal.NodeID.from_random()
    assert NodeAffinitySchedulingStrategy(node_id, soft=False).node_id == node_id.hex()


@pytest.mark.parametrize(
    "make",
    [
        lambda: NodeLabelSchedulingStrategy({}),
        lambda: NodeLabelSchedulingStrategy(None),
        lambda: NodeLabelSchedulingStrategy({"a": 3}),
        lambda: NodeLabelSchedulingStrategy({3: In("a")}),
        lambda: NodeLabelSchedulingStrategy([In("a")]),
        lambda: NodeLabelSchedulingStrategy({"a": In()}),
        lambda: NodeLabelSchedulingStrategy({}, soft={"a": NotIn()}),
        lambda: In(3),
    ],
)
def test_bad_label_strategies(make):
    with pytest.raises(ValueError):
        make()
