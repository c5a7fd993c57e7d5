"""A driver that forks: the session stays with the parent, whatever the child does, and the child is told what it may do.

Each program runs in a process of its own, with warnings as errors; it must print ``ok`` as its last line, and end with status 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]

REPOSITORY = Path(__file__).parents[2]

BEGIN = """
import gc, os, sys, time
import shoal

@shoal.remote
def double(x):
    return 2 * x

@shoal.remote
class Counter:
    n = 0
    def add(self):
        self.n += 1
        return self.n

def start():
    shoal.init(num_cpus=2, object_store_memory=100 << 20)

def check_session():
    assert shoal.get([double.remote(i) for i in range(50)], timeout=30) == [2 * i for i in range(50)]
    assert len(shoal.get(shoal.put(bytes(1 << 20)), timeout=30)) == 1 << 20

def in_child(body, leave=sys.exit):
    "Fork; the child runs body and leaves. Return its exit status."
    pid = os.fork()
    if pid == 0:
        body()
        leave(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def refused(attempt):
    try:
        attempt()
    except Exception as error:
        assert "forked" in str(error) and "shoal.init()" in str(error), error
    else:
        raise AssertionError("it was not refused")
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", BEGIN + textwrap.dedent(code) + "\nprint('ok')\n"],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1:] == ["ok"], (done.stdout, done.stderr)
    assert "Warning" not in done.stderr
    assert "Error" not in done.stderr


def test_fork_after_import_is_safe():
    """Importing started nothing that a fork could break: parent and child each start a session of their own."""
    run("def both():\n    start(); check_session(); shoal.shutdown()\nassert in_child(both) == 0\nboth()\nassert in_child(both) == 0")


@pytest.mark.parametrize("leave", ["sys.exit", "os._exit"])
def test_a_child_that_only_ends_harms_nothing(leave):
    """It drops what it inherited, collects its garbage and runs its exit functions: the parent's session does not notice."""
    run(
        f"""
        start()
        refs = [shoal.put(i) for i in range(100)] + [shoal.put(bytes(1 << 20))]
        counter = Counter.remote()
        assert shoal.get(counter.add.remote()) == 1
        def child():
            global counter
            refs.clear()
            counter = None
            gc.collect()
            assert not shoal.is_initialized()
            shoal.shutdown()
        for _ in range(5):
            assert in_child(child, {leave}) == 0
        check_session()
        assert shoal.get(refs)[:100] == list(range(100))
        assert shoal.get(counter.add.remote()) == 2
        shoal.shutdown()
        """
    )


def test_what_belongs_to_the_parent_is_refused_at_once():
    """No hang, no second session by accident, and the error says what to do."""
    run(
        """
        start()
        small, large, late = shoal.put(1), shoal.put(bytes(1 << 20)), double.remote(4)
        counter = Counter.remote()
        shoal.get(counter.add.remote())
        def child():
            for attempt in (
                lambda: double.remote(1), lambda: shoal.put(1), lambda: shoal.get(small), lambda: shoal.get([large]),
                lambda: shoal.wait([late]), lambda: counter.add.remote(), lambda: Counter.remote(), lambda: small.future(),
                lambda: shoal.cancel(late), lambda: shoal.kill(counter), lambda: shoal.get_actor("x"),
            ):
                refused(attempt)
        assert in_child(child) == 0
        check_session()
        assert shoal.get([small, late, counter.add.remote()]) == [1, 8, 2]
        shoal.shutdown()
        """
    )


def test_a_child_may_start_a_session_of_its_own():
    """Beside the parent's, with the same functions; references of the parent are no use there."""
    run(
        """
        start()
        mine = shoal.put("the parent's")
        counter = Counter.remote()
        assert shoal.get(counter.add.remote()) == 1
        def child():
            start()
            check_session()
            refused(lambda: shoal.get(mine))
            refused(lambda: counter.add.remote())
            assert shoal.get(Counter.remote().add.remote()) == 1
            assert len(shoal.nodes()) == 1
            if os.getpid() % 2:
                shoal.shutdown()
        for leave in (sys.exit, os._exit, sys.exit):
            assert in_child(child, leave) == 0
        check_session()
        assert shoal.get([mine, counter.add.remote()]) == ["the parent's", 2]
        shoal.shutdown()
        """
    )


def test_the_parent_may_end_its_session_while_the_child_lives():
    """The child holds copies of the parent's descriptors; they must not keep the session alive, nor its end from being noticed."""
    run(
        """
        start()
        context = shoal.init(ignore_reinit_error=True)
        session_dir = os.path.realpath(context.address_info["session_dir"])
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent has closed its end
            os._exit(7)
        shoal.shutdown()
        assert os.listdir(session_dir) == ["logs"]
        os.close(writer)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        start()
        check_session()
        shoal.shutdown()
        """
    )


def test_descriptors_that_the_child_uses_anew_are_left_alone():
    """A daemon closes everything it inherited and opens its own: nothing of shoal may write to those numbers."""
    run(
        """
        import tempfile
        start()
        refs = [shoal.put(i) for i in range(100)]
        path = tempfile.mkdtemp()
        def child():
            os.closerange(3, 1000)
            files = [open(f"{path}/{i}", "wb") for i in range(100)]
            refs.clear()
            gc.collect()
            for file in files:
                file.close()
            assert [name for name in os.listdir(path) if os.path.getsize(f"{path}/{name}")] == []
        assert in_child(child, os._exit) == 0
        check_session()
        shoal.shutdown()
        import shutil
        shutil.rmtree(path)
        """
    )


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_works_beside_shoal(tmp_path, method):
    """In the driver, and inside of a task."""
    code = f"""
        import multiprocessing
        def pooled():
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                return pool.map(abs, range(-20, 0))
        @shoal.remote
        def pooled_task():
            return pooled()
        if __name__ == "__main__":
            start()
            refs = [double.remote(i) for i in range(20)]
            assert pooled() == list(range(20, 0, -1))
            assert shoal.get(refs, timeout=30) == list(range(0, 40, 2))
            assert shoal.get(pooled_task.remote(), timeout=30) == list(range(20, 0, -1))
            check_session()
            shoal.shutdown()
            print("ok")
    """
    (tmp_path / "prog.py").write_text(BEGIN + textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "prog.py")],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1:] == ["ok"], (done.stdout, done.stderr)


def test_a_child_of_a_task_is_told_too():
    run(
        """
        @shoal.remote
        def fork_here():
            reader, writer = os.pipe()
            if os.fork() == 0:
                try:
                    double.remote(1)
                except Exception as error:
                    os.write(writer, f"{type(error).__name__} {error}".encode())
                os._exit(0)
            os.close(writer)
            with open(reader) as file:
                return file.read()
        start()
        text = shoal.get(fork_here.remote(), timeout=30)
        assert text.startswith("RuntimeError This process was forked"), text
        check_session()
        shoal.shutdown()
        """
    )


def test_a_child_dies_of_sigterm_at_any_moment():
    """Also in its first instant, and while it waits in C code: otherwise Pool.terminate() would now and then wait for ever."""
    run(
        """
        import signal
        start()
        for _ in range(200):
            pid = os.fork()
            if pid == 0:
                while True:
                    signal.pause()
            os.kill(pid, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(), "the parent still takes it"
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        check_session()
        shoal.shutdown()
        """
    )
