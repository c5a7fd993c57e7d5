"""Nodes that leave in good order, under load and with deaths in the middle (traps 17, 18 of spec/operations.md)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import numpy as np
import pytest

import shoal
from shoal._base import runtime as holder
from shoal._base.processes import is_running
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import DRAIN_IDLE, DRAIN_PREEMPTION, Ack, DrainNode
from shoal._core.worker.entries import Stored
from shoal.testing import wait_for
from shoal.util.placement_group import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from tests.cluster.nodes import Nodes, many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

MIB = 1 << 20
PATIENCE_S = 90


def drain(nodes: Nodes, index: int, reason: str = DRAIN_PREEMPTION, deadline_s: float = 60.0) -> None:
    """Ask as the command line does. RequestFailed: refused."""
    from shoal._core.process.asking import ask
    from shoal._core.transport.trust import Tokens

    message = DrainNode(0, bytes.fromhex(nodes.id_of(index)), reason, "a test", deadline_s)
    ask(nodes.control.ready.control_address, Tokens(nodes.token), message, Ack, timeout_s=30.0)


def softly(nodes: Nodes, index: int) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(nodes.id_of(index), soft=True)


def meet(nodes: Nodes, index: int) -> None:
    """Wait until the driver's node knows that node: until then a soft affinity is to nobody."""
    shoal.get(shoal.remote(os.getpid).options(**nodes.on(index)).remote())


def row(nodes: Nodes, index: int) -> dict:
    return next(one for one in shoal.nodes() if one["NodeID"] == nodes.id_of(index))


def gone(nodes: Nodes, index: int) -> dict:
    """Wait until the node's process has ended and the control store knows it; return what it lists."""
    wait_for(lambda: not nodes.nodes[index].is_alive(), PATIENCE_S, "the end of the node")
    wait_for(lambda: not row(nodes, index)["Alive"], PATIENCE_S, "the word of its end")
    return row(nodes, index)


@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.counts = {}

    def add(self, key):
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key]

    def all(self):
        return self.counts


@shoal.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Moves:
    def echo(self, number):
        return number, shoal.get_runtime_context().get_node_id()


@shoal.remote(max_retries=2)
def short(runs, number):
    time.sleep(0.05)
    shoal.get(runs.add.remote(number))
    return number


@shoal.remote(num_cpus=0)
def make(runs, number, nbytes=MIB):
    shoal.get(runs.add.remote(("object", number)))
    return np.full(nbytes, number % 251, dtype=np.uint8)


class Load:
    """Tasks and calls, submitted all the time by a thread until ``stop``."""

    def __init__(self, runs, actors):
        self.runs, self.actors = runs, actors
        self.tasks, self.calls = [], []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._submit, daemon=True)
        self._thread.start()

    def _submit(self):
        while not self._stopping.wait(0.02):
            self.tasks += [short.remote(self.runs, len(self.tasks) + one) for one in range(4)]
            self.calls += [actor.echo.remote(len(self.calls)) for actor in self.actors]

    def stop(self):
        self._stopping.set()
        self._thread.join()


def test_under_load_nothing_fails_nothing_runs_twice_and_the_node_goes():
    with many_nodes(3) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()
        actors = [Moves.options(scheduling_strategy=softly(nodes, 1)).remote() for _ in range(3)]
        assert {where for _, where in shoal.get([actor.echo.remote(0) for actor in actors])} == {nodes.id_of(1)}
        objects = [make.options(resources={"n1": 0.001}).remote(runs, number) for number in range(16)]
        shoal.wait(objects, num_returns=len(objects), fetch_local=False)
        load = Load(runs, actors)
        try:
            wait_for(lambda: len(load.tasks) > 40, PATIENCE_S, "some load")
            drain(nodes, 1)
            listed = gone(nodes, 1)
            submitted = len(load.tasks)
            wait_for(lambda: len(load.tasks) > submitted + 40, PATIENCE_S, "more load, without the node")
        finally:
            load.stop()
        assert listed["DeathReasonMessage"] == f"drained: {DRAIN_PREEMPTION}: a test"
        assert listed["DeathReason"] == 3
        assert shoal.get(load.tasks, timeout=PATIENCE_S) == list(range(len(load.tasks)))
        answers = shoal.get(load.calls, timeout=PATIENCE_S)
        assert all(where != nodes.id_of(1) for _, where in answers[-3:]), "the actors have moved"
        for number, array in enumerate(shoal.get(objects, timeout=PATIENCE_S)):
            assert array[0] == number
        counts = shoal.get(runs.all.remote())
        assert all(counts[number] == 1 for number in range(len(load.tasks))), "a task ran twice"
        assert [counts["object", number] for number in range(16)] == [1] * 16, "an object was computed again"
        del objects, array


