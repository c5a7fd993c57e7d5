"""Heads, templates and workers as real processes: how they start, how each of them may die, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fake_parts  # noqa: E402

from shoal._base import processes  # noqa: E402
from shoal._core.process import discovery  # noqa: E402
from shoal._core.process import session as sessions  # noqa: E402
from shoal._core.process.start import HeadStartError, start_head  # noqa: E402
from shoal.testing import SessionProcesses, wait_for  # noqa: E402

pytestmark = pytest.mark.timeout(60)

#: Seconds within which everything of a dead session must be gone.
GONE_S = 2.0


def assert_nothing_left(session_dir, *pids, within_s=GONE_S):
    session_dir = Path(session_dir)
    begin = time.monotonic()
    wait_for(lambda: not SessionProcesses(session_dir.name).members(), within_s, "the end of all processes")
    wait_for(lambda: not any(processes.is_running(pid) for pid in pids), within_s, "the end of the known processes")
    wait_for(lambda: [entry.name for entry in session_dir.iterdir()] == ["logs"], within_s, "the removal of the files")
    assert time.monotonic() - begin < within_s


class Agent:
    """The test's line to the parts inside a head."""

    opened = []

    def __init__(self, session_dir):
        self.session_dir = Path(session_dir)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.session_dir / "agent.sock"))
        self.sock.settimeout(10)
        self.file = self.sock.makefile("rw")
        Agent.opened.append(self)
        self.heard = []

    def order(self, do, *workers, **more):
        self.file.write(json.dumps({"do": do, "workers": list(workers), **more}) + "\n")
        self.file.flush()

    def hear(self, what, **facts):
        """Wait for a word with these facts; others are kept for later."""
        while True:
            for word in self.heard:
                if word["what"] == what and all(word[key] == value for key, value in facts.items()):
                    self.heard.remove(word)
                    return word
            self.heard.append(json.loads(self.file.readline()))

    def statistics(self, *workers):
        self.order("statistics", *workers)
        return self.hear("statistics")

    def start(self, orders="", count=1):
        """Start workers with these orders; return (id, pid) of the last when all run."""
        workers = [os.urandom(28).hex() for _ in range(count)]
        for worker in workers:
            if orders:
                (self.session_dir / f"orders-{worker}").write_text(orders)
        self.order("start", *workers)
        worker = workers[-1]
        pids = wait_for(lambda: (found := self.statistics(*workers)["pids"]) and all(found.values()) and found, what="the fork")
        return worker, pids[worker]

    def output(self, pid, stream="out"):
        found = list((self.session_dir / "logs").glob(f"worker-*-{pid}.{stream}"))
        return found[0].read_text() if found else ""

    def started_with_children(self):
        """Start a worker that has four kinds of children; return (id, pid, pids of all)."""
        worker, pid = self.start(fake_parts.LEAVE_CHILDREN)
        wait_for(lambda: "started" in self.output(pid), what="the children")
        family = wait_for(lambda: len(found := descendants(pid)) >= 4 and found, what="four children")
        return worker, pid, family


def descendants(worker_pid):
    """Processes that the worker begot: by group, or by mark."""
    mark = processes.mark_of(worker_pid, processes.WORKER_MARK)
    return [
        found.pid
        for found in processes.iter_stats()
        if found.pid != worker_pid
        and found.state != "Z"
        and (found.pgrp == worker_pid or processes.mark_of(found.pid, processes.WORKER_MARK) == mark)
    ]


@contextmanager
def running_head(tmp_path, **changes):
    head = start_head(fake_parts.options(tmp_path, **changes))
    try:
        yield head, Agent(head.ready.session_dir)
    finally:
        head.stop()
        assert_nothing_left(head.session.directory, head.pid, head.ready.template_pid)


@pytest.fixture(autouse=True)
def close_agents():
    yield
    while Agent.opened:
        agent = Agent.opened.pop()
        agent.file.close()
        agent.sock.close()


