"""Cancelling tasks in every state they can be in: the result is a value or TaskCancelledError within a bound, and nothing else suffers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import shoal
from shoal import exceptions
from shoal.testing import fresh_cluster, wait_for

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_CANCEL_GRACE_S", "1")
        with fresh_cluster(faults=False) as cluster:
            yield cluster


@pytest.fixture(autouse=True)
def usable_afterwards(cluster):
    yield
    assert shoal.get([double.remote(number) for number in range(20)], timeout=10) == [2 * number for number in range(20)]


@shoal.remote
def double(number):
    return 2 * number


@shoal.remote
def nap(seconds, path=None):
    if path is not None:
        path.with_name(path.name + str(os.getpid())).touch()
    time.sleep(seconds)
    return "slept"


def assert_cancelled(ref, within_s):
    begin = time.monotonic()
    with pytest.raises(exceptions.TaskCancelledError):
        shoal.get(ref, timeout=10)
    assert time.monotonic() - begin < within_s


def test_a_sleeping_task_and_its_worker_lives_on(tmp_path):
    ref = nap.remote(30, tmp_path / "pid")
    [mark] = wait_for(lambda: list(tmp_path.iterdir()))
    shoal.cancel(ref)
    assert_cancelled(ref, 1.0)
    assert os.path.exists(f"/proc/{mark.name.removeprefix('pid')}")


def test_a_queued_task_never_starts(tmp_path):
    running = [nap.remote(0.7) for _ in range(2)]
    time.sleep(0.2)
    ref = nap.remote(30, tmp_path / "pid")
    time.sleep(0.1)
    shoal.cancel(ref)
    assert_cancelled(ref, 0.3)
    assert shoal.get(running) == ["slept", "slept"]
    assert not list(tmp_path.iterdir())


def test_a_task_that_waits_for_its_argument(tmp_path):
    slow = nap.remote(0.5)
    ref = nap.remote(slow, tmp_path / "pid")
    shoal.cancel(ref)
    assert_cancelled(ref, 0.3)
    assert shoal.get(slow) == "slept"


def test_a_finished_task_keeps_its_value():
    ref = double.remote(4)
    assert shoal.get(ref) == 8
    shoal.cancel(ref)
    assert shoal.get(ref) == 8


@pytest.mark.parametrize("force", [False, True])
def test_a_parent_and_its_ten_children(tmp_path, force):
    @shoal.remote(num_cpus=0.1)
    def child(number):
        (tmp_path / f"started{number}").touch()
        time.sleep(3)
        (tmp_path / f"ended{number}").touch()

    @shoal.remote
    def parent():
        refs = [child.remote(number) for number in range(10)]
        return shoal.get(refs)

    ref = parent.remote()
    wait_for(lambda: len(list(tmp_path.glob("started*"))) >= 2)
    shoal.cancel(ref, force=force)
    assert_cancelled(ref, 1.5)
    time.sleep(3.2)
    assert not list(tmp_path.glob("ended*"))


def test_not_recursive_spares_the_children(tmp_path):
    @shoal.remote(num_cpus=0.1)
    def child():
        (tmp_path / "started").touch()
        time.sleep(0.7)
        (tmp_path / "ended").touch()

    @shoal.remote
    def parent():
        return shoal.get(child.remote())

    ref = parent.remote()
    wait_for(lambda: (tmp_path / "started").exists())
    shoal.cancel(ref, recursive=False)
    assert_cancelled(ref, 0.5)
    wait_for(lambda: (tmp_path / "ended").exists(), 3)


def test_force_kills_the_worker_at_once(tmp_path):
    ref = nap.remote(30, tmp_path / "pid")
    [mark] = wait_for(lambda: list(tmp_path.iterdir()))
    shoal.cancel(ref, force=True)
    assert_cancelled(ref, 0.5)
    wait_for(lambda: not os.path.exists(f"/proc/{mark.name.removeprefix('pid')}"), 2)


def test_force_on_a_task_queued_behind_another_spares_that_one():
    @shoal.remote(max_retries=0)
    def work(seconds):
        time.sleep(seconds)
        return "done"

    shoal.get([work.remote(0) for _ in range(200)])  # short tasks: the next are queued on the workers
    first = [work.remote(0.3) for _ in range(2)]
    behind = [work.remote(0.3) for _ in range(10)]
    for ref in behind:
        shoal.cancel(ref, force=True)
    assert shoal.get(first, timeout=10) == ["done", "done"]
    for ref in behind:
        assert_cancelled(ref, 5)


def test_a_c_call_that_cannot_be_interrupted_costs_the_worker(tmp_path):
    @shoal.remote
    def stuck():
        (tmp_path / "started").touch()
        return pow(3, 10**9) & 1  # one bytecode instruction, minutes long

    ref = stuck.remote()
    wait_for(lambda: (tmp_path / "started").exists())
    shoal.cancel(ref)
    assert_cancelled(ref, 2.5)


def test_a_task_blocked_in_get_is_interrupted():
    @shoal.remote
    def wait_long():
        return shoal.get(nap.remote(30))

    ref = wait_long.remote()
    time.sleep(0.4)
    shoal.cancel(ref)
    assert_cancelled(ref, 1.0)


def test_two_hundred_random_delays():
    draw = random.Random(3)

    @shoal.remote
    def brief(number):
        time.sleep(0.002)
        return number

    cancelled = 0
    for number in range(200):
        ref = brief.remote(number)
        time.sleep(draw.random() * 0.005)
        shoal.cancel(ref)
        try:
            assert shoal.get(ref, timeout=5) == number
        except exceptions.TaskCancelledError:
            cancelled += 1
    assert 0 < cancelled <= 200


def test_many_at_once_at_random_times():
    draw = random.Random(5)

    @shoal.remote
    def brief(number):
        return number

    for _ in range(20):
        refs = [brief.remote(number) for number in range(50)]
        victims = draw.sample(range(50), 20)
        time.sleep(draw.random() * 0.003)
        for number in victims:
            shoal.cancel(refs[number])
        for number, ref in enumerate(refs):
            try:
                assert shoal.get(ref, timeout=10) == number
            except exceptions.TaskCancelledError:
                assert number in victims


def test_ctrl_c_in_a_blocked_get_leaves_the_cluster_usable():
    code = """
        import signal, time, shoal
        shoal.init(num_cpus=1)
        @shoal.remote
        def nap(seconds):
            time.sleep(seconds)
            return "slept"
        ref = nap.remote(1.5)
        print("ready", flush=True)
        try:
            shoal.get(ref)
        except KeyboardInterrupt:
            print("interrupted", time.monotonic(), flush=True)
        print(shoal.get(ref, timeout=10), shoal.get(nap.remote(0), timeout=10), flush=True)
    """
    driver = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert driver.stdout.readline() == "ready\n"
    time.sleep(0.3)
    sent = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    word, at = driver.stdout.readline().split()
    assert word == "interrupted"
    assert float(at) - sent < 0.5
    assert driver.stdout.read() == "slept slept\n"
    assert driver.wait(10) == 0
    driver.stdout.close()
