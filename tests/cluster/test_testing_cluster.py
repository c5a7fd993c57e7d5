"""The faults of `shoal.testing`, one by one: each is seen to do what it says, and only that."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

import shoal
from shoal import exceptions
from shoal._base import processes
from shoal.testing import fresh_cluster, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]

MIB = 1 << 20


@pytest.fixture(scope="module")
def cluster():
    with fresh_cluster(object_store_memory=100 * MIB) as cluster:
        yield cluster


@shoal.remote
def pid():
    return os.getpid()


@shoal.remote(max_retries=0)
def once():
    return os.getpid()


@shoal.remote
def stored(size):
    return bytes(size)


@shoal.remote
def count_to(n):
    yield from range(n)


@shoal.remote
class Plain:
    def __init__(self, start=0):
        self.n = start

    def add(self):
        self.n += 1
        return self.n

    def pid(self):
        return os.getpid()

    def count_to(self, n):
        yield from range(n)


@shoal.remote
class Async:
    async def add(self):
        await asyncio.sleep(0)
        return 1

    async def count_to(self, n):
        for i in range(n):
            yield i


def error_of(ref):
    try:
        shoal.get(ref, timeout=20)
    except exceptions.RayTaskError as error:
        return error


# --- calls ---------------------------------------------------------------------------------------------------


def test_the_next_calls_fail_and_those_after_them_do_not(cluster):
    fault = cluster.fail_next(once, OSError("disk on fire"), times=2)
    refs = [once.remote() for _ in range(20)]
    errors = [error for error in map(error_of, refs) if error is not None]
    assert ([type(error.cause) for error in errors], fault.taken) == ([OSError] * 2, 2)
    assert all("disk on fire" in str(error) for error in errors)


def test_a_fault_is_retried_like_any_error(cluster):
    fault = cluster.fail_next("pid", ValueError, times=2)
    assert shoal.get(pid.options(retry_exceptions=[ValueError], max_retries=2).remote(), timeout=20)
    assert fault.taken == 2


def test_faults_come_in_the_order_of_their_orders(cluster):
    cluster.fail_next(once, KeyError("first"))
    cluster.fail_next(once, IndexError("second"))
    with pytest.raises(KeyError):
        shoal.get(once.remote())
    with pytest.raises(IndexError):
        shoal.get(once.remote())
    assert shoal.get(once.remote())


def test_a_fault_that_is_withdrawn_is_met_by_nobody(cluster):
    fault = cluster.fail_next(once, ValueError)
    fault.withdraw()
    assert shoal.get(once.remote())
    assert fault.taken == 0
    with pytest.raises(TimeoutError, match="in once"):
        fault.wait_taken(timeout_s=0.01)


@pytest.mark.parametrize("actor_class", [Plain, Async])
def test_methods_of_actors_fail(cluster, actor_class):
    actor = actor_class.remote()
    cluster.fail_next(actor.add, ValueError("not today"))
    with pytest.raises(ValueError, match="not today"):
        shoal.get(actor.add.remote())
    assert shoal.get(actor.add.remote()) == 1


def test_constructors_fail(cluster):
    cluster.fail_next(Plain, ValueError("no such thing"))
    actor = Plain.remote()
    with pytest.raises(exceptions.ActorDiedError, match="no such thing"):
        shoal.get(actor.add.remote(), timeout=20)


def test_generators_fail_before_their_first_item(cluster):
    for make in (lambda: count_to, lambda: Plain.remote().count_to, lambda: Async.remote().count_to):
        function = make()
        cluster.fail_next(function, ValueError("empty"))
        stream = function.options(num_returns="streaming").remote(3)
        with pytest.raises(ValueError, match="empty"):
            shoal.get(next(stream), timeout=20)
        stream = function.options(num_returns="streaming").remote(3)
        assert [shoal.get(ref) for ref in stream] == [0, 1, 2]


def test_the_next_call_crashes_its_worker(cluster):
    fault = cluster.crash_next(once, number=signal.SIGABRT)
    with pytest.raises(exceptions.WorkerCrashedError, match="SIGABRT"):
        shoal.get(once.remote(), timeout=20)
    assert fault.taken == 1
    cluster.crash_next(pid, times=2)
    assert shoal.get(pid.remote(), timeout=20)


def test_the_next_call_takes_longer(cluster):
    fault = cluster.delay_next(once, 0.3)
    begin = time.monotonic()
    shoal.get(once.remote())
    assert time.monotonic() - begin >= 0.3
    assert fault.taken == 1


@pytest.mark.parametrize("actor_class", [Plain, Async])
def test_calls_wait_until_they_are_let_go(cluster, actor_class):
    actor = actor_class.remote()
    with cluster.hold_next(once) as hold, cluster.hold_next(actor.add) as held_call:
        task, call = once.remote(), actor.add.remote()
        hold.wait_taken()
        held_call.wait_taken()
        assert shoal.wait([task, call], timeout=0)[0] == []
        assert cluster.wait_running(once) in [worker.pid for worker in cluster.workers() if "once" in worker.running]
        cluster.wait_running(actor.add)
    assert shoal.get([task, call], timeout=20)[1] == 1
    assert shoal.get(once.remote(), timeout=20)  # nobody is held any more
    hold.release()


def test_a_held_call_can_be_cancelled(cluster):
    with cluster.hold_next(once):
        ref = once.remote()
        cluster.wait_running(once)
        shoal.cancel(ref)
        with pytest.raises(exceptions.TaskCancelledError):
            shoal.get(ref, timeout=20)
        wait_for(lambda: not any(worker.running for worker in cluster.workers()), what="the end of the call")


def test_faults_that_make_no_sense_are_refused(cluster):
    with pytest.raises(ValueError, match="times must be at least 1"):
        cluster.fail_next(once, ValueError, times=0)
    with pytest.raises(TypeError):
        cluster.fail_next(once, ValueError(threading.Lock()))


# --- processes -------------------------------------------------------------------------------------------------


def test_the_worker_that_runs_a_function_is_killed(cluster):
    actor = Plain.remote()
    bystander = shoal.get(actor.pid.remote())
    with cluster.hold_next(once):
        ref = once.remote()
        killed = cluster.kill_worker(running=once)
    with pytest.raises(exceptions.WorkerCrashedError, match=str(killed)):
        shoal.get(ref, timeout=20)
    assert not processes.is_running(killed)
    assert shoal.get(actor.pid.remote()) == bystander


def test_the_worker_of_an_actor_is_killed(cluster):
    actor, other = Plain.options(max_restarts=1).remote(), Plain.remote()
    first, bystander = shoal.get([actor.pid.remote(), other.pid.remote()])
    assert cluster.kill_worker(actor=actor) == first
    assert wait_for(lambda: cluster.kill_worker(actor=actor), 20) != first
    with pytest.raises(exceptions.ActorDiedError):
        shoal.get(actor.pid.remote(), timeout=20)
    assert shoal.get(other.pid.remote()) == bystander


def test_an_idle_worker_is_killed_and_no_other(cluster):
    actor = Plain.remote()
    shoal.get(actor.add.remote())
    assert [worker.actor for worker in cluster.workers()].count("Plain") >= 1
    shoal.get(pid.remote())
    with cluster.hold_next(once):
        ref = once.remote()
        busy = cluster.wait_running(once)
        assert cluster.kill_worker(idle=True) != busy
    assert shoal.get(ref) == busy
    assert shoal.get(actor.add.remote()) == 2


def test_a_worker_is_killed_by_pid_and_nothing_else_is(cluster):
    victim = shoal.get(pid.remote())
    assert cluster.kill_worker(pid=victim) == victim
    for stranger in (os.getpid(), cluster.head_pid):
        with pytest.raises(ValueError, match="is no worker of this session"):
            cluster.kill_worker(pid=stranger)
    with pytest.raises(ValueError, match="Give one of"):
        cluster.kill_worker(pid=victim, idle=True)
    with pytest.raises(TimeoutError, match="a worker that runs nothing_like_it"):
        cluster.kill_worker(running="nothing_like_it", timeout_s=0.05)
    shoal.get(pid.remote())
    assert cluster.kill_worker()


def test_a_paused_worker_does_nothing_until_it_is_resumed(cluster):
    actor = Plain.remote()
    worker = shoal.get(actor.pid.remote())
    with cluster.paused(worker):
        ref = actor.add.remote()
        assert wait_for(lambda: processes.read_stat(worker).state == "T")
        assert shoal.wait([ref], timeout=0.1)[0] == []
    assert shoal.get(ref, timeout=20) == 1
    with pytest.raises(ValueError, match="does not belong to this session"):
        cluster.pause(os.getpid())


def test_a_killed_template_is_replaced(cluster):
    old = cluster.kill_template()
    assert wait_for(lambda: cluster.template_pid, 20) != old
    cluster.crash_next(pid)
    assert shoal.get(pid.remote(), timeout=20)


def test_chaos_kills_workers_and_work_goes_on(cluster):
    @shoal.remote(max_retries=-1)
    def slow_square(x):
        time.sleep(0.002)
        return x * x

    with cluster.chaos(seed=3, kills_per_s=20) as chaos:
        refs = [slow_square.remote(x) for x in range(500)]
        wait_for(lambda: len(chaos.killed) >= 3, 30, "the third kill")
        assert shoal.get(refs, timeout=50) == [x * x for x in range(500)]
    assert not any(map(processes.is_running, chaos.killed))
    with pytest.raises(ValueError, match="kills_per_s must be positive"):
        cluster.chaos(seed=1, kills_per_s=0)


# --- objects -----------------------------------------------------------------------------------------------------


def test_a_lost_result_is_computed_again_and_a_lost_put_is_an_error(cluster):
    fault = cluster.delay_next(stored, 0, times=2)
    ref = stored.remote(MIB)
    cluster.lose_object(ref)
    assert len(shoal.get(ref, timeout=20)) == MIB
    assert fault.taken == 2
    put = shoal.put(bytes(MIB))
    cluster.lose_object(put)
    with pytest.raises(exceptions.ObjectLostError):
        shoal.get(put, timeout=20)


def test_what_has_no_stored_copy_cannot_lose_it(cluster):
    with pytest.raises(ValueError, match="has no stored copy to lose"):
        cluster.lose_object(shoal.put(1))
    with cluster.hold_next(stored):
        with pytest.raises(TimeoutError, match="is not ready"):
            cluster.lose_object(stored.remote(MIB), timeout_s=0.05)


def test_a_full_store_has_everything_else_on_disk(cluster):
    ref = shoal.put(bytes([7]) * 20 * MIB)
    spilled = cluster.session_dir / "spill"
    assert not [path for path in spilled.rglob("*") if path.is_file()]
    with cluster.full_store():
        assert [path for path in spilled.rglob("*") if path.is_file()]
    assert shoal.get(ref, timeout=20) == bytes([7]) * 20 * MIB


# --- the cluster itself ------------------------------------------------------------------------------------------
