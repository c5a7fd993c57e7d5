"""What waits for resources, as the control store and ``shoal status`` tell it, in a cluster of real nodes."""

from __future__ import annotations

import pytest

import shoal
from shoal._base import runtime as holder
from shoal._core.wire.messages import ListNodes
from shoal.testing import wait_for
from shoal.util.placement_group import placement_group, remove_placement_group
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

CPU = 10_000


@shoal.remote
def wait_here(_file):
    wait_for(lambda: __import__("os").path.exists(_file), 100, "the file")


@shoal.remote
class Big:
    pass


def demands():
    """Return {resources and conditions: how many wait}, and the same of groups."""
    found = holder.current().request_control_store(ListNodes(0, True, True))
    tasks = {(tuple(map(tuple, one.resources)), tuple(map(tuple, one.label_selector))): one.count for one in found.demands}
    groups = {(tuple(tuple(map(tuple, bundle)) for bundle in one.bundles), one.strategy): one.count for one in found.groups}
    return tasks, groups


def test_everything_that_waits_is_counted_and_nothing_when_it_has_ended(tmp_path):
    one, many, never = (("CPU", 2 * CPU),), (("CPU", 50 * CPU),), (("nobody has this", CPU),)
    with many_nodes(2, num_cpus=2):
        assert demands() == ({}, {})
        # Both nodes are full.
        running = [wait_here.options(num_cpus=2).remote(str(tmp_path / "go")) for _ in range(2)]
        wait_for(lambda: shoal.available_resources().get("CPU", 0) == 0, 30, "full nodes")
        waiting = [wait_here.options(num_cpus=2).remote(str(tmp_path / "go")) for _ in range(100)]
        hopeless = [wait_here.options(num_cpus=0, resources={"nobody has this": 1}).remote("") for _ in range(3)]
        there = wait_here.options(num_cpus=0, resources={"n1": 0.5}, label_selector={"zone": "a"}).remote("")
        actors = [Big.options(num_cpus=50).remote() for _ in range(4)]
        group = placement_group([{"CPU": 50}, {"CPU": 2}], strategy="SPREAD")
        inside = wait_here.options(
            num_cpus=2, scheduling_strategy=shoal.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, 1)
        ).remote("")

        def all_there():
            tasks, groups = demands()
            found = {key: count for (key, selector), count in tasks.items() if not selector}
            # The number of tasks that wait at their owner is told when it has doubled.
            return (
                50 <= found.pop(one, 0) <= 200
                and found == {many: 4, never: 3}
                and tasks[(("n1", CPU // 2),), (("zone", "a"),)] == 1
                and groups == {((many, one), "SPREAD"): 1}
            )

        try:
            wait_for(all_there, 30, "the demands")
        except TimeoutError as error:
            raise AssertionError(f"{error} They are {demands()}.") from error
        (tmp_path / "go").touch()
        for ref in (*hopeless, there, inside):
            shoal.cancel(ref)
        del actors
        remove_placement_group(group)
        shoal.get([*running, *waiting], timeout=60)
        wait_for(lambda: demands() == ({}, {}), 30, "the end of all demands")


def test_they_are_told_again_to_a_control_store_that_comes_back():
    with many_nodes(2, keep_control=True) as nodes:
        hopeless = wait_here.options(resources={"nobody has this": 1}).remote("")
        key = ((("CPU", CPU), ("nobody has this", CPU)), ())
        wait_for(lambda: demands()[0] == {key: 1}, 30, "the demand")
        pid = nodes.kill_control()
        wait_for(lambda: nodes.control_pid not in (0, pid), 30, "the next control store")
        wait_for(lambda: demands()[0] == {key: 1}, 30, "the demand, told again")
        shoal.cancel(hopeless)
        wait_for(lambda: demands()[0] == {}, 30, "the end of the demand")
