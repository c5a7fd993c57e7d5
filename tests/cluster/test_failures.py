"""What a task's owner sees when workers, objects and owners are lost: retries, clear errors, recomputed values."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

import shoal
from shoal import exceptions
from shoal._base import runtime as holder
from shoal.testing import fresh_cluster, wait_for

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20


@pytest.fixture
def cluster():
    with fresh_cluster(faults=False, object_store_memory=100 * MIB) as cluster:
        yield cluster


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


def test_a_task_sent_to_a_worker_at_the_moment_of_its_death_runs_again(cluster):
    @shoal.remote(max_retries=-1)
    def double(number):
        return 2 * number, os.getpid()

    for number in range(30):
        _, pid = shoal.get(double.remote(0))
        if number % 2:
            os.kill(pid, signal.SIGKILL)
        ref = double.remote(number)
        if not number % 2:
            os.kill(pid, signal.SIGKILL)
        assert shoal.get(ref, timeout=20)[0] == 2 * number


def test_a_call_sent_to_an_actor_at_the_moment_of_its_death_is_sent_again(cluster):
    @shoal.remote(max_restarts=-1, max_task_retries=-1)
    class Doubler:
        def double(self, number):
            return 2 * number, os.getpid()

    doubler = Doubler.remote()
    for number in range(10):
        _, pid = shoal.get(doubler.double.remote(0), timeout=20)
        if number % 2:
            os.kill(pid, signal.SIGKILL)
        ref = doubler.double.remote(number)
        if not number % 2:
            os.kill(pid, signal.SIGKILL)
        assert shoal.get(ref, timeout=20)[0] == 2 * number


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


@shoal.remote
def run_and_leave(path, code, exits=99):
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) <= exits:
        sys.exit(code)
    return "done"


@shoal.remote(max_retries=0)
def whoami():
    return os.getpid()


@pytest.mark.parametrize(
    ("code", "shown", "status"),
    [(3, "3", 3), (None, "", 0), (0, "0", 0), ("a reason", "'a reason'", 1), (-1, "-1", 255)],
    ids=lambda value: repr(value),
)
def test_sys_exit_in_a_task_is_a_crash_that_says_where(cluster, tmp_path, code, shown, status):
    with pytest.raises(exceptions.WorkerCrashedError) as caught:
        shoal.get(run_and_leave.options(max_retries=0).remote(tmp_path / "runs", code), timeout=10)
    text = str(caught.value)
    assert f"sys.exit({shown}) was called in function run_and_leave at {__file__}:" in text
    assert f"ended with exit code {status}." in text
    assert "let the task return or raise" in text
    assert ("    a reason" in text) == (code == "a reason")
    assert runs(tmp_path / "runs") == 1
    assert all(shoal.get([whoami.remote() for _ in range(20)], timeout=10))


def test_sys_exit_in_a_task_is_retried_like_a_crash(cluster, tmp_path):
    with pytest.raises(exceptions.WorkerCrashedError, match="attempt 4 of 4"):
        shoal.get(run_and_leave.remote(tmp_path / "thrice", 3), timeout=10)
    assert runs(tmp_path / "thrice") == 4
    assert shoal.get(run_and_leave.remote(tmp_path / "once", 3, exits=1), timeout=10) == "done"
    assert runs(tmp_path / "once") == 2


def test_sys_exit_in_a_generator_is_a_crash(cluster, tmp_path):
    @shoal.remote(max_retries=0)
    def leave_later():
        yield 1
        sys.exit(5)

    items = leave_later.remote()
    assert shoal.get(next(items), timeout=10) == 1
    with pytest.raises(exceptions.WorkerCrashedError, match=r"sys\.exit\(5\)"):
        shoal.get(next(items), timeout=10)


def test_sys_exit_in_a_task_takes_no_neighbour_with_it(cluster):
    """Tasks before it in the same pipeline keep their results, those behind it run elsewhere, all without retries."""

    @shoal.remote(max_retries=0)
    def maybe_leave(number: int, deadly: bool) -> int:
        if deadly and number == 50:
            sys.exit(3)
        return number

    shoal.get([maybe_leave.remote(i, False) for i in range(500)])
    refs = [maybe_leave.remote(i, True) for i in range(300)]
    with pytest.raises(exceptions.WorkerCrashedError, match=r"sys\.exit\(3\)"):
        shoal.get(refs.pop(50), timeout=10)
    assert shoal.get(refs, timeout=10) == [number for number in range(300) if number != 50]


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


def lose_spilled(cluster):
    """Push what is in the store out to disk, then remove the files."""
    with cluster.full_store():  # waits until everything is on disk
        files = [one for one in (cluster.session_dir / "spill").rglob("*") if one.is_file()]
        assert files
        for file in files:
            file.unlink()


def test_a_lost_result_is_computed_again(cluster, tmp_path):
    ref = make.remote(tmp_path / "runs", 20 * MIB)
    cluster.lose_object(ref)
    assert len(shoal.get(ref, timeout=20)) == 20 * MIB
    assert runs(tmp_path / "runs") == 2


def test_a_result_whose_spill_file_vanished_is_computed_again(cluster, tmp_path):
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
    cluster.lose_object(third)
    assert len(shoal.get(third, timeout=20)) == 20 * MIB + 2
    assert [runs(tmp_path / name) for name in ("first", "second", "third")] == [2, 2, 2]


def test_a_lost_result_is_computed_again_as_an_argument(cluster, tmp_path):
    first = make.remote(tmp_path / "first", 20 * MIB)
    cluster.lose_object(first)
    assert len(shoal.get(derive.remote(tmp_path / "second", first), timeout=20)) == 20 * MIB + 1
    assert runs(tmp_path / "first") == 2


def test_a_lost_result_is_computed_again_as_an_argument_of_an_actor_call(cluster, tmp_path):
    @shoal.remote
    class Reader:
        def size(self, data):
            return len(data)

    reader = Reader.remote()
    first = make.remote(tmp_path / "first", MIB)
    cluster.lose_object(first)
    assert shoal.get([reader.size.remote(first), reader.size.remote(b"12")], timeout=20) == [MIB, 2]
    assert runs(tmp_path / "first") == 2
    gone = shoal.put(bytes(MIB))
    cluster.lose_object(gone)
    with pytest.raises(exceptions.ObjectLostError):
        shoal.get(reader.size.remote(gone), timeout=20)


def test_a_lost_put_object_is_an_error_not_a_hang(cluster):
    ref = shoal.put(bytes(20 * MIB))
    cluster.lose_object(ref)
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


def test_a_cancel_after_the_owner_has_ended_is_too_late_and_harmless(cluster):
    @shoal.remote(max_calls=1)
    def submit():
        return [whoami.remote()], os.getpid()

    [ref], pid = shoal.get(submit.remote())
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of the owner")
    assert shoal.get(ref, timeout=10)
    shoal.cancel(ref)
    assert shoal.get(whoami.remote(), timeout=10), "the session goes on"
    assert shoal.get(ref, timeout=10)


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


# --- half a head ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["control_store", "agent"])
def test_the_end_of_one_connection_to_the_head_ends_the_session(cluster, half, tmp_path):
    """The head drops a connection on which nonsense arrives. Without one half, new tasks or actors would wait for ever."""

    @shoal.remote
    def wait_for_file(path):
        while not os.path.exists(path):
            time.sleep(0.01)

    waiting = wait_for_file.remote(tmp_path / "never")
    core = holder.current().core
    connection = core.agent if half == "agent" else core.control_store._connection
    core.loop.call_soon_threadsafe(connection._transport.write, b"\xff" * 64)
    with pytest.raises(exceptions.LocalRayletDiedError, match=r"shoal\.init\(\)"):
        shoal.get(waiting, timeout=20)
    for use in (lambda: shoal.get(run_and_die.remote(tmp_path / "no", 0), timeout=20), lambda: shoal.put(bytes(MIB))):
        with pytest.raises(exceptions.LocalRayletDiedError):
            use()
