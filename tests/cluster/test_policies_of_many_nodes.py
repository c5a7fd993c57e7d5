"""Which node runs what: round robin, by name, by label, by where the data is, by who has room."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import numpy as np
import pytest

import shoal
from shoal.exceptions import ActorUnschedulableError, TaskUnschedulableError
from shoal.testing import wait_for
from shoal.util.placement_group import placement_group, placement_group_table, remove_placement_group
from shoal.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

PATIENCE_S = 40
MIB = 1 << 20
UNKNOWN = "ab" * 28
LABELS = [{"zone": "a", "disk": "ssd"}, {"zone": "b"}, {"zone": "b", "disk": "hdd"}]


@pytest.fixture(scope="module")
def nodes():
    with many_nodes(labels=LABELS) as nodes:  # the agent here knows all nodes when it has sent work to each
        shoal.get([where.options(**nodes.on(index)).remote() for index in range(3)], timeout=PATIENCE_S)
        yield nodes


@pytest.fixture
def idle(nodes):
    wait_for(everything_is_free, PATIENCE_S, "the end of the test before")
    return nodes


def everything_is_free():
    return shoal.available_resources() == shoal.cluster_resources()


def ids(nodes):
    return [nodes.id_of(index) for index in range(3)]


@shoal.remote
def where(seconds=0.0):
    time.sleep(seconds)
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
class Place:
    def where(self):
        return shoal.get_runtime_context().get_node_id()


@pytest.mark.parametrize("cpus", [0, 1])
def test_spread_tasks_use_all_nodes(idle, cpus, tmp_path):
    @shoal.remote(num_cpus=cpus, scheduling_strategy="SPREAD")
    def meet(folder, number):
        open(os.path.join(folder, str(number)), "w").close()
        while len(os.listdir(folder)) < 3:
            time.sleep(0.01)
        return shoal.get_runtime_context().get_node_id()

    assert set(shoal.get([meet.remote(str(tmp_path), number) for number in range(3)], timeout=PATIENCE_S)) == set(ids(idle))
    one_at_a_time = [shoal.get(meet.remote(str(tmp_path), number), timeout=PATIENCE_S) for number in range(6)]
    assert set(one_at_a_time) == set(ids(idle))


@pytest.mark.parametrize("options", [{}, {"num_cpus": 0}, {"num_cpus": 1}], ids=str)
def test_spread_actors_are_shared_out_evenly(idle, options):
    """Six of one CPU at most run at once here, and those without options need one while they start."""
    actors = [Place.options(scheduling_strategy="SPREAD", **options).remote() for _ in range(6)]
    shares = Counter(shoal.get([actor.where.remote() for actor in actors], timeout=PATIENCE_S))
    assert shares == dict.fromkeys(ids(idle), 2)


def test_a_task_and_an_actor_run_on_the_node_they_name(idle):
    for node_id in ids(idle):
        for soft in (False, True):
            strategy = NodeAffinitySchedulingStrategy(node_id, soft)
            assert shoal.get(where.options(scheduling_strategy=strategy).remote(), timeout=PATIENCE_S) == node_id
            actor = Place.options(scheduling_strategy=strategy).remote()
            assert shoal.get(actor.where.remote(), timeout=PATIENCE_S) == node_id


def test_a_node_that_does_not_exist_is_an_error_or_another_node(idle):
    hard = NodeAffinitySchedulingStrategy(UNKNOWN, soft=False)
    soft = NodeAffinitySchedulingStrategy(UNKNOWN, soft=True)
    with pytest.raises(TaskUnschedulableError, match=f"{UNKNOWN}.*dead or unknown"):
        shoal.get(where.options(scheduling_strategy=hard).remote(), timeout=PATIENCE_S)
    with pytest.raises(ActorUnschedulableError, match=f"{UNKNOWN}.*dead or unknown"):
        shoal.get(Place.options(scheduling_strategy=hard).remote().where.remote(), timeout=PATIENCE_S)
    assert shoal.get(where.options(scheduling_strategy=soft).remote(), timeout=PATIENCE_S) in ids(idle)
    assert shoal.get(Place.options(scheduling_strategy=soft).remote().where.remote(), timeout=PATIENCE_S) in ids(idle)


def test_a_node_that_is_too_small_is_an_error_or_another_node(idle):
    for soft in (False, True):
        strategy = NodeAffinitySchedulingStrategy(idle.id_of(1), soft)
        task = where.options(num_cpus=0, resources={"n2": 0.1}, scheduling_strategy=strategy)
        actor = Place.options(num_cpus=0, resources={"n2": 0.1}, scheduling_strategy=strategy)
        if soft:
            assert shoal.get(task.remote(), timeout=PATIENCE_S) == idle.id_of(2)
            assert shoal.get(actor.remote().where.remote(), timeout=PATIENCE_S) == idle.id_of(2)
        else:
            with pytest.raises(TaskUnschedulableError, match=r"needs 0\.1 n2, the node has 0"):
                shoal.get(task.remote(), timeout=PATIENCE_S)
            with pytest.raises(ActorUnschedulableError, match=r"needs 0\.1 n2, the node has 0"):
                shoal.get(actor.remote().where.remote(), timeout=PATIENCE_S)


def test_a_node_without_room_is_waited_for_left_or_an_error(idle):
    named = idle.id_of(1)
    holder = Place.options(num_cpus=2, scheduling_strategy=NodeAffinitySchedulingStrategy(named, False)).remote()
    assert shoal.get(holder.where.remote(), timeout=PATIENCE_S) == named
    waits = [where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(named, soft)).remote() for soft in (False, True)]
    leaves = NodeAffinitySchedulingStrategy(named, True, _spill_on_unavailable=True)
    at_once = NodeAffinitySchedulingStrategy(named, False, _fail_on_unavailable=True)
    assert shoal.get(where.options(scheduling_strategy=leaves).remote(), timeout=PATIENCE_S) != named
    with pytest.raises(TaskUnschedulableError, match="not free there now: 0 of 1 CPU"):
        shoal.get(where.options(scheduling_strategy=at_once).remote(), timeout=PATIENCE_S)
    with pytest.raises(ActorUnschedulableError, match="not free there now: 0 of 1 CPU"):
        shoal.get(Place.options(num_cpus=1, scheduling_strategy=at_once).remote().where.remote(), timeout=PATIENCE_S)
    assert shoal.wait(waits, num_returns=2, timeout=0.3)[0] == []
    shoal.kill(holder)
    assert shoal.get(waits, timeout=PATIENCE_S) == [named] * 2
    wait_for(everything_is_free, PATIENCE_S, "the return of the resources")
    assert shoal.get(where.options(scheduling_strategy=at_once).remote(), timeout=PATIENCE_S) == named


@pytest.mark.parametrize(
    ("hard", "soft", "allowed"),
    [
        ({"zone": In("a", "c")}, None, {0}),
        ({"zone": NotIn("a")}, None, {1, 2}),
        ({"disk": Exists()}, None, {0, 2}),
        ({"disk": DoesNotExist()}, None, {1}),
        ({"zone": In("b")}, {"disk": Exists()}, {2}),
        ({"zone": In("b")}, {"disk": In("tape")}, {1, 2}),
        (None, {"disk": DoesNotExist()}, {1}),
    ],
)
def test_labels_hard_and_soft(idle, hard, soft, allowed):
    strategy = NodeLabelSchedulingStrategy(hard, soft=soft)  # without CPUs: a preference gives way to room
    allowed = {idle.id_of(index) for index in allowed}
    found = {shoal.get(where.options(num_cpus=0, scheduling_strategy=strategy).remote(), timeout=PATIENCE_S) for _ in range(3)}
    assert found <= allowed
    assert shoal.get(Place.options(num_cpus=0, scheduling_strategy=strategy).remote().where.remote(), timeout=PATIENCE_S) in allowed


def test_selectors_and_their_fallback(idle):
    def options(selector, *fallback):
        more = {"fallback_strategy": [{"label_selector": one} for one in fallback]} if fallback else {}
        return {"label_selector": selector, **more}

    cases = [
        (options({"zone": "a"}), {0}), (options({"zone": "!a", "disk": "in(hdd, tape)"}), {2}),
        (options({"zone": "x"}, {"zone": "y"}, {"disk": "ssd"}), {0}),
        (options({"ray.io/node-id": idle.id_of(1)}), {1}),
    ]  # fmt: skip
    for chosen, allowed in cases:
        task = shoal.get(where.options(**chosen).remote(), timeout=PATIENCE_S)
        actor = shoal.get(Place.options(**chosen).remote().where.remote(), timeout=PATIENCE_S)
        assert {task, actor} == {idle.id_of(index) for index in allowed}


def test_bundles_go_to_the_nodes_that_their_selectors_ask_for(idle):
    group = placement_group([{"CPU": 1}] * 3, bundle_label_selector=[{"disk": "hdd"}, {"zone": "a"}, {"disk": "!in(ssd, hdd)"}])
    assert group.wait(PATIENCE_S)
    assert list(placement_group_table(group)["bundles_to_node_id"].values()) == [idle.id_of(index) for index in (2, 0, 1)]
    remove_placement_group(group)


def test_labels_of_this_node_are_seen_inside(idle):
    @shoal.remote
    def labels():
        return shoal.get_runtime_context().get_node_labels()

    for index in range(3):
        expected = {**LABELS[index], "ray.io/node-id": idle.id_of(index)}
        assert shoal.get(labels.options(**idle.on(index)).remote(), timeout=PATIENCE_S) == expected


def test_a_task_runs_where_its_large_arguments_are(idle):
    @shoal.remote
    def make():
        return np.ones(20 * MIB, dtype=np.uint8)

    @shoal.remote
    def reads(*arrays):
        assert all(array[-1] == 1 for array in arrays)
        return shoal.get_runtime_context().get_node_id()

    refs = [make.options(**idle.on(index)).remote() for index in range(3)]
    shoal.wait(refs, num_returns=3, timeout=PATIENCE_S, fetch_local=False)
    for index in range(3):
        found = shoal.get([reads.remote(refs[index]) for _ in range(2)], timeout=PATIENCE_S)
        assert found == [idle.id_of(index)] * 2
    more = make.options(**idle.on(2)).remote()
    assert shoal.get(reads.remote(refs[1], refs[2], more), timeout=PATIENCE_S) == idle.id_of(2), "where most of them are"
    strategy = NodeAffinitySchedulingStrategy(idle.id_of(0), soft=False)
    assert shoal.get(reads.options(scheduling_strategy=strategy).remote(refs[1]), timeout=PATIENCE_S) == idle.id_of(0)
    holder = Place.options(num_cpus=2, scheduling_strategy=NodeAffinitySchedulingStrategy(idle.id_of(1), False)).remote()
    shoal.get(holder.where.remote(), timeout=PATIENCE_S)
    assert shoal.get(reads.remote(refs[1]), timeout=PATIENCE_S) != idle.id_of(1), "no room there: it does not wait"


def test_a_large_task_starts_in_a_stream_of_small_ones(idle):
    """Two CPUs on one node are never free at once by themselves: all six are taken by tasks of one CPU that follow each other."""

    @shoal.remote
    def brief():
        time.sleep(0.02)

    over = threading.Event()

    def stream():
        running = [brief.remote() for _ in range(12)]
        while not over.is_set():
            _, running = shoal.wait(running, num_returns=1, timeout=PATIENCE_S)
            running += [brief.remote() for _ in range(12 - len(running))]
        shoal.get(running, timeout=PATIENCE_S)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        for _ in range(3):
            assert shoal.get(where.options(num_cpus=2).remote(), timeout=PATIENCE_S) in ids(idle)
    finally:
        over.set()
        thread.join()


def test_what_waits_moves_to_a_node_that_came_free(idle):
    """All CPUs are held; what waits for one here runs on the node where one comes free first."""
    holders = [Place.options(num_cpus=2, resources={f"n{index}": 0.1}).remote() for index in range(3)]
    shoal.get([holder.where.remote() for holder in holders], timeout=PATIENCE_S)
    for index in (2, 1):
        waiting = [where.remote(0.05) for _ in range(4)]
        assert shoal.wait(waiting, timeout=0.3)[0] == []
        shoal.kill(holders[index])
        assert set(shoal.get(waiting, timeout=PATIENCE_S)) == {idle.id_of(index)}
        holders[index] = Place.options(num_cpus=2, resources={f"n{index}": 0.1}).remote()
        shoal.get(holders[index].where.remote(), timeout=PATIENCE_S)
