"""What random programs have found, each as a program of its own: run under many delays, with nothing left at the end."""

from __future__ import annotations

import pytest

import shoal
from shoal.exceptions import ActorDiedError, OwnerDiedError, WorkerCrashedError
from shoal.testing.simulation.cluster import SimulatedCluster
from shoal.testing.simulation.processes import kill_this_process
from shoal.testing.simulation.threads import pause
from shoal.testing.simulation.world import INLINE_BYTES, Chances
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

pytestmark = pytest.mark.timeout(120)

LARGE = b"x" * (INLINE_BYTES + 1)
#: Virtual seconds after which an idle worker has left.
UNTIL_IDLE_WORKERS_LEAVE_S = 40.0


def run(program, *, seeds=range(12), cpus=2, nodes=1):
    """Run the driver's program under the delays of each seed, and check that nothing is left."""
    for seed in seeds:
        with SimulatedCluster(seed, Chances(nodes=(cpus,) * nodes)) as cluster:
            cluster.run(lambda: program(cluster))  # it ends before the next seed begins
            cluster.check_nothing_left()


@shoal.remote
def nothing():
    pass


@shoal.remote
def give_back(held):
    return held


@shoal.remote
def put_inside():
    return [shoal.put("in the memory of its owner")]


@shoal.remote
def later(seconds):
    pause(seconds)
    return "late"


@shoal.remote
def start_and_leave(seconds):
    return [later.remote(seconds)]


@shoal.remote
class Maker:
    def put(self, value):
        return [shoal.put(value)]

    def look(self, held):
        return type(held).__name__

    def keep(self, held):
        self.kept = held

    def run_a_task(self):
        return shoal.get(later.remote(0.001))


@shoal.remote
def make_a_maker():
    return [Maker.remote()]


@shoal.remote(max_retries=0)
def crash():
    kill_this_process()


def test_a_driver_forgets_an_actor_that_was_killed_before_its_handle_went():
    def program(_cluster):
        actor = Maker.remote()
        shoal.get(actor.look.remote(1))
        shoal.kill(actor)
        pause(1.0)

    run(program)


def test_a_reply_that_waits_for_registrations_leaves_before_the_next_task_can_crash_the_process():
    def program(_cluster):
        shoal.get([nothing.options(max_retries=0).remote() for _ in range(20)])  # short tasks: several are queued on each worker
        inner = shoal.put(1)
        replies = give_back.options(max_retries=0).remote([inner])
        doomed = crash.remote()
        assert len(shoal.get(replies)) == 1
        with pytest.raises(WorkerCrashedError):
            shoal.get(doomed)

    run(program, seeds=range(40), cpus=1)


def test_a_removal_that_crosses_the_hand_over_of_its_owner_is_passed_on():
    def program(cluster):
        actor = Maker.remote()
        held = [shoal.get(actor.put.remote(value)) for value in (1, LARGE)]
        del actor
        pause(cluster.random.random() * 0.01)
        del held

    run(program, seeds=range(40))


def test_what_an_ended_actor_borrowed_is_given_back_to_the_successor_of_the_actor():
    def program(_cluster):
        actor = Maker.remote()
        made = actor.put.remote(1)
        shoal.get(actor.keep.remote([made]))

    run(program)


def test_an_owner_that_leaves_returns_its_leases_so_that_the_workers_live_on():
    def program(_cluster):
        inner = shoal.get(put_inside.remote())[0]  # owned by the worker that the actor's task runs on next
        actor = Maker.remote()
        assert shoal.get(actor.run_a_task.remote()) == "late"
        del actor
        pause(1.0)
        assert shoal.get(inner) == "in the memory of its owner"

    run(program, cpus=1)


def test_an_idle_worker_stays_until_the_tasks_that_it_submitted_are_done():
    def program(_cluster):
        [late] = shoal.get(start_and_leave.remote(UNTIL_IDLE_WORKERS_LEAVE_S))
        assert shoal.get(late) == "late"

    run(program, seeds=range(4))


def test_an_actor_without_handles_stays_until_the_tasks_that_it_submitted_are_done():
    @shoal.remote
    class Starter:
        def start(self):
            return [later.remote(UNTIL_IDLE_WORKERS_LEAVE_S)]

    def program(_cluster):
        [late] = shoal.get(Starter.remote().start.remote())
        assert shoal.get(late) == "late"

    run(program, seeds=range(4))


