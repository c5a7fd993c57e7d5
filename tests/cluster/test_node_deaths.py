"""Nodes that die, and what becomes of what was there."""

from __future__ import annotations

import gc
import os
import time

import numpy as np
import pytest

import shoal
from shoal._base.processes import is_running
from shoal.testing import wait_for
from shoal.util.placement_group import placement_group, placement_group_table, remove_placement_group
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from tests.cluster.nodes import many_nodes
from tests.cluster.slow_node import BUSY_S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

MIB = 1 << 20
PATIENCE_S = 40


def test_what_a_killed_node_ran_and_held_is_computed_again_elsewhere():
    with many_nodes(2) as nodes:

        @shoal.remote(max_retries=3)
        def make_anywhere(nbytes):
            time.sleep(0.2)
            return np.ones(nbytes, dtype=np.uint8)

        def soft():
            return shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True)

        held = make_anywhere.options(scheduling_strategy=soft()).remote(MIB)
        shoal.wait([held], fetch_local=False)
        running = [make_anywhere.options(scheduling_strategy=soft()).remote(MIB) for _ in range(6)]
        ready, _ = shoal.wait(running, num_returns=1, timeout=20, fetch_local=False)
        assert ready
        nodes.kill(1)
        for ref in [held, *running]:
            assert int(shoal.get(ref, timeout=60).sum()) == MIB
        wait_for(lambda: [node["Alive"] for node in shoal.nodes()].count(True) == 1, 20, "the end of the node in the table")


def test_all_results_of_one_task_are_lost_and_read_at_once():
    """Each reader finds another result lost; the task runs again once, not once per reader, and never "cannot be computed again"."""
    with many_nodes(3) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()

        @shoal.remote(max_retries=1)
        def make(runs):
            shoal.get(runs.add.remote())
            return [np.full(MIB, number, dtype=np.uint8) for number in range(8)]

        @shoal.remote(num_cpus=0, max_retries=0)
        def read(number, array):
            return number, int(array[0]), len(array)

        where = shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True)
        parts = make.options(num_returns=8, scheduling_strategy=where).remote(runs)
        shoal.wait(parts, num_returns=8, fetch_local=False)
        nodes.kill(1)
        wait_for(lambda: [node["Alive"] for node in shoal.nodes()].count(True) == 2, 20, "the end of the node in the table")
        read_at = [read.options(resources={f"n{number % 2 * 2}": 0.001}).remote(number, parts[number]) for number in range(8)]
        assert shoal.get(read_at, timeout=60) == [(number, number, MIB) for number in range(8)]
        assert [int(part[0]) for part in shoal.get(parts, timeout=60)] == list(range(8))
        assert shoal.get(runs.get.remote()) == 2


@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1

    def get(self):
        return self.count


