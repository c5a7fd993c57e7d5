"""The leak check names each kind of thing that a session may leave, and nothing else. No session is started here."""

from __future__ import annotations

import gc
import mmap
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from shoal._base import processes
from shoal.testing import LeakError, leak_check


@pytest.fixture
def user_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_TMPDIR", str(tmp_path))
    directory = tmp_path / f"shoal-{os.getuid()}"
    directory.mkdir()
    return directory


@pytest.fixture
def session_dir(user_dir):
    return user_dir / f"session_2000-01-01_00-00-00_{os.getpid()}_abcd"


@contextmanager
def leaving(*patterns):
    """Expect exactly these leaks."""
    with pytest.raises(LeakError) as caught:
        with leak_check(within_s=0.05):
            yield
    left = caught.value.left
    assert len(left) == len(patterns), left
    for name, pattern in zip(sorted(left), sorted(patterns), strict=True):
        assert name.startswith(pattern), left
        assert name in str(caught.value)


def test_nothing_is_nothing():
    with leak_check(within_s=0):
        pass


def test_a_process(session_dir):
    environ = {**os.environ, processes.SESSION_MARK: session_dir.name}
    with leaving("process "):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environ)
    child.kill()
    child.wait()


def test_a_thread():
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="shoal-io")
    with leaving("thread shoal-io"):
        thread.start()
    end.set()
    thread.join()


def test_descriptors():
    opened = []
    with leaving("descriptor ", "descriptor ", "descriptor ", "descriptor "):
        opened.append(select.epoll())
        opened.extend(socket.socketpair())
        opened.append(os.fdopen(os.memfd_create("shoal-objects"), "wb", buffering=0))
    for one in opened:
        one.close()


def test_a_memory_map():
    fd = os.memfd_create("shoal-objects")
    os.ftruncate(fd, mmap.PAGESIZE)
    with leaving("memory map /memfd:shoal-objects"):
        mapped = mmap.mmap(fd, mmap.PAGESIZE, trackfd=False) if sys.version_info >= (3, 13) else None
        if mapped is None:  # before 3.13 a map keeps a descriptor, which is a leak of its own
            import ctypes

            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
            address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if mapped is None:
        libc.munmap(ctypes.c_void_p(address), mmap.PAGESIZE)
    else:
        mapped.close()
    os.close(fd)


def test_files_but_not_logs(session_dir, user_dir):
    with leaving(f"file {session_dir}/agent.sock", f"file {session_dir}/spill", f"link {user_dir}/s_1"):
        (session_dir / "logs").mkdir(parents=True)
        (session_dir / "spill").mkdir()
        (session_dir / "agent.sock").touch()
        (user_dir / "s_1").symlink_to(session_dir)


def test_a_directory_that_was_never_finished_and_a_spill_directory_outside(session_dir, user_dir, tmp_path):
    with pytest.raises(LeakError) as caught:
        with leak_check(within_s=0, spill_dir=tmp_path / "spill"):
            (user_dir / f".{session_dir.name}").mkdir()
            session_dir.mkdir()
            (tmp_path / "spill" / session_dir.name).mkdir(parents=True)
    assert caught.value.left == [f"directory {tmp_path}/spill/{session_dir.name}", f"directory {user_dir}/.{session_dir.name}"]


def test_what_others_own_does_not_count(user_dir, tmp_path):
    """Another driver's session, and what a test itself opens."""
    end = threading.Event()
    with leak_check(within_s=0):
        (user_dir / "session_2000-01-01_00-00-00_1_abcd").mkdir()
        (user_dir / "session_2000-01-01_00-00-00_1_abcd" / "agent.sock").touch()
        log = (tmp_path / "log").open("w")
        tcp = socket.socket()
        thread = threading.Thread(target=end.wait)
        thread.start()
    end.set()
    thread.join()
    log.close()
    tcp.close()


def test_what_was_there_before_does_not_count(session_dir):
    session_dir.mkdir()
    (session_dir / "agent.sock").touch()
    with select.epoll(), leak_check(within_s=0):
        pass


def test_leaks_that_are_ignored_by_pattern():
    with leak_check(within_s=0, ignore=["descriptor *eventpoll*"]):
        poll = select.epoll()
    poll.close()


def test_what_only_a_cycle_keeps_alive_is_collected_first():
    gc.disable()
    try:
        with leak_check(within_s=0.05):
            poll = select.epoll()
            cycle = [poll]
            cycle.append(cycle)
            del poll, cycle
    finally:
        gc.enable()


def test_an_error_of_the_block_is_raised_with_the_leaks_as_a_note():
    with pytest.raises(KeyError) as caught:
        with leak_check(within_s=0):
            poll = select.epoll()
            raise KeyError("the test's own error")
    poll.close()
    assert "eventpoll" in caught.value.__notes__[0]
