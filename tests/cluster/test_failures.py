"""What a task's owner sees when workers, objects and owners are lost: retries, clear errors, recomputed values."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import shoal
from shoal import exceptions

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20


@pytest.fixture
def cluster():
    context = shoal.init(num_cpus=2, object_store_memory=100 * MIB)
    yield Path(context.address_info["session_dir"])
    shoal.shutdown()


def wait_for(condition, timeout_s=10.0, what="the condition"):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.01)
    return found


def runs(path):
    return path.stat().st_size if path.exists() else 0


@shoal.remote
def run_and_die(path, deaths):
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) <= deaths:
        print("my last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


# --- killed workers ---------------------------------------------------------------------------------------


def test_a_killed_task_runs_twice_with_one_retry(cluster, tmp_path):
    marks = tmp_path / "runs"
    assert shoal.get(run_and_die.options(max_retries=1).remote(marks, 1), timeout=10) == "done"
    assert runs(marks) == 2


def test_a_task_killed_more_often_than_its_retries_fails(cluster, tmp_path):
    marks = tmp_path / "runs"
    with pytest.raises(exceptions.WorkerCrashedError, match="attempt 3 of 3"):
        shoal.get(run_and_die.options(max_retries=2).remote(marks, 99), timeout=10)
    assert runs(marks) == 3


def test_without_retries_the_error_has_signal_and_last_words_at_once(cluster, tmp_path):
    shoal.get(run_and_die.remote(tmp_path / "warm", 0))
    begin = time.monotonic()
    with pytest.raises(exceptions.WorkerCrashedError) as caught:
        shoal.get(run_and_die.options(max_retries=0).remote(tmp_path / "runs", 99), timeout=10)
    assert time.monotonic() - begin < 1.0
    assert "SIGKILL" in str(caught.value)
    assert "my last words" in str(caught.value)
    assert runs(tmp_path / "runs") == 1


def test_tasks_queued_behind_a_killed_one_run_even_without_retries(cluster):
    @shoal.remote(max_retries=0)
    def task(number):
        if number == 0:
            time.sleep(0.05)  # lets the reply of what ran before leave
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    shoal.get([task.remote(1) for _ in range(500)])  # short tasks: many are queued on each worker
    refs = [task.remote(number) for number in range(300)]
    with pytest.raises(exceptions.WorkerCrashedError):
        shoal.get(refs[0], timeout=10)
    assert shoal.get(refs[1:], timeout=20) == list(range(1, 300))


def test_random_kills_lose_no_result(cluster):
    @shoal.remote(max_retries=-1)
    def square(number):
        time.sleep(0.001)
        return number * number, os.getpid()

    refs = [square.remote(number) for number in range(2000)]
    pids = {shoal.get(refs[0])[1]}
    stop = threading.Event()
    draw = random.Random(7)

    def kill_now_and_then():
        from shoal._base import processes

        while not stop.wait(0.1):
            workers = [
                one.pid
                for one in processes.iter_stats()
                if one.state != "Z"
                and processes.mark_of(one.pid, processes.SESSION_MARK) == cluster.name
                and processes.mark_of(one.pid, processes.WORKER_MARK) not in ("", processes.NO_WORKER)
            ]
            if workers:
                pid = draw.choice(workers)
                pids.add(pid)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        results = shoal.get(refs, timeout=50)
    finally:
        stop.set()
        killer.join()
    assert [value for value, _ in results] == [number * number for number in range(2000)]
    assert len(pids) > 3


def test_sys_exit_in_a_task_is_an_error_and_the_next_task_runs(cluster):
    @shoal.remote(max_retries=0)
    def leave():
        sys.exit(3)

    with pytest.raises((SystemExit, exceptions.WorkerCrashedError)):
        shoal.get(leave.remote(), timeout=10)

    @shoal.remote(max_retries=0)
    def pid():
        return os.getpid()

    assert shoal.get([pid.remote() for _ in range(20)], timeout=10)


# --- retry_exceptions -------------------------------------------------------------------------------------


@shoal.remote
def fail(path, kind):
    with open(path, "a") as file:
        file.write("x")
    raise kind("again")


@pytest.mark.parametrize(
    ("retry", "kind", "expected"),
    [
        (True, ValueError, 3),
        ([ValueError], ValueError, 3),
        ([KeyError, OSError], FileNotFoundError, 3),
        ([KeyError], ValueError, 1),
        (False, ValueError, 1),
    ],
)
def test_retry_exceptions(cluster, tmp_path, retry, kind, expected):
    with pytest.raises(kind):
        shoal.get(fail.options(max_retries=2, retry_exceptions=retry).remote(tmp_path / "runs", kind), timeout=10)
    assert runs(tmp_path / "runs") == expected


# --- lost objects -----------------------------------------------------------------------------------------


@shoal.remote
def make(path, size):
    with open(path, "a") as file:
        file.write("x")
    return bytes([len(os.fspath(path)) % 251]) * size


@shoal.remote
def derive(path, data):
    with open(path, "a") as file:
        file.write("x")
    return data[:1] * (len(data) + 1)


def lose_spilled(session_dir):
    """Push what is in the store out to disk, then remove the files."""
    fillers = [shoal.put(bytes([number]) * (30 * MIB)) for number in range(5)]
    files = wait_for(lambda: [one for one in (session_dir / "spill").rglob("*") if one.is_file()], 5, "spilling")
    time.sleep(0.3)
    files = [one for one in (session_dir / "spill").rglob("*") if one.is_file()]
    for file in files:
        file.unlink()
    return fillers


def test_a_lost_result_is_computed_again(cluster, tmp_path):
    ref = make.remote(tmp_path / "runs", 20 * MIB)
    shoal.wait([ref])
    lose_spilled(cluster)
    assert len(shoal.get(ref, timeout=20)) == 20 * MIB
    assert runs(tmp_path / "runs") == 2


def test_a_lost_result_is_computed_again_through_two_levels(cluster, tmp_path):
    first = make.remote(tmp_path / "first", 20 * MIB)
    second = derive.remote(tmp_path / "second", first)
    third = derive.remote(tmp_path / "third", second)
    shoal.wait([third])
    del first, second
    lose_spilled(cluster)
    assert len(shoal.get(third, timeout=20)) == 20 * MIB + 2
    assert [runs(tmp_path / name) for name in ("first", "second", "third")] == [2, 2, 2]


def test_a_lost_result_is_computed_again_as_an_argument(cluster, tmp_path):
    first = make.remote(tmp_path / "first", 20 * MIB)
    shoal.wait([first])
    lose_spilled(cluster)
    assert len(shoal.get(derive.remote(tmp_path / "second", first), timeout=20)) == 20 * MIB + 1
    assert runs(tmp_path / "first") == 2


def test_a_lost_put_object_is_an_error_not_a_hang(cluster):
    ref = shoal.put(bytes(20 * MIB))
    lose_spilled(cluster)
    with pytest.raises(exceptions.ObjectLostError, match="put"):
        shoal.get(ref, timeout=10)


# --- owners that end --------------------------------------------------------------------------------------


@shoal.remote
class Owner:
    def pid(self):
        return os.getpid()

    def own(self, size):
        self.ref = shoal.put(bytes([7]) * size)
        return [self.ref]

    def leave(self):
        shoal.actor.exit_actor()


def test_the_stored_object_of_a_killed_owner_is_readable(cluster):
    owner = Owner.remote()
    [ref] = shoal.get(owner.own.remote(MIB))
    os.kill(shoal.get(owner.pid.remote()), signal.SIGKILL)
    assert shoal.get(ref, timeout=10) == bytes([7]) * MIB
    time.sleep(1)
    assert shoal.get(ref, timeout=10) == bytes([7]) * MIB


def test_the_inline_object_of_a_killed_owner_is_an_error(cluster):
    owner = Owner.remote()
    [ref] = shoal.get(owner.own.remote(10))
    os.kill(shoal.get(owner.pid.remote()), signal.SIGKILL)
    with pytest.raises(exceptions.OwnerDiedError):
        shoal.get(ref, timeout=10)


@pytest.mark.parametrize("size", [10, MIB])
def test_an_owner_that_ends_in_good_order_hands_its_objects_over(cluster, size):
    owner = Owner.remote()
    [ref] = shoal.get(owner.own.remote(size))
    pid = shoal.get(owner.pid.remote())
    owner.leave.remote()
    wait_for(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), what="the end of the owner")
    assert shoal.get(ref, timeout=10) == bytes([7]) * size


def test_references_inside_a_handed_over_value_stay_good(cluster):
    @shoal.remote(max_calls=1)
    def nest(size):
        return [shoal.put([shoal.put(bytes([9]) * size)])], os.getpid()

    for size in (10, MIB):
        [outer], pid = shoal.get(nest.remote(size))
        wait_for(lambda path=f"/proc/{pid}": not os.path.exists(path), what="the end of the owner")
        [inner] = shoal.get(outer, timeout=10)
        assert shoal.get(inner, timeout=10) == bytes([9]) * size


def test_an_error_that_nobody_reads_is_printed(cluster, capfd, tmp_path):
    fail.options(max_retries=0).remote(tmp_path / "runs", ValueError)
    wait_for(lambda: runs(tmp_path / "runs") == 1)
    seen = []
    wait_for(lambda: seen.append(capfd.readouterr().err) or "ValueError" in "".join(seen), 5, "the notice")
    assert "Unhandled error" in "".join(seen)


def test_a_crash_takes_no_finished_neighbour_with_it(cluster):
    """Tasks that were finished when a later one of the same pipeline killed the worker keep their results, without any retry."""

    @shoal.remote(max_retries=0)
    def maybe_die(number: int, deadly: bool) -> int:
        if deadly and number == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    shoal.get([maybe_die.remote(i, False) for i in range(500)])  # a short task by now: a hundred are pipelined
    refs = [maybe_die.remote(i, True) for i in range(300)]
    for number, ref in enumerate(refs):
        if number == 50:
            with pytest.raises(exceptions.WorkerCrashedError):
                shoal.get(ref)
        else:
            assert shoal.get(ref) == number