def test_bundles_of_a_dead_node_are_placed_again_and_what_ran_there_too():
    with many_nodes(3, num_cpus=4) as nodes:
        group = placement_group([{"CPU": 2, "n0": 0.1}, {"CPU": 2}, {"CPU": 2}], strategy="SPREAD")

        @shoal.remote(max_retries=5)
        def slow(path):
            with open(path, "a") as file:
                file.write("+")
            time.sleep(1.0)
            return shoal.get_runtime_context().get_node_id()

        @shoal.remote
        def where():
            return shoal.get_runtime_context().get_node_id()

        @shoal.remote(num_cpus=1)
        class Resident:
            def where(self):
                return shoal.get_runtime_context().get_node_id()

        def nodes_of(group):
            return list(placement_group_table(group)["bundles_to_node_id"].values())

        def inside(group, index):
            return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)}

        assert group.wait(PATIENCE_S)
        before = nodes_of(group)
        assert len(set(before)) == 3
        actors = [Resident.options(max_restarts=1, max_task_retries=-1, **inside(group, index)).remote() for index in range(3)]
        assert shoal.get([actor.where.remote() for actor in actors], timeout=PATIENCE_S) == before
        victim = next(index for index in range(3) if nodes.id_of(index) == before[1])
        path = os.path.join(nodes.nodes[0].ready.session_dir, "runs")
        running = slow.options(**inside(group, 1)).remote(path)
        wait_for(lambda: os.path.exists(path), PATIENCE_S, "the start of the task")
        nodes.kill(victim)
        after = shoal.get(running, timeout=PATIENCE_S)
        assert after != before[1]
        wait_for(lambda: placement_group_table(group)["state"] == "CREATED" and nodes_of(group)[1] == after, PATIENCE_S, "the new place")
        assert [nodes_of(group)[index] for index in (0, 2)] == [before[0], before[2]], "what was not lost stays"
        assert shoal.get([actor.where.remote() for actor in actors], timeout=PATIENCE_S) == nodes_of(group)
        assert shoal.get([where.options(**inside(group, index)).remote() for index in range(3)], timeout=PATIENCE_S) == nodes_of(group)
        remove_placement_group(group)
        wait_for(lambda: shoal.available_resources() == shoal.cluster_resources(), PATIENCE_S, "the return of the resources")


def test_what_waits_at_a_node_that_dies_goes_elsewhere():
    """Two nodes could run it and both are busy; it waits at one of them, which dies, and starts on the other."""
    with many_nodes(1) as nodes:
        for _ in range(2):
            nodes.add(2, special=1)

        @shoal.remote(num_cpus=1, resources={"special": 1})
        class Holder:
            def where(self):
                return shoal.get_runtime_context().get_node_id()

        @shoal.remote(num_cpus=1, resources={"special": 1})
        def waits():
            return shoal.get_runtime_context().get_node_id()

        holders = [Holder.remote() for _ in range(2)]
        at = shoal.get([holder.where.remote() for holder in holders], timeout=PATIENCE_S)
        assert len(set(at)) == 2
        refs = [waits.remote() for _ in range(4)]
        assert shoal.wait(refs, timeout=0.5)[0] == []
        nodes.kill(next(index for index in range(3) if nodes.id_of(index) == at[0]))
        assert shoal.wait(refs, timeout=0.5)[0] == []
        shoal.kill(holders[1])
        assert shoal.get(refs, timeout=PATIENCE_S) == [at[1]] * 4


def test_a_dead_node_that_is_named_is_an_error_or_another_node():
    with many_nodes(2) as nodes:

        @shoal.remote
        def where():
            return shoal.get_runtime_context().get_node_id()

        @shoal.remote(max_restarts=3, max_task_retries=3)
        class Place:
            def where(self):
                return shoal.get_runtime_context().get_node_id()

        def on(soft):
            return {"scheduling_strategy": NodeAffinitySchedulingStrategy(nodes.id_of(1), soft)}

        bound, free = Place.options(**on(False)).remote(), Place.options(**on(True)).remote()
        assert shoal.get([bound.where.remote(), free.where.remote()], timeout=PATIENCE_S) == [nodes.id_of(1)] * 2
        nodes.kill(1)
        wait_for(lambda: [node["Alive"] for node in shoal.nodes()].count(True) == 1, 20, "the end of the node in the table")
        (row,) = [node for node in shoal.nodes() if not node["Alive"]]
        assert (row["NodeID"], row["alive"], row["Resources"]) == (nodes.id_of(1), False, {})
        assert row["DeathReason"]
        assert "connection" in row["DeathReasonMessage"]
        with pytest.raises(shoal.exceptions.TaskUnschedulableError, match="dead or unknown"):
            shoal.get(where.options(**on(False)).remote(), timeout=PATIENCE_S)
        with pytest.raises(shoal.exceptions.ActorUnschedulableError, match="dead or unknown"):
            shoal.get(Place.options(**on(False)).remote().where.remote(), timeout=PATIENCE_S)
        with pytest.raises(shoal.exceptions.ActorUnschedulableError, match="dead or unknown"):
            shoal.get(bound.where.remote(), timeout=PATIENCE_S)
        assert shoal.get(where.options(**on(True)).remote(), timeout=PATIENCE_S) == nodes.id_of(0)
        assert shoal.get(free.where.remote(), timeout=PATIENCE_S) == nodes.id_of(0)