@pytest.mark.parametrize("kind", ["sync", "threaded", "async"])
def test_calls_that_may_not_be_repeated_are_all_answered_and_no_restart_is_used_up(kind):
    with many_nodes(3) as nodes:

        class Once:
            def pid(self):
                return os.getpid()

            def die(self):
                os.kill(os.getpid(), signal.SIGKILL)

        class OnceAsync(Once):
            async def pid(self):
                return os.getpid()

        once = shoal.remote(OnceAsync if kind == "async" else Once)
        actor = once.options(
            num_cpus=0, max_restarts=1, max_task_retries=0, max_concurrency=1 if kind == "sync" else 4, scheduling_strategy=softly(nodes, 1)
        ).remote()
        first = shoal.get(actor.pid.remote())
        calls = [actor.pid.remote() for _ in range(2000)]
        drain(nodes, 1)
        while nodes.nodes[1].is_alive():
            calls += [actor.pid.remote() for _ in range(10)]
        gone(nodes, 1)
        calls.append(actor.pid.remote())
        pids = shoal.get(calls, timeout=PATIENCE_S)
        assert pids[-1] != first
        if kind == "sync":  # the others promise no order
            moved_at = next(index for index, pid in enumerate(pids) if pid != first)
            assert first not in pids[moved_at:], "in order: none after the move on the old process"
        actor.die.remote()  # the one restart that it has is still there
        wait_for(lambda: _answers(actor) not in (None, pids[-1]), PATIENCE_S, "the restart")


def _answers(actor):
    try:
        return shoal.get(actor.pid.remote(), timeout=PATIENCE_S)
    except shoal.exceptions.ActorUnavailableError:
        return None


def test_only_an_idle_node_is_drained_for_being_idle():
    with many_nodes(2) as nodes:
        stays = Counter.options(**nodes.on(1)).remote()
        shoal.get(stays.add.remote(1))
        with pytest.raises(RequestFailed, match="not idle: it has 1 actor"):
            drain(nodes, 1, DRAIN_IDLE)
        shoal.kill(stays)
        made = make.options(**nodes.on(1)).remote(Counter.options(**nodes.on(0)).remote(), 1)
        shoal.wait([made], fetch_local=False)

        def object_holds_it() -> bool:
            with pytest.raises(RequestFailed) as refused:
                drain(nodes, 1, DRAIN_IDLE)
            return refused.value.message == "The node is not idle: it has 1 object."

        wait_for(object_holds_it, PATIENCE_S, "the end of the actor and of the lease")
        assert not row(nodes, 1)["Draining"]
        del made

        def is_idle() -> bool:
            try:
                drain(nodes, 1, DRAIN_IDLE)
            except RequestFailed:
                return False
            return True

        wait_for(is_idle, PATIENCE_S, "the release of the object")
        assert gone(nodes, 1)["DeathReason"] == 4
        with pytest.raises(RequestFailed, match="no living node"):
            drain(nodes, 1)