def test_an_idle_worker_stays_as_long_as_others_hold_an_actor_of_its():
    def program(_cluster):
        [actor] = shoal.get(make_a_maker.remote())
        pause(UNTIL_IDLE_WORKERS_LEAVE_S)
        assert shoal.get(actor.look.remote(1)) == "int"

    run(program, seeds=range(4))


def test_a_result_that_was_stored_before_its_task_failed_is_freed():
    class Unpicklable:
        def __reduce__(self):
            raise TypeError("this cannot be pickled")

    @shoal.remote(num_returns=2, max_retries=0)
    def fail_half_way():
        return LARGE, Unpicklable()

    def program(_cluster):
        first, second = fail_half_way.remote()
        for ref in (first, second):
            with pytest.raises(TypeError, match="cannot be pickled"):
                shoal.get(ref)

    run(program, seeds=range(4))


def test_a_reference_on_its_way_home_is_not_counted_for_ever_when_its_carrier_dies():
    def program(cluster):
        carried = [give_back.options(max_retries=0).remote([shoal.put(LARGE)]) for _ in range(4)]
        pause(0.02 + cluster.random.random() * 0.03)
        cluster.kill_some_worker(cluster.random.randrange(10))
        for ref in carried:
            try:
                shoal.get(shoal.get(ref)[0])
            except WorkerCrashedError:
                pass  # the worker that was killed had it

    run(program, seeds=range(60))


@shoal.remote
def make_large():
    return LARGE


@shoal.remote
class Holder:
    def __init__(self, value):
        self.value = value

    def nbytes(self):
        return len(self.value)


def test_a_lost_argument_of_a_constructor_is_computed_again():
    def program(cluster):
        value = make_large.remote()
        shoal.wait([value])
        cluster.lose(value.binary())
        actor = Holder.options(max_restarts=1, max_task_retries=1).remote(value)
        assert shoal.get(actor.nbytes.remote()) == len(LARGE)
        cluster.lose(value.binary())
        shoal.kill(actor, no_restart=False)
        assert shoal.get(actor.nbytes.remote()) == len(LARGE)

    run(program, seeds=range(6))


def test_an_actor_whose_constructor_needs_a_lost_value_of_put_says_so():
    def program(cluster):
        value = shoal.put(LARGE)
        cluster.lose(value.binary())
        with pytest.raises(ActorDiedError, match="made by put"):
            shoal.get(Holder.remote(value).nbytes.remote())

    run(program, seeds=range(4))


# --- several nodes ----------------------------------------------------------------------------------------