def test_a_lost_result_of_an_actor_is_computed_again_by_it():
    with many_nodes(2) as nodes:

        @shoal.remote(num_cpus=0, max_restarts=-1, max_task_retries=2)
        class Maker:
            def array(self, number):
                return np.full(MIB, number, dtype=np.uint8)

        where = shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes.id_of(1), soft=True)
        maker = Maker.options(scheduling_strategy=where).remote()
        arrays = [maker.array.remote(number) for number in range(3)]
        once = maker.array.options(max_task_retries=0).remote(9)
        shoal.wait([*arrays, once], num_returns=4, fetch_local=False)
        nodes.kill(1)
        assert [(int(array[0]), len(array)) for array in shoal.get(arrays, timeout=60)] == [(number, MIB) for number in range(3)]
        with pytest.raises(shoal.exceptions.ObjectReconstructionFailedError):
            shoal.get(once, timeout=60)
        shoal.kill(maker)


@shoal.remote
class Place:
    def where(self):
        return shoal.get_runtime_context().get_node_id(), os.getpid()


def test_a_node_that_stood_still_for_too_long_is_another_node_afterwards():
    with many_nodes(3, node_timeout_s=2.0) as nodes:
        old = nodes.id_of(1)
        soft = shoal.util.scheduling_strategies.NodeAffinitySchedulingStrategy(old, soft=True)
        moves = Place.options(max_restarts=-1, max_task_retries=-1, scheduling_strategy=soft).remote()
        stays = Place.options(**nodes.on(1)).remote()
        node, pid = shoal.get(moves.where.remote(), timeout=30)
        assert (node, shoal.get(stays.where.remote(), timeout=30)[0]) == (old, old)
        nodes.pause(1)
        wait_for(lambda: old not in nodes.living(), 30, "the death of the silent node")
        elsewhere = shoal.get(moves.where.remote(), timeout=30)
        assert elsewhere[0] != old
        with pytest.raises(shoal.exceptions.RayActorError):
            shoal.get(stays.where.remote(), timeout=30)
        assert is_running(pid), "it cannot know; nobody on this side reaches it"
        nodes.resume(1)
        wait_for(lambda: len(nodes.living()) == 3, 30, "the return of the node")
        assert old not in nodes.living()
        assert not is_running(pid), "it is another node, which began with nothing"
        assert shoal.get(moves.where.remote(), timeout=30) == elsewhere
        fresh = shoal.get(Place.options(**nodes.on(1)).remote().where.remote(), timeout=30)
        assert fresh[0] not in (old, nodes.id_of(0), nodes.id_of(2))


def test_a_node_that_is_only_slow_is_not_declared_dead():
    with many_nodes(1, node_timeout_s=1.5) as nodes:
        slow = nodes.add(composition="tests.cluster.slow_node:compose")
        until = time.monotonic() + BUSY_S + 2.0  # it is busy for thrice the time after which silence is death
        wait_for(lambda: slow not in nodes.living() or time.monotonic() > until, 60, "the end of its standstill")
        assert slow in nodes.living()
        assert shoal.get(Place.options(**nodes.on(1)).remote().where.remote(), timeout=PATIENCE_S)[0] == slow


@shoal.remote
class Owner:
    def make(self, nbytes):
        self.kept = shoal.put(np.full(nbytes, 7, dtype=np.uint8))
        return [self.kept]

    def die(self):
        os.kill(os.getpid(), 9)


