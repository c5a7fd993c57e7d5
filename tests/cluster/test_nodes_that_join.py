"""Work that waits for a node that is not there yet, and nodes that are used as soon as they are there."""

from __future__ import annotations

import time

import pytest

import shoal
from shoal.testing import wait_for
from shoal.util.placement_group import placement_group
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

PATIENCE_S = 40


@shoal.remote
def where(seconds=0.0):
    time.sleep(seconds)
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
class Place:
    def where(self):
        return shoal.get_runtime_context().get_node_id()


def test_what_no_node_can_run_is_told_once_waits_and_runs_on_the_node_that_can(capfd):
    with many_nodes(2) as nodes:
        large = [where.options(num_cpus=4, name="large").remote() for _ in range(3)]
        labelled = where.options(label_selector={"zone": "x"}).remote()
        actor = Place.options(num_cpus=0, resources={"gold": 1}).remote()
        place = actor.where.remote()
        group = placement_group([{"CPU": 3}, {"CPU": 1}])
        inside = group.ready()
        waiting = [*large, labelled, place, inside]
        assert shoal.get([where.remote() for _ in range(20)], timeout=PATIENCE_S), "smaller tasks behind them are not held up"
        assert shoal.wait(waiting, timeout=0.3)[0] == []
        told = ""

        def all_told():
            nonlocal told
            told += capfd.readouterr().err
            return all(what in told for what in ("large needs", "no node has them", "gold"))

        wait_for(all_told, PATIENCE_S, "the three messages")
        assert told.count("large needs 4 CPUs; the largest node has 2. Ask for num_cpus<=2 or add a node with 4.") == 1
        assert told.count("no node has them") == 1
        assert told.count("gold") == 1
        joined = nodes.add(8, labels={"zone": "x"}, gold=1)
        assert shoal.get([*large, labelled, place], timeout=PATIENCE_S) == [joined] * 5
        assert shoal.get(inside, timeout=PATIENCE_S) == group
        assert "needs" not in capfd.readouterr().err


def test_a_node_can_be_named_and_used_the_moment_it_is_there(capfd):
    """The agents hear of a node up to a tenth of a second after the control store: nothing may be refused for that."""
    with many_nodes(1) as nodes:
        for number in range(3):
            joined = nodes.add(1, labels={"number": str(number)})
            strategy = NodeAffinitySchedulingStrategy(joined, soft=False)
            refs = [
                where.options(scheduling_strategy=strategy).remote(),
                where.options(label_selector={"number": str(number)}).remote(),
                where.options(num_cpus=0, resources={f"n{number + 1}": 0.1}).remote(),
                Place.options(scheduling_strategy=strategy).remote().where.remote(),
            ]
            assert shoal.get(refs, timeout=PATIENCE_S) == [joined] * 4
        assert capfd.readouterr().err == ""


def test_a_node_that_joins_takes_over_what_waits_for_room():
    with many_nodes(1, num_cpus=1) as nodes:
        holder = Place.options(num_cpus=1).remote()
        assert shoal.get(holder.where.remote(), timeout=PATIENCE_S) == nodes.id_of(0)
        refs = [where.remote() for _ in range(6)]
        assert shoal.wait(refs, timeout=0.3)[0] == []
        joined = nodes.add(4)
        assert shoal.get(refs, timeout=PATIENCE_S) == [joined] * 6
        del holder
        wait_for(lambda: shoal.available_resources().get("CPU") == 5, PATIENCE_S, "the return of the CPUs")