def test_a_task_that_is_killed_at_the_deadline_runs_elsewhere_without_using_up_a_retry():
    with many_nodes(2) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()
        meet(nodes, 1)

        @shoal.remote(max_retries=1, num_cpus=1)
        def long(here):
            count = shoal.get(runs.add.remote("long"))
            if shoal.get_runtime_context().get_node_id() == here:
                time.sleep(600)
            if count == 2:  # this death counts, and there is a retry for it
                os.kill(os.getpid(), signal.SIGKILL)
            return count

        @shoal.remote(max_retries=0, num_cpus=0.01)
        def once(here):
            shoal.get(runs.add.remote("once"))
            time.sleep(600)

        here = nodes.id_of(1)
        running = long.options(scheduling_strategy=softly(nodes, 1)).remote(here)
        single = once.options(scheduling_strategy=softly(nodes, 1)).remote(here)
        wait_for(lambda: shoal.get(runs.all.remote()) == {"long": 1, "once": 1}, PATIENCE_S, "the tasks")
        drain(nodes, 1, deadline_s=1.0)
        assert shoal.get(running, timeout=PATIENCE_S) == 3
        with pytest.raises(shoal.exceptions.WorkerCrashedError, match="leaves the cluster"):
            shoal.get(single, timeout=PATIENCE_S)
        gone(nodes, 1)


def test_an_actor_that_may_not_be_restarted_works_until_the_deadline():
    with many_nodes(2) as nodes:
        stays = Counter.options(**nodes.on(1)).remote()
        shoal.get(stays.add.remote(1))
        drain(nodes, 1)
        wait_for(lambda: row(nodes, 1)["Draining"], PATIENCE_S, "the drain")
        assert shoal.get(stays.add.remote(1)) == 2
        drain(nodes, 1, deadline_s=0.0)  # the deadline comes forward
        gone(nodes, 1)
        with pytest.raises(shoal.exceptions.ActorDiedError) as died:
            shoal.get(stays.add.remote(1), timeout=PATIENCE_S)
        assert died.value.preempted


def test_bundles_and_what_waits_for_them_go_to_another_node():
    with many_nodes(3) as nodes:
        group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
        assert group.wait(PATIENCE_S)

        @shoal.remote(num_cpus=1, max_retries=0)
        def where():
            time.sleep(0.2)
            return shoal.get_runtime_context().get_node_id()

        at = [PlacementGroupSchedulingStrategy(group, bundle) for bundle in (0, 1)]
        before = shoal.get([where.options(scheduling_strategy=one).remote() for one in at])
        leaving = next(index for index in (1, 2) if nodes.id_of(index) in before)
        bundle = before.index(nodes.id_of(leaving))
        queued = [where.options(scheduling_strategy=at[bundle]).remote() for _ in range(6)]
        drain(nodes, leaving)
        gone(nodes, leaving)
        places = shoal.get(queued, timeout=PATIENCE_S)
        assert set(places) <= {one for one in map(nodes.id_of, range(3)) if one not in before} | {nodes.id_of(leaving)}
        assert places[-1] != nodes.id_of(leaving)
        remove_placement_group(group)


def test_the_removal_of_a_group_ends_its_tasks_on_a_node_that_drains_too():
    with many_nodes(3) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()
        group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
        assert group.wait(PATIENCE_S)

        @shoal.remote(num_cpus=1, max_retries=0)
        def stay():
            shoal.get(runs.add.remote(shoal.get_runtime_context().get_node_id()))
            time.sleep(600)

        running = [stay.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle)).remote() for bundle in (0, 1)]
        wait_for(lambda: len(shoal.get(runs.all.remote())) == 2, PATIENCE_S, "the tasks")
        leaving = next(index for index in (1, 2) if nodes.id_of(index) in shoal.get(runs.all.remote()))
        drain(nodes, leaving)
        wait_for(lambda: row(nodes, leaving)["Draining"], PATIENCE_S, "the drain")
        remove_placement_group(group)
        for ref in running:
            with pytest.raises(shoal.exceptions.WorkerCrashedError, match="placement group was removed"):
                shoal.get(ref, timeout=PATIENCE_S)
        gone(nodes, leaving)


