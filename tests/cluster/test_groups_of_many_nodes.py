"""Placement groups whose bundles lie on several nodes: who runs where, what is lost with a node, and that every reservation comes back."""

from __future__ import annotations

import os
import threading
import time

import pytest

import shoal
from shoal.exceptions import ActorDiedError, TaskPlacementGroupRemoved
from shoal.testing import wait_for
from shoal.util.placement_group import placement_group, placement_group_table, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.cluster.churn import churn
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

PATIENCE_S = 40
ALL = ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@pytest.fixture(scope="module")
def nodes():
    with many_nodes() as nodes:
        yield nodes


@pytest.fixture
def whole(nodes):
    """The cluster with all of it free, before and after."""
    wait_for(everything_is_free, PATIENCE_S, "the end of the test before")
    yield nodes
    wait_for(everything_is_free, PATIENCE_S, "the return of the resources")


def everything_is_free():
    return shoal.available_resources() == shoal.cluster_resources()


def inside(group, index=-1, capture=None):
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index, capture)}


def nodes_of(group):
    return list(placement_group_table(group)["bundles_to_node_id"].values())


@shoal.remote
def where(seconds=0.0):
    time.sleep(seconds)
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
def forever():
    threading.Event().wait()


@shoal.remote(num_cpus=1)
class Resident:
    def where(self):
        return shoal.get_runtime_context().get_node_id()

    def stay(self):
        threading.Event().wait()


@pytest.mark.parametrize(("strategy", "used"), [("PACK", 2), ("SPREAD", 3), ("STRICT_SPREAD", 3)])
def test_tasks_and_actors_run_where_their_bundles_are(whole, strategy, used):
    group = placement_group([{"CPU": 1}] * 3, strategy=strategy)
    assert shoal.get(group.ready(), timeout=PATIENCE_S) == group
    at = nodes_of(group)
    assert len(set(at)) == used
    for index in range(3):
        assert shoal.get(where.options(**inside(group, index)).remote(), timeout=PATIENCE_S) == at[index]
    assert shoal.get([where.options(**inside(group, index % 3)).remote() for index in range(30)], timeout=PATIENCE_S) == at * 10
    for index in range(3):
        actor = Resident.options(**inside(group, index)).remote()
        assert shoal.get(actor.where.remote(), timeout=PATIENCE_S) == at[index]
    remove_placement_group(group)


def test_a_strict_pack_is_on_one_node_and_on_the_one_that_was_asked_for(whole):
    for index in range(3):
        group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_PACK", _soft_target_node_id=whole.id_of(index))
        assert group.wait(PATIENCE_S)
        assert nodes_of(group) == [whole.id_of(index)] * 2
        assert shoal.get(where.options(**inside(group)).remote(), timeout=PATIENCE_S) == whole.id_of(index)
        remove_placement_group(group)
    never = placement_group([{"CPU": 2}] * 2, strategy="STRICT_PACK")
    assert not never.wait(0.3)
    assert placement_group_table(never)["state"] == "PENDING"
    remove_placement_group(never)


def test_any_bundle_means_all_bundles(whole, tmp_path):
    """Tasks that do not care use all nodes of the group; actors fill all bundles, and the one too many waits for the end of another."""
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")

    @shoal.remote(num_cpus=1)
    def meet(folder, number):
        open(os.path.join(folder, str(number)), "w").close()
        while len(os.listdir(folder)) < 3:
            time.sleep(0.01)
        return shoal.get_runtime_context().get_node_id()

    found = shoal.get([meet.options(**inside(group)).remote(str(tmp_path), number) for number in range(3)], timeout=PATIENCE_S)
    assert sorted(found) == sorted(nodes_of(group))
    actors = [Resident.options(**inside(group)).remote() for _ in range(3)]
    assert sorted(shoal.get([actor.where.remote() for actor in actors], timeout=PATIENCE_S)) == sorted(nodes_of(group))
    late = Resident.options(**inside(group)).remote()
    place = late.where.remote()
    assert shoal.wait([place], timeout=0.3)[0] == []
    freed = shoal.get(actors[1].where.remote(), timeout=PATIENCE_S)
    shoal.kill(actors[1])
    assert shoal.get(place, timeout=PATIENCE_S) == freed
    remove_placement_group(group)


def test_a_task_finds_the_one_bundle_that_is_free(whole):
    """Two of three bundles are held for good: the request goes round until it has found the third, wherever that is."""
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    assert group.wait(PATIENCE_S)
    at = nodes_of(group)
    for free in range(3):
        held = [Resident.options(**inside(group, index)).remote() for index in range(3) if index != free]
        shoal.get([actor.where.remote() for actor in held], timeout=PATIENCE_S)
        assert shoal.get([where.options(**inside(group)).remote() for _ in range(5)], timeout=PATIENCE_S) == [at[free]] * 5
        for actor in held:
            shoal.kill(actor)
    remove_placement_group(group)


