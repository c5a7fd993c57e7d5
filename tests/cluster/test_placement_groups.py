"""Placement groups on real processes: what removal does to those inside, and that every reservation comes back."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest

import shoal
from shoal.exceptions import ActorDiedError, RayError, TaskPlacementGroupRemoved
from shoal.testing import waiting
from shoal.util.placement_group import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.cluster.churn import churn

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def own_session(session):
    return session


wait_for = partial(waiting.wait_for, timeout_s=PATIENCE_S)


def everything_is_free():
    return shoal.available_resources() == shoal.cluster_resources()


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@shoal.remote(max_retries=5)
def hold(folder, name):
    """Tell who runs here, then stay."""
    path = os.path.join(folder, name)
    with open(f"{path}.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.part", path)
    threading.Event().wait()


@shoal.remote(max_restarts=5, max_task_retries=5)
class Resident:
    def pid(self):
        return os.getpid()

    def stay(self):
        threading.Event().wait()


@shoal.remote
def pid():
    return os.getpid()


def inside(group, index=-1):
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)


def test_removal_ends_what_runs_inside(tmp_path):
    """A running task and an actor with a call in flight end at once, with an error that names the group, and are not tried again."""
    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    assert group.wait(PATIENCE_S)
    task = hold.options(scheduling_strategy=inside(group, 0)).remote(str(tmp_path), "task")
    actor = Resident.options(scheduling_strategy=inside(group, 1), num_cpus=1).remote()
    actor_pid = shoal.get(actor.pid.remote(), timeout=PATIENCE_S)
    call = actor.stay.remote()
    wait_for((tmp_path / "task").exists, what="the start of the task")
    task_pid = int((tmp_path / "task").read_text())
    queued = pid.options(scheduling_strategy=inside(group)).remote()
    remove_placement_group(group)
    for ref in (task, queued):
        with pytest.raises(TaskPlacementGroupRemoved) as error:
            shoal.get(ref, timeout=PATIENCE_S)
        assert group.id.hex() in str(error.value)
        assert "removed" in str(error.value)
    for attempt in (call, actor.pid.remote()):
        with pytest.raises(ActorDiedError) as died:
            shoal.get(attempt, timeout=PATIENCE_S)
        assert "placement group" in str(died.value)
        assert "removed" in str(died.value)
    wait_for(lambda: not is_alive(task_pid) and not is_alive(actor_pid), what="the end of both processes")
    wait_for(everything_is_free, what="the return of the resources")
    assert os.listdir(tmp_path) == ["task"], "it was not tried again"
    assert shoal.get([pid.remote() for _ in range(10)], timeout=PATIENCE_S)


def test_removal_leaves_those_outside_alone(tmp_path):
    group = placement_group([{"CPU": 1}])
    assert group.wait(PATIENCE_S)
    outsider = Resident.remote()
    before = shoal.get(outsider.pid.remote(), timeout=PATIENCE_S)
    insider = Resident.options(scheduling_strategy=inside(group), num_cpus=1).remote()
    shoal.get(insider.pid.remote(), timeout=PATIENCE_S)
    remove_placement_group(group)
    with pytest.raises(ActorDiedError):
        shoal.get(insider.pid.remote(), timeout=PATIENCE_S)
    assert shoal.get(outsider.pid.remote(), timeout=PATIENCE_S) == before
    del outsider, insider
    wait_for(everything_is_free, what="the return of the resources")


def test_use_after_removal_is_an_error_not_a_hang():
    group = placement_group([{"CPU": 1}])
    assert group.wait(PATIENCE_S)
    remove_placement_group(group)
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved, match="removed"):
        shoal.get(pid.options(scheduling_strategy=inside(group)).remote(), timeout=PATIENCE_S)
    with pytest.raises(RayError, match="removed"):
        shoal.get(Resident.options(scheduling_strategy=inside(group)).remote().pid.remote(), timeout=PATIENCE_S)
    with pytest.raises(RayError, match="removed"):
        shoal.get(group.ready(), timeout=PATIENCE_S)
    assert not group.wait(PATIENCE_S)


def test_a_group_that_waits_for_room_can_be_removed():
    first = placement_group([{"CPU": 2}])
    assert first.wait(PATIENCE_S)
    second = placement_group([{"CPU": 2}])
    ready = second.ready()
    remove_placement_group(second)
    with pytest.raises(RayError, match="removed"):
        shoal.get(ready, timeout=PATIENCE_S)
    remove_placement_group(first)
    wait_for(everything_is_free, what="the return of the resources")


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_fifty_at_once_leave_nothing_reserved(strategy):
    """Made, used and removed from four threads at once, some before they are ready: in the end all that there is is free."""

    def once(number):
        bundles = [{"CPU": 1}] if strategy == "STRICT_SPREAD" else [{"CPU": 1}, {"CPU": 0.5}]
        group = placement_group(bundles, strategy=strategy)
        if number % 3 == 0:
            assert group.wait(PATIENCE_S)
            assert shoal.get(pid.options(scheduling_strategy=inside(group, 0)).remote(), timeout=PATIENCE_S)
        elif number % 3 == 1:
            group.wait(0)
        remove_placement_group(group)

    assert churn(50, once) == []
    wait_for(everything_is_free, what="the return of the resources")