def at(cluster, position):
    """Return the options that have something run on this node."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(cluster.nodes[position].node_id.hex(), soft=False)}


def test_a_detached_actor_that_dies_during_a_call_is_forgotten():
    @shoal.remote
    class Sleeper:
        def sleep(self):
            pause(5.0)

    def program(_cluster):
        actor = Sleeper.options(name="sleeper", lifetime="detached").remote()
        doomed = actor.sleep.remote()
        pause(0.5)
        shoal.kill(actor)
        with pytest.raises(ActorDiedError):
            shoal.get(doomed)

    run(program, nodes=3)


def test_a_worker_that_leaves_frees_what_lies_on_nodes_that_it_never_talked_to():
    @shoal.remote(max_calls=1)
    def call_and_leave(actor):
        actor.make.remote()

    @shoal.remote
    class LargeMaker:
        def make(self):
            pause(0.3)
            return LARGE

    def program(cluster):
        actor = LargeMaker.options(**at(cluster, 1)).remote()
        shoal.get(call_and_leave.options(**at(cluster, 2)).remote(actor))
        pause(1.0)

    run(program, nodes=3)


class EndsItsProcess:
    """Pickled after what stands before it is stored."""

    def __reduce__(self):
        pause(0.1)  # so that it is known to be stored
        kill_this_process()
        raise AssertionError("it lives on")


def test_what_a_failed_attempt_on_another_node_had_stored_is_freed():
    @shoal.remote(num_returns=2, max_retries=0)
    def store_and_crash():
        return LARGE, EndsItsProcess()

    @shoal.remote
    class Storing:
        @shoal.method(num_returns=2)
        def store_and_crash(self):
            return LARGE, EndsItsProcess()

    def program(cluster):
        for ref in store_and_crash.options(**at(cluster, 1)).remote():
            with pytest.raises(WorkerCrashedError):
                shoal.get(ref)
        for ref in Storing.options(**at(cluster, 2)).remote().store_and_crash.remote():
            with pytest.raises(ActorDiedError):
                shoal.get(ref)

    run(program, nodes=3)


def test_what_an_attempt_had_stored_before_the_next_one_ran_elsewhere_is_freed():
    @shoal.remote(num_returns=2, max_retries=10, scheduling_strategy="SPREAD")
    def crash_on(node_id):
        return LARGE, EndsItsProcess() if shoal.get_runtime_context().get_node_id() == node_id else LARGE

    def program(cluster):
        refs = [ref for _ in range(4) for ref in crash_on.remote(cluster.nodes[1].node_id.hex())]
        assert {len(value) for value in shoal.get(refs)} == {len(LARGE)}

    run(program, nodes=3)


@shoal.remote
class LargeMaker:
    def make(self):
        return LARGE


@shoal.remote
class Owner:
    """Owns what another actor stores, on the node of that actor."""

    def own(self, maker):
        self.owned = [maker.make.remote()]
        shoal.wait(self.owned, fetch_local=False)
        return self.owned


def own_elsewhere(cluster):
    """Return an actor of node 1 and the list of what it owns, stored on node 2."""
    maker = LargeMaker.options(**at(cluster, 2)).remote()
    owner = Owner.options(**at(cluster, 1)).remote()
    return owner, shoal.get(owner.own.remote(maker))


def test_what_a_killed_owner_had_on_another_node_is_read_by_those_who_hold_it():
    def program(cluster):
        owner, held = own_elsewhere(cluster)
        pause(cluster.random.random() * 0.1)
        shoal.kill(owner)
        pause(cluster.random.random() * 0.1)
        assert shoal.get(held[0]) == LARGE

    run(program, nodes=3, seeds=range(30))


def test_what_a_killed_owner_had_on_another_node_is_freed_when_nobody_holds_it():
    def program(cluster):
        owner, held = own_elsewhere(cluster)
        del held
        shoal.kill(owner)

    run(program, nodes=3)


def test_what_an_owner_of_a_dead_node_had_on_another_is_freed():
    def program(cluster):
        _owner, held = own_elsewhere(cluster)
        cluster.loop.call_soon(cluster.nodes[1].kill)
        with pytest.raises((OwnerDiedError, ActorDiedError)):
            shoal.get(held[0])

    run(program, nodes=3)


def test_what_an_owner_has_handed_over_lives_as_long_as_its_holder_on_another_node():
    def program(cluster):
        actor = Maker.options(**at(cluster, 1)).remote()
        [held] = shoal.get(actor.put.remote("handed over"))
        del actor
        pause(UNTIL_IDLE_WORKERS_LEAVE_S)
        assert shoal.get(held) == "handed over"

    run(program, nodes=3, seeds=range(6))


def test_an_actor_lives_and_ends_with_an_object_that_has_its_handle_inside():
    @shoal.remote
    def return_it(held):
        return held

    @shoal.remote
    def lend_inside():
        return [return_it.remote([Maker.remote()])]

    def program(_cluster):
        [box] = shoal.get(lend_inside.remote())
        pause(UNTIL_IDLE_WORKERS_LEAVE_S)
        [actor] = shoal.get(box)
        assert shoal.get(actor.look.remote(1)) == "int"

    run(program, seeds=range(6))


def test_an_adopted_object_whose_node_dies_is_found_where_it_was_read():
    @shoal.remote
    def length(held):
        return len(shoal.get(held[0]))

    def program(cluster):
        owner, held = own_elsewhere(cluster)
        shoal.kill(owner)
        pause(0.5)
        assert shoal.get(length.options(**at(cluster, 0)).remote(held)) == len(LARGE)  # a copy is on this node now
        cluster.loop.call_soon(cluster.nodes[2].kill)
        pause(1.0)
        assert shoal.get(held[0]) == LARGE
        assert shoal.get(length.options(**at(cluster, 1)).remote(held)) == len(LARGE)

    run(program, nodes=3)