def test_children_go_into_the_group_if_it_is_to_capture_them(whole):
    @shoal.remote(num_cpus=0)
    def parent():
        here = shoal.util.get_current_placement_group()
        return here.id.hex(), shoal.get([where.remote() for _ in range(4)], timeout=PATIENCE_S)

    group = placement_group([{"CPU": 1}], strategy="PACK")
    other = placement_group([{"CPU": 1}], strategy="PACK")
    assert group.wait(PATIENCE_S)
    assert other.wait(PATIENCE_S)
    strategy = inside(group, -1, True)
    (at,) = nodes_of(group)
    assert shoal.get(parent.options(**strategy).remote(), timeout=PATIENCE_S) == (group.id.hex(), [at] * 4)
    remove_placement_group(group)
    remove_placement_group(other)


def test_work_may_be_asked_for_before_its_bundles_are_there(whole):
    filler = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
    assert filler.wait(PATIENCE_S)
    group = placement_group([{"CPU": 2}] * 2, strategy="STRICT_SPREAD")
    refs = [where.options(**inside(group, index)).remote() for index in range(2)]
    actor = Resident.options(**inside(group, 1)).remote()
    place = actor.where.remote()
    assert shoal.wait([*refs, place], timeout=0.3)[0] == []
    remove_placement_group(filler)
    found = shoal.get([*refs, place], timeout=PATIENCE_S)
    at = nodes_of(group)
    assert found == [*at, at[1]]
    remove_placement_group(group)


def test_removal_ends_users_on_all_nodes_and_refuses_who_waits(whole):
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    assert group.wait(PATIENCE_S)
    running = [forever.options(max_retries=5, **inside(group, index)).remote() for index in range(3)]
    waiting = [where.options(**inside(group, index)).remote() for index in (-1, 0, 1, 2)]
    assert shoal.wait([*running, *waiting], timeout=0.5)[0] == []
    pending = placement_group([{"CPU": 100}])
    early = where.options(**inside(pending)).remote()
    remove_placement_group(group)
    remove_placement_group(pending)
    for ref in [*running, *waiting, early]:
        with pytest.raises(TaskPlacementGroupRemoved, match="removed"):
            shoal.get(ref, timeout=PATIENCE_S)
    with pytest.raises(TaskPlacementGroupRemoved, match="removed"):
        shoal.get(where.options(**inside(group, 1)).remote(), timeout=PATIENCE_S)
    assert placement_group_table(group)["state"] == "REMOVED"


def test_actors_of_a_removed_group_die_on_all_nodes(whole):
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    actors = [Resident.options(max_restarts=5, max_task_retries=5, **inside(group, index)).remote() for index in range(3)]
    shoal.get([actor.where.remote() for actor in actors], timeout=PATIENCE_S)
    calls = [actor.stay.remote() for actor in actors]
    remove_placement_group(group)
    for call in calls:
        with pytest.raises(ActorDiedError, match="placement group was removed"):
            shoal.get(call, timeout=PATIENCE_S)


def test_two_hundred_of_all_kinds_leave_nothing_reserved(whole):
    """The four strategies mixed, from four threads, some used, some removed before they are ready; more than fits at any time."""

    def once(number):
        strategy = ALL[number % 4]
        group = placement_group([{"CPU": 1}, {"CPU": 0.5}], strategy=strategy)
        if number % 3 == 0:
            assert group.wait(PATIENCE_S)
            at = nodes_of(group)
            assert len(set(at)) == {"STRICT_PACK": 1, "STRICT_SPREAD": 2}.get(strategy, len(set(at)))
            got = shoal.get([where.options(num_cpus=0.5, **inside(group, index)).remote() for index in (0, 1)], timeout=PATIENCE_S)
            assert got == at
        elif number % 3 == 1:
            group.wait(0)
        remove_placement_group(group)

    assert churn(200, once) == []


def test_of_those_that_compete_some_get_all_and_the_others_nothing(whole):
    """Ten groups of four CPUs each, for six CPUs: one at a time is whole, and in the end each has been."""
    groups = [placement_group([{"CPU": 2}] * 2, strategy="STRICT_SPREAD") for _ in range(10)]
    left = list(groups)
    while left:
        ready, _ = shoal.wait([group.ready() for group in left], num_returns=1, timeout=PATIENCE_S)
        assert ready
        table = placement_group_table()
        created = [group for group in left if table[group.id.hex()]["state"] == "CREATED"]
        assert len(created) == 1
        assert all(not any(table[group.id.hex()]["bundles_to_node_id"].values()) for group in left if group not in created)
        remove_placement_group(created[0])
        left.remove(created[0])


def test_a_group_of_the_whole_cluster_is_served_in_a_stream_of_small_ones(whole):
    over = threading.Event()
    failures = []

    def stream():
        try:
            while not over.is_set():
                group = placement_group([{"CPU": 1}])
                group.wait(PATIENCE_S)
                remove_placement_group(group)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=stream) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        large = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
        assert large.wait(PATIENCE_S)
        remove_placement_group(large)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