@pytest.fixture
def short_path():
    """A temporary directory whose name leaves room for sockets."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="shoal-test-", dir="/tmp") as path:
        yield Path(path)


@contextmanager
def running_driver(path, *args):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    command = [sys.executable, str(HERE / "fake_parts.py"), str(path), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as driver:
        try:
            yield driver, json.loads(driver.stdout.readline())
        finally:
            driver.kill()


def kill(pid):
    os.kill(pid, signal.SIGKILL)


# --- start and stop ---------------------------------------------------------------------------------------


def test_a_head_starts_and_stops_and_leaves_only_logs(short_path):
    with running_head(short_path) as (head, agent):
        assert processes.is_running(head.pid)
        assert stat.S_IMODE(os.stat(head.session.directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(head.session.directory / "token").st_mode) == 0o600
        assert [record.pid for record in discovery.live_records(short_path)] == [head.pid]
        agent.start(count=3)
        begin = time.monotonic()
        head.stop()
        assert time.monotonic() - begin < 1.0
    assert not head.is_alive()
    head.stop()


def test_a_hundred_workers_ordered_at_once_all_start(short_path):
    with running_head(short_path) as (_head, agent):
        agent.start()
        agent.start(count=100)


def test_the_heads_own_words_are_in_the_error(short_path):
    with pytest.raises(HeadStartError, match="the parts do not fit"):
        start_head(fake_parts.options(short_path, composition="fake_parts:compose_wrongly"))
    with pytest.raises(HeadStartError, match=r"killed by SIGKILL[\s\S]*last words"):
        start_head(fake_parts.options(short_path, composition="fake_parts:compose_and_die"))
    with pytest.raises(HeadStartError, match="75 MiB"):
        from msgspec.structs import replace

        start_head(replace(fake_parts.options(short_path), object_store_bytes=1000))
    for directory in (short_path / f"shoal-{os.getuid()}").glob("session_*"):
        assert_nothing_left(directory)


def test_a_long_temporary_directory_works(short_path):
    path = short_path / ("long" * 30)
    with running_head(path) as (head, agent):
        assert len(head.ready.agent_address) < 100
        agent.start()
    assert not os.path.lexists(head.session.path)


def test_a_directory_of_somebody_else_is_refused(short_path):
    (short_path / f"shoal-{os.getuid()}").symlink_to("/tmp")
    with pytest.raises(PermissionError, match="SHOAL_TMPDIR"):
        start_head(fake_parts.options(short_path))


# --- workers ----------------------------------------------------------------------------------------------


def test_a_worker_is_a_child_of_the_head_in_its_own_group_with_clean_descriptors(short_path):
    with running_head(short_path) as (head, agent):
        worker, pid = agent.start()
        facts = json.loads(wait_for(lambda: agent.output(pid)))
        assert facts["pid"] == facts["pgid"] == pid
        assert facts["ppid"] == head.pid
        assert facts["mark"] == worker == processes.mark_of(pid, processes.WORKER_MARK)
        assert facts["descriptors"] == sorted({0, 1, 2, facts["arena_fd"]})
        assert bytes.fromhex(facts["token"]) == head.session.tokens().current
        assert "shoal::idle" in Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.parametrize(
    ("orders", "code", "number"),
    [
        ("import sys; sys.exit(7)", 7, None),
        ("import os; os._exit(3)", 3, None),
        ("pass", 0, None),
        ("1 / 0", 1, None),
        ("import os; os.kill(os.getpid(), 9)", None, 9),
        ("import os; os.abort()", None, 6),
    ],
)
def test_exit_code_and_signal_are_reported(short_path, orders, code, number):
    with running_head(short_path) as (_head, agent):
        worker = os.urandom(28).hex()
        (agent.session_dir / f"orders-{worker}").write_text(orders)
        agent.order("start", worker)
        told = agent.hear("exit", worker=worker)
        assert (told["code"], told["signal"]) == (code, number)
        if orders == "1 / 0":
            assert "ZeroDivisionError" in told["tail"][-1]


def test_a_killed_worker_takes_its_children_along(short_path):
    with running_head(short_path) as (head, agent):
        worker, pid, family = agent.started_with_children()
        other, other_pid = agent.start()
        agent.order("kill", worker)
        assert agent.hear("exit", worker=worker)["signal"] == 9
        wait_for(lambda: not any(processes.is_running(child) for child in family), GONE_S, "the end of the children")
        assert processes.is_running(other_pid)
        assert processes.is_running(head.pid)
        assert agent.statistics()["running"] == 1
        assert other != worker
        assert pid


def test_a_worker_killed_before_it_has_a_pid_ends(short_path):
    with running_head(short_path) as (_head, agent):
        workers = [os.urandom(28).hex() for _ in range(40)]
        agent.order("start", *workers)
        agent.order("kill", *workers)
        for worker in workers:
            assert agent.hear("exit", worker=worker)["signal"] == 9


def test_lines_of_a_worker_reach_the_agent_under_its_name(short_path):
    with running_head(short_path) as (_head, agent):
        worker, _ = agent.start("import time; print('one'); print('two', end=''); time.sleep(0.2)")
        agent.order("assign", worker, name="f")
        told = []
        while "two" not in told:
            told += agent.hear("lines", name="f")["lines"]
        assert told[1:] == ["one", "two"]


# --- who may die ------------------------------------------------------------------------------------------


def test_the_template_is_replaced_and_workers_live_on(short_path):
    with running_head(short_path) as (head, agent):
        _, pid = agent.start()
        for _ in range(2):
            kill(agent.statistics()["template_pid"])
            _, new = agent.start()
            assert processes.read_stat(new).ppid == head.pid
        assert processes.is_running(pid)
        assert agent.statistics()["template_restarts"] == 2


END_DURING_A_FORK = """
import asyncio, os, socket, subprocess, sys
from shoal._core.node_agent.fork_protocol import REPORT
from shoal._core.node_agent.launcher import TemplateLauncher