def test_work_goes_on_when_the_node_is_killed_in_the_middle_of_its_drain():
    with many_nodes(3) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()
        meet(nodes, 1)
        actors = [Moves.options(scheduling_strategy=softly(nodes, 1)).remote() for _ in range(2)]
        shoal.get([actor.echo.remote(0) for actor in actors])
        stays = Counter.options(**nodes.on(1)).remote()  # keeps the node
        shoal.get(stays.add.remote(1))
        objects = [make.options(scheduling_strategy=softly(nodes, 1)).remote(runs, number) for number in range(16)]
        load = Load(runs, actors)
        try:
            wait_for(lambda: len(load.tasks) > 20, PATIENCE_S, "some load")
            drain(nodes, 1)
            nodes.kill(1)
            gone(nodes, 1)
        finally:
            load.stop()
        assert shoal.get(load.tasks, timeout=PATIENCE_S) == list(range(len(load.tasks)))
        assert len(shoal.get(load.calls, timeout=PATIENCE_S)) == len(load.calls)
        for number, array in enumerate(shoal.get(objects, timeout=PATIENCE_S)):
            assert array[0] == number
        del objects, array


def test_a_drain_goes_on_without_the_control_store_and_with_its_successor():
    with many_nodes(3, keep_control=True) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()
        meet(nodes, 1)
        actor = Moves.options(scheduling_strategy=softly(nodes, 1)).remote()
        shoal.get(actor.echo.remote(0))
        release = Counter.options(**nodes.on(0)).remote()

        @shoal.remote(num_cpus=0, max_retries=0)
        def until_told():
            shoal.get(runs.add.remote("here"))
            while not shoal.get(release.all.remote()):
                time.sleep(0.01)
            return "done"

        running = until_told.options(scheduling_strategy=softly(nodes, 1)).remote()
        objects = [make.options(scheduling_strategy=softly(nodes, 1)).remote(runs, number) for number in range(8)]
        wait_for(lambda: len(shoal.get(runs.all.remote())) == 9, PATIENCE_S, "what is to stay")
        drain(nodes, 1)
        killed = nodes.kill_control()
        wait_for(lambda: nodes.control_pid not in (0, killed), PATIENCE_S, "the next control store")
        assert row(nodes, 1)["Draining"]
        shoal.get(release.add.remote("go"))
        assert shoal.get(running, timeout=PATIENCE_S) == "done"
        assert gone(nodes, 1)["DeathReasonMessage"].startswith("drained: ")
        assert shoal.get(actor.echo.remote(1), timeout=PATIENCE_S)[1] != nodes.id_of(1)
        assert len(shoal.get(objects, timeout=PATIENCE_S)) == 8
        assert all(count == 1 for key, count in shoal.get(runs.all.remote()).items()), "an object was computed again"
        del objects


def test_objects_go_elsewhere_when_their_owners_node_has_no_room():
    """The driver's node holds what is being read; there is no room for more, and nothing of it can be spilled."""
    with many_nodes(3) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()
        held = shoal.get([shoal.put(np.ones(9 * MIB, dtype=np.uint8)) for _ in range(8)])
        objects = [make.options(resources={"n1": 0.001}).remote(runs, number, 9 * MIB) for number in range(4)]
        shoal.wait(objects, num_returns=len(objects), fetch_local=False)
        drain(nodes, 1)
        gone(nodes, 1)
        del held

        @shoal.remote(num_cpus=0)
        def first(array):
            return int(array[0])

        assert shoal.get([first.options(**nodes.on(2)).remote(ref) for ref in objects], timeout=PATIENCE_S) == [0, 1, 2, 3]
        counts = shoal.get(runs.all.remote())
        assert [counts["object", number] for number in range(4)] == [1] * 4
        del objects


def test_a_worker_of_a_drained_node_is_gone_with_it():
    with many_nodes(2) as nodes:
        pid = shoal.get(shoal.remote(os.getpid).options(**nodes.on(1)).remote())
        drain(nodes, 1)
        gone(nodes, 1)
        wait_for(lambda: not is_running(pid), PATIENCE_S, "the end of the worker")


@shoal.remote(num_cpus=0)
class Owner:
    """Owns what it puts, and results of its tasks."""

    def make(self):
        return make_all_kinds()


@shoal.remote(num_cpus=0)
class Keeper:
    def keep(self, held):
        self.held = held

    def read(self):
        return values_of(self.held)


def make_all_kinds():
    small, large = shoal.put("small"), shoal.put(np.full(MIB, 7, dtype=np.uint8))
    inside = shoal.put({"inner": shoal.put("inside of another")})
    task = shoal.remote(lambda: np.full(MIB, 9, dtype=np.uint8)).options(num_cpus=0).remote()
    shoal.wait([task], fetch_local=False)
    return [small, large, inside, task]


