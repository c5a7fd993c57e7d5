"""The control store dies, and comes back on its tables: nothing that it acknowledged is lost, nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal._base import paths
from shoal._core.process.start import HeadStartError
from shoal.testing import wait_for
from shoal.testing.session_processes import SessionProcesses, kill
from shoal.util.placement_group import placement_group, remove_placement_group
from tests.cluster.members import Census
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@shoal.remote
def square(number):
    return number * number


@shoal.remote
class Counting:
    def __init__(self):
        self.calls = 0

    def add(self):
        self.calls += 1
        return self.calls, os.getpid()


def test_work_goes_on_without_a_control_store_and_waits_for_it_where_it_must():
    with many_nodes(2) as nodes:
        actor = Counting.options(name="it", **nodes.on(1)).remote()
        before, pid = shoal.get(actor.add.remote(), timeout=30)
        assert shoal.get([square.options(**nodes.on(index)).remote(3) for index in (0, 1)], timeout=30) == [9, 9]
        nodes.kill_control()
        assert shoal.get([square.remote(number) for number in range(20)], timeout=30) == [number * number for number in range(20)]
        assert shoal.get(actor.add.remote(), timeout=30) == (before + 1, pid)
        called = Counting.options(**nodes.on(1)).remote().add.remote()
        with ThreadPoolExecutor(1) as pool:  # a name is taken when the call returns
            named = pool.submit(Counting.options(name="later", **nodes.on(1)).remote)
            assert shoal.wait([called], timeout=0.5)[0] == []
            assert not named.done()
            nodes.restart_control()
            later = named.result(30)
        assert shoal.get([called, later.add.remote()], timeout=30)[0][0] == 1
        assert shoal.get(shoal.get_actor("it").add.remote(), timeout=30) == (before + 2, pid)
        assert set(shoal.util.list_named_actors()) == {"it", "later"}


def test_fresh_workers_run_what_their_node_has_run_before_without_a_control_store():
    with many_nodes(2) as nodes:
        on = {**nodes.on(1), "max_retries": -1}
        workers = SessionProcesses(nodes.nodes[1].session.directory.name).workers
        assert shoal.get(square.options(**on).remote(3), timeout=30) == 9
        nodes.kill_control()
        before = workers()
        for pid in before:
            kill(pid)
        assert shoal.get([square.options(**on).remote(number) for number in range(20)], timeout=30) == [n * n for n in range(20)]
        assert not set(before) & set(workers())
        nodes.restart_control()


def test_a_drivers_requests_give_up_after_a_while_and_the_driver_goes_on():
    with many_nodes(1, control_store_timeout_s=1.0) as nodes:
        actor = Counting.options(name="it").remote()
        assert shoal.get(actor.add.remote(), timeout=30)[0] == 1
        nodes.kill_control()
        with pytest.raises(shoal.exceptions.RaySystemError, match="could not be reached for 1 s"):
            shoal.get_actor("it")
        assert shoal.get(actor.add.remote(), timeout=30)[0] == 2
        nodes.restart_control()
        assert shoal.get(shoal.get_actor("it").add.remote(), timeout=30)[0] == 3


def test_a_control_store_that_died_is_started_again_by_the_node_beside_it():
    with many_nodes(2, keep_control=True) as nodes:
        actor = Counting.options(name="it", **nodes.on(1)).remote()
        shoal.get(actor.add.remote(), timeout=30)
        first = nodes.kill_control()
        wait_for(lambda: nodes.control_pid not in (0, first), 30, "the next control store")
        assert shoal.get(shoal.get_actor("it").add.remote(), timeout=30)[0] == 2


@pytest.mark.parametrize(
    ("total", "plain", "deaths"),
    [
        pytest.param(40, True, 7, id="few"),
        pytest.param(500, False, 20, id="500-detached", marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
    ],
)
def test_what_is_created_and_looked_up_while_it_dies_again_and_again_is_there_exactly_once(tmp_path, total, plain, deaths):
    with many_nodes(2, keep_control=True) as nodes:
        census = Census(total, tmp_path / "starts", plain=plain)
        killed = 0
        for _ in range(deaths):
            wait_for(lambda last=killed: nodes.control_pid not in (0, last), 60, "the next control store")
            census.wait_for_progress()
            killed = nodes.kill_control()
        census.check()
        del census


def test_groups_and_jobs_that_were_under_way_are_there_once(tmp_path):
    with many_nodes(2, keep_control=True) as nodes:
        groups = []
        for _ in range(5):
            groups += [placement_group([{"CPU": 0.1}] * 2, strategy="SPREAD") for _ in range(2)]
            nodes.kill_control()
        shoal.get([group.ready() for group in groups], timeout=60)
        for group in groups[::2]:
            remove_placement_group(group)
        nodes.kill_control()
        for group in groups[1::2]:
            remove_placement_group(group)
        wait_for(lambda: shoal.available_resources().get("CPU") == 4.0, 60, "the return of all bundles")
        # A driver that begins while there is no control store waits for it, and has one job.
        nodes.kill_control()
        program = tmp_path / "driver.py"
        program.write_text(DRIVER)
        first = nodes.nodes[0].ready
        answer = subprocess.run(
            [sys.executable, str(program), first.agent_address, first.control_address, first.session_dir],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.split() == ["144", "00000002"]


#: Joins the cluster as ``init(address=...)`` will.
DRIVER = """
import os, sys
import shoal
from shoal._base import runtime as holder
from shoal._base.settings import read_environment
from shoal._core.api.job import job_record
from shoal._core.process.session import open_session
from shoal._core.worker.driver import connect_driver

agent, control, session = sys.argv[1:]
record = job_record(job_config=None, namespace="tests", runtime_env=None, logging_config=None, environ=os.environ)
runtime = connect_driver(
    agent_address=agent, control_address=control, session_dir=session,
    tokens=open_session(session).trust().tokens, job=record, settings=read_environment(), entrypoint="tests", log_to_driver=False,
)
holder.install(runtime)

@shoal.remote
def square(number):
    return number * number

print(shoal.get(square.remote(12), timeout=60), shoal.get_runtime_context().get_job_id())
holder.install(None)
runtime.shutdown()
"""


def test_a_control_store_that_stood_still_declares_nobody_dead():
    with many_nodes(2, node_timeout_s=1.0, node_return_s=30.0) as nodes:
        ids = nodes.living()
        os.kill(nodes.control_pid, signal.SIGSTOP)
        until = time.monotonic() + 3.0  # three times that after which a silent node is dead
        wait_for(lambda: time.monotonic() > until, 30, "the time")
        os.kill(nodes.control_pid, signal.SIGCONT)
        actor = Counting.options(**nodes.on(1)).remote()
        assert shoal.get(actor.add.remote(), timeout=30)[0] == 1
        assert nodes.living() == ids


def test_damaged_tables_are_refused_with_what_to_do():
    with many_nodes(1) as nodes:
        pid = nodes.kill_control()
        tables = nodes.control.session.directory / paths.TABLES_FILE
        log = tables.with_name(f"{tables.name}-wal")
        good = {path: path.read_bytes() for path in (tables, log)}
        for path in good:
            path.write_bytes(b"x" * len(good[path]))
        with pytest.raises(HeadStartError, match=r"are damaged: .*Put a good copy in their place"):
            nodes.restart_control()
        for path, data in good.items():
            path.write_bytes(data)
        nodes.restart_control()
        assert nodes.control_pid not in (0, pid)
        assert shoal.get(square.remote(3), timeout=30) == 9