async def main():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    template = subprocess.Popen(sleeping, start_new_session=True)
    launcher = TemplateLauncher(asyncio.get_running_loop(), "session", template.pid, ours.detach(), None, None)
    launcher.start(b"w" * 28)
    assert theirs.recv(100) == b"w" * 28
    closing = asyncio.create_task(launcher.close(20))
    for _ in range(3):
        await asyncio.sleep(0.01)  # the launcher looks every 2 ms; that it goes on can only be seen by waiting
    print(closing.done())
    worker = subprocess.Popen(sleeping, start_new_session=True)
    theirs.send(REPORT.pack(b"w" * 28, worker.pid, 0))
    print(await closing, os.path.exists(f"/proc/{worker.pid}"))
    template.kill()

asyncio.run(main())
"""


def test_the_end_waits_for_a_fork_that_is_under_way():
    done = subprocess.run([sys.executable, "-c", END_DURING_A_FORK], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


def test_starts_under_way_survive_the_templates_death(short_path):
    with running_head(short_path) as (_head, agent):
        agent.start()
        workers = [os.urandom(28).hex() for _ in range(60)]
        agent.order("start", *workers)
        kill(agent.statistics()["template_pid"])
        wait_for(lambda: all(agent.statistics(*workers)["pids"].values()), what="all forks")
        pids = set(agent.statistics(*workers)["pids"].values())
        assert len(pids) == 60
        session = SessionProcesses(agent.session_dir.name)
        # A fresh fork takes its mark a moment after its report; a half-made one that nobody reported goes a moment later.
        marked = lambda: {one.pid for one in session.members() if processes.mark_of(one.pid, processes.WORKER_MARK) in workers}  # noqa: E731
        wait_for(lambda: marked() == pids, what="one process per worker")


@pytest.mark.parametrize("fork", [(), ("fork",)], ids=["alone", "with a fork that holds the lifeline"])
def test_nothing_is_left_when_the_driver_is_killed(short_path, fork):
    with running_driver(short_path, *fork) as (driver, found):
        agent = Agent(found["session_dir"])
        _, pid, family = agent.started_with_children()
        kill(driver.pid)
        assert_nothing_left(found["session_dir"], found["head"], found["template"], pid, *family)


def test_nothing_is_left_when_the_head_is_killed(short_path):
    with running_driver(short_path) as (driver, found):
        agent = Agent(found["session_dir"])
        _, pid, family = agent.started_with_children()
        kill(found["head"])
        assert_nothing_left(found["session_dir"], found["template"], pid, *family)
        assert driver.poll() is None


def test_stop_after_the_heads_death_returns_at_once(short_path):
    head = start_head(fake_parts.options(short_path))
    agent = Agent(head.ready.session_dir)
    agent.start()
    kill(head.pid)
    begin = time.monotonic()
    head.stop()
    assert time.monotonic() - begin < 1.0
    assert_nothing_left(head.session.directory, head.ready.template_pid)


def test_nothing_but_files_is_left_when_all_are_killed_and_the_next_session_removes_those(short_path):
    with running_driver(short_path) as (driver, found):
        agent = Agent(found["session_dir"])
        agent.start()
        kill(found["template"])
        kill(found["head"])
        kill(driver.pid)
        wait_for(lambda: not SessionProcesses(Path(found["session_dir"]).name).members(), GONE_S)
    with running_head(short_path):
        pass
    assert [entry.name for entry in Path(found["session_dir"]).iterdir()] == ["logs"]


def test_sigterm_ends_the_session(short_path):
    with running_driver(short_path) as (_driver, found):
        agent = Agent(found["session_dir"])
        _, pid, family = agent.started_with_children()
        os.kill(found["head"], signal.SIGTERM)
        assert_nothing_left(found["session_dir"], found["head"], found["template"], pid, *family)


def test_logs_of_old_sessions_are_bounded(short_path, monkeypatch):
    parent = sessions.user_dir(short_path)
    for number in range(15):
        (parent / f"session_2020-01-01_00-00-{number:02}_1_ab" / "logs").mkdir(parents=True)
    live = sessions.create(short_path)
    sessions.sweep(parent)
    left = sorted(path.name for path in parent.glob("session_2020*"))
    assert len(left) == sessions.KEPT_SESSIONS
    assert left[-1].endswith("14_1_ab")
    assert (live.directory / "token").exists()