def values_of(refs):
    small, large, inside, task = shoal.get(refs, timeout=PATIENCE_S)
    return small, int(large[0]), shoal.get(inside["inner"], timeout=PATIENCE_S), int(task[0])


def lie_somewhere(nodes: Nodes, object_ids: list[bytes]) -> list[bool]:
    """Tell which of the objects lie in a store of the nodes 0 and 2."""
    core = holder.current().core

    async def look():
        found = []
        for object_id in object_ids:
            places = [(await core.store.pin([object_id], [Stored(bytes.fromhex(nodes.id_of(at)), MIB)]))[0] for at in (0, 2)]
            for place in places:
                if place is not None:
                    core.store.unpin(object_id)
            found.append(any(place is not None for place in places))
        return found

    return asyncio.run_coroutine_threadsafe(look(), core.loop).result(PATIENCE_S)


@pytest.mark.parametrize("kind", ["actor", "worker"])
def test_what_was_owned_on_the_node_has_an_owner_elsewhere(kind):
    with many_nodes(3) as nodes:
        meet(nodes, 1)
        if kind == "actor":
            owner = Owner.options(max_restarts=1, scheduling_strategy=softly(nodes, 1)).remote()
            held = shoal.get(owner.make.remote())
        else:
            held = shoal.get(shoal.remote(make_all_kinds).options(num_cpus=0, resources={"n1": 0.001}).remote())
        keeper = Keeper.options(**nodes.on(2)).remote()
        shoal.get(keeper.keep.remote(held))
        drain(nodes, 1)
        gone(nodes, 1)
        assert values_of(held) == ("small", 7, "inside of another", 9)
        stored = [held[1].binary(), held[3].binary()]
        assert lie_somewhere(nodes, stored) == [True, True]
        del held
        assert shoal.get(keeper.read.remote(), timeout=PATIENCE_S) == ("small", 7, "inside of another", 9)
        shoal.get(keeper.keep.remote(None))
        wait_for(lambda: lie_somewhere(nodes, stored) == [False, False], PATIENCE_S, "the release of what nobody holds")


def test_what_was_owned_there_is_handed_on_though_a_task_runs_until_the_deadline():
    with many_nodes(2) as nodes:
        meet(nodes, 1)
        runs = Counter.options(**nodes.on(0)).remote()

        @shoal.remote(num_cpus=0, max_retries=0)
        def stay():
            shoal.get(runs.add.remote("here"))
            time.sleep(600)

        staying = stay.options(**nodes.on(1)).remote()
        owner = Owner.options(max_restarts=1, scheduling_strategy=softly(nodes, 1)).remote()
        held = shoal.get(owner.make.remote())
        wait_for(lambda: shoal.get(runs.all.remote()), PATIENCE_S, "the task")
        drain(nodes, 1, deadline_s=5.0)
        gone(nodes, 1)
        assert values_of(held) == ("small", 7, "inside of another", 9)
        with pytest.raises(shoal.exceptions.WorkerCrashedError, match="leaves the cluster"):
            shoal.get(staying, timeout=PATIENCE_S)
        del held


def test_items_of_a_stream_that_runs_on_are_all_there_and_made_once():
    with many_nodes(2) as nodes:
        runs = Counter.options(**nodes.on(0)).remote()
        meet(nodes, 1)

        @shoal.remote(num_cpus=0, num_returns="streaming")
        def items(runs):
            for number in range(24):
                shoal.get(runs.add.remote(number))
                yield np.full(MIB, number, dtype=np.uint8)

        stream = items.options(scheduling_strategy=softly(nodes, 1)).remote(runs)
        wait_for(lambda: shoal.get(runs.all.remote()), PATIENCE_S, "the first item")
        drain(nodes, 1)
        gone(nodes, 1)
        for number, ref in enumerate(stream):
            array = shoal.get(ref, timeout=PATIENCE_S)
            assert array[0] == number
            del array
        assert shoal.get(runs.all.remote()) == dict.fromkeys(range(24), 1)
