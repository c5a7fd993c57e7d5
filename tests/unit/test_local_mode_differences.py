"""What docs/testing.md claims of local mode: each difference from a session with processes, by its number there."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import numpy as np
import pytest

import shoal
from shoal import exceptions


@pytest.fixture(autouse=True)
def session():
    shoal.init(local_mode=True, num_cpus=1, object_store_memory=100 << 20)
    yield
    shoal.shutdown()


@shoal.remote
def append(path, text):
    with open(path, "a") as file:
        file.write(text)
    return text


def test_what_stays_the_same_copies_read_only_arrays_errors_and_retries(tmp_path):
    @shoal.remote(retry_exceptions=[ValueError], max_retries=2)
    def fail(path):
        with open(path, "a") as file:
            file.write("x")
        raise ValueError("again")

    ref = fail.remote(tmp_path / "runs")
    with pytest.raises(ValueError, match="again"):
        shoal.get(ref)
    assert (tmp_path / "runs").read_text() == "xxx"
    given = [1]
    assert shoal.get(shoal.remote(lambda x: [*x, x.append(2)]).remote(given)) == [1, None]
    assert given == [1]
    assert not shoal.get(shoal.put(np.zeros(10))).flags.writeable
    with pytest.raises(TypeError):
        shoal.put(threading.Lock())


def test_1_and_2_a_task_has_run_when_remote_returns(tmp_path):
    ref = append.remote(tmp_path / "log", "a")
    assert (tmp_path / "log").read_text() == "a"
    assert shoal.get(ref, timeout=0) == "a"
    shoal.cancel(ref)
    assert shoal.get(ref) == "a"


def test_3_calls_of_an_async_actor_overlap_on_a_thread_of_its_own():
    @shoal.remote
    class Meeting:
        def __init__(self):
            self.other = asyncio.Event()

        async def wait(self):
            await self.other.wait()
            return threading.get_ident()

        async def come(self):
            self.other.set()

    meeting = Meeting.remote()
    waiting = meeting.wait.remote()
    assert shoal.wait([waiting], timeout=0)[0] == []
    meeting.come.remote()
    assert shoal.get(waiting, timeout=20) != threading.get_ident()


def test_4_a_threaded_actor_runs_on_the_calling_thread():
    @shoal.remote(max_concurrency=4)
    class Threaded:
        def thread(self):
            return threading.get_ident()

    assert shoal.get(Threaded.remote().thread.remote()) == threading.get_ident()


def test_5_the_process_is_shared(monkeypatch, tmp_path):
    @shoal.remote
    def change(directory):
        os.environ["SHOAL_TEST_SHARED"] = "seen"
        os.chdir(directory)
        return os.getpid()

    monkeypatch.setenv("SHOAL_TEST_SHARED", "")
    monkeypatch.chdir(os.getcwd())
    assert shoal.get(change.remote(tmp_path)) == os.getpid()
    assert (os.environ["SHOAL_TEST_SHARED"], os.getcwd()) == ("seen", str(tmp_path))


def test_5_variables_of_imported_modules_are_shared():
    @shoal.remote
    def change():
        sys.shoal_test_shared = "seen"

    change.remote()
    assert sys.__dict__.pop("shoal_test_shared") == "seen"


def test_6_kill_forgets_an_actor_while_a_call_goes_on():
    started, go_on, ended = "started", "go on", "ended"
    for name in (started, go_on, ended):
        sys.__dict__[f"shoal_test_{name}"] = threading.Event()

    @shoal.remote
    class Busy:
        def work(self):
            sys.__dict__["shoal_test_started"].set()
            assert sys.__dict__["shoal_test_go on"].wait(20)
            sys.__dict__["shoal_test_ended"].set()

    actor = Busy.remote()
    caller = threading.Thread(target=actor.work.remote)
    caller.start()
    try:
        assert sys.__dict__["shoal_test_started"].wait(20)
        shoal.kill(actor)
        assert not sys.__dict__["shoal_test_ended"].is_set()
        with pytest.raises(exceptions.ActorDiedError):
            shoal.get(actor.work.remote(), timeout=20)
    finally:
        sys.__dict__["shoal_test_go on"].set()
        caller.join()
    assert sys.__dict__["shoal_test_ended"].is_set()
    for name in (started, go_on, ended):
        del sys.__dict__[f"shoal_test_{name}"]


def test_6_sys_exit_is_a_crash_of_the_task_alone():
    with pytest.raises(exceptions.WorkerCrashedError):
        shoal.get(shoal.remote(lambda: sys.exit(1)).options(max_retries=0).remote())


def test_7_resources_are_not_counted():
    assert shoal.get(append.options(num_cpus=64).remote(os.devnull, "ran")) == "ran"


def test_8_runtime_env_has_no_effect():
    read = shoal.remote(lambda: os.environ.get("SHOAL_TEST_ENV"))
    assert shoal.get(read.options(runtime_env={"env_vars": {"SHOAL_TEST_ENV": "1"}}).remote()) is None


def test_9_the_size_of_the_object_store_does_not_matter():
    refs = [shoal.put(bytes(60 << 20)) for _ in range(2)]
    views = [shoal.get(ref) for ref in refs]
    assert sum(map(len, views)) == 120 << 20


def test_10_a_generator_runs_to_its_end_unless_backpressure_lets_it_pause(tmp_path):
    @shoal.remote
    def write(path, n):
        for i in range(n):
            with open(path, "a") as file:
                file.write("x")
            yield i

    write.remote(tmp_path / "all", 5)
    assert (tmp_path / "all").read_text() == "xxxxx"
    stream = write.options(_generator_backpressure_num_objects=2).remote(tmp_path / "some", 5)
    assert len((tmp_path / "some").read_text()) < 5
    assert [shoal.get(ref) for ref in stream] == [0, 1, 2, 3, 4]


def test_11_deep_recursion_of_tasks_is_deep_recursion():
    @shoal.remote
    def down(n):
        return n if n == 0 else shoal.get(down.remote(n - 1))

    assert shoal.get(down.remote(10)) == 0
    with pytest.raises(RecursionError):
        shoal.get(down.remote(sys.getrecursionlimit()))