def test_what_a_killed_owner_of_another_node_had_stored_is_kept_there_for_those_who_hold_it():
    with many_nodes(2) as nodes:
        owner = Owner.options(**nodes.on(1)).remote()
        [ref] = shoal.get(owner.make.remote(MIB), timeout=PATIENCE_S)
        with pytest.raises(shoal.exceptions.RayActorError):
            shoal.get(owner.die.remote(), timeout=PATIENCE_S)
        assert int(shoal.get(ref, timeout=PATIENCE_S).sum()) == 7 * MIB

        @shoal.remote
        def total(box):
            return int(shoal.get(box[0]).sum())

        both = [total.options(**nodes.on(index)).remote([ref]) for index in range(2)]
        assert shoal.get(both, timeout=PATIENCE_S) == [7 * MIB] * 2


def test_references_inside_of_what_a_killed_owner_had_stored_keep_objects_of_other_nodes_alive():
    """The agent that adopts the container holds what is inside of it, wherever its owner lives."""
    with many_nodes(2) as nodes:

        @shoal.remote(num_cpus=0)
        class Keeper:
            def box(self, inner):
                self.kept = shoal.put([np.zeros(MIB, dtype=np.uint8), inner[0]])
                return [self.kept]

            def die(self):
                os.kill(os.getpid(), 9)

        keeper = Keeper.options(**nodes.on(1)).remote()
        inner = shoal.put(np.full(MIB, 5, dtype=np.uint8))
        [box] = shoal.get(keeper.box.remote([inner]), timeout=PATIENCE_S)
        with pytest.raises(shoal.exceptions.RayActorError):
            shoal.get(keeper.die.remote(), timeout=PATIENCE_S)
        del inner
        gc.collect()
        found = shoal.get(box, timeout=PATIENCE_S)[1]
        assert int(shoal.get(found, timeout=PATIENCE_S).sum()) == 5 * MIB


def test_what_a_killed_owner_had_on_another_node_is_read_by_those_who_hold_it():
    """The agent of the owner's node asks for it and adopts it, where it lies."""
    with many_nodes(3) as nodes:

        @shoal.remote(num_cpus=0)
        def make():
            return np.full(MIB, 3, dtype=np.uint8)

        @shoal.remote(num_cpus=0)
        class Owner:
            def own(self, where):
                self.owned = [make.options(**where).remote()]
                shoal.wait(self.owned, fetch_local=False)
                return self.owned

            def die(self):
                os.kill(os.getpid(), 9)

        owner = Owner.options(**nodes.on(1)).remote()
        [held] = shoal.get(owner.own.remote(nodes.on(2)), timeout=PATIENCE_S)
        with pytest.raises(shoal.exceptions.RayActorError):
            shoal.get(owner.die.remote(), timeout=PATIENCE_S)
        assert int(shoal.get(held, timeout=PATIENCE_S).sum()) == 3 * MIB


def test_what_is_inside_a_value_that_was_stored_again_with_another_one_is_there():
    """Two results are lost with their node, and only one is asked for: the task runs again, and its other value is the new run's, too."""

    @shoal.remote(num_returns=3, num_cpus=0, resources={"either": 1}, max_retries=2)
    def boxes():
        node_id = shoal.get_runtime_context().get_node_id()
        return node_id, [np.zeros(MIB), shoal.put("first")], [np.zeros(MIB), shoal.put("second")]

    with many_nodes(1) as nodes:
        for _ in range(2):
            nodes.add(either=1)
        where, first, second = boxes.remote()
        ran_on = shoal.get(where, timeout=PATIENCE_S)
        nodes.kill(next(index for index in (1, 2) if nodes.id_of(index) == ran_on))
        assert shoal.get(shoal.get(second, timeout=PATIENCE_S)[1], timeout=PATIENCE_S) == "second"
        assert shoal.get(shoal.get(first, timeout=PATIENCE_S)[1], timeout=PATIENCE_S) == "first"
