"""`fresh_cluster` and the fixtures: what they start, what they end, and what they say when something is left."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import shoal
from shoal import exceptions
from shoal._base import processes
from shoal.testing import LeakError, fresh_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]


@shoal.remote
def pid():
    return os.getpid()


def test_nothing_is_held_or_paused_after_the_end():
    with fresh_cluster() as cluster:
        shoal.get(pid.remote())
        cluster.hold_next(pid)
        pid.remote()
        cluster.wait_running(pid)
        cluster.pause(cluster.head_pid)
    assert not shoal.is_initialized()
    assert not cluster.processes.members()
    assert (cluster.head_pid, cluster.template_pid, cluster.workers()) == (0, 0, [])


def test_a_killed_head_ends_the_session_and_leaves_nothing():
    with fresh_cluster() as cluster:
        shoal.get(pid.remote())
        killed = cluster.kill_head()
        with pytest.raises(exceptions.LocalRayletDiedError):
            shoal.get(pid.remote(), timeout=20)
    assert not processes.is_running(killed)


def test_what_is_left_is_an_error_of_the_block():
    with pytest.raises(LeakError, match=r"file .*/forgotten"):
        with fresh_cluster(faults=False, within_s=0.2) as cluster:
            cluster.context.disconnect()
            (cluster.session_dir / "forgotten").touch()
    (cluster.session_dir / "forgotten").unlink()


def test_an_error_of_the_block_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        with fresh_cluster(faults=False):
            shoal.get(pid.remote())
            raise ZeroDivisionError
    assert not shoal.is_initialized()


def test_without_faults_the_workers_are_plain_and_orders_are_refused():
    with fresh_cluster(faults=False) as cluster:
        worker = shoal.get(pid.remote())
        for call in (
            lambda: cluster.fail_next(pid, ValueError),
            lambda: cluster.hold_next(pid),
            lambda: cluster.wait_running(pid),
            lambda: cluster.kill_worker(running=pid),
            lambda: cluster.kill_worker(idle=True),
        ):
            with pytest.raises(RuntimeError, match=r"fresh_cluster\(faults=True\)"):
                call()
        assert not (cluster.session_dir / "faults").exists()
        assert worker in [one.pid for one in cluster.workers()]
        cluster.kill_worker(pid=worker)


def test_local_mode_has_nothing_to_harm():
    with fresh_cluster(local_mode=True) as cluster:
        assert shoal.get(pid.remote()) == os.getpid()
        assert (cluster.workers(), cluster.head_pid) == ([], 0)
        with pytest.raises(RuntimeError, match="Local mode has no processes"):
            cluster.lose_object(shoal.put(1))


def run_pytest(directory, **files):
    for name, text in {"conftest": 'pytest_plugins = ["shoal.testing.fixtures"]\n', **files}.items():
        (directory / f"{name}.py").write_text(textwrap.dedent(text))
    root = os.path.dirname(os.path.dirname(shoal.__file__))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--strict-markers", "-W", "error", "."],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_fixtures_start_what_markers_and_parameters_ask_for(tmp_path):
    done = run_pytest(
        tmp_path,
        test_it="""
            import pytest, shoal

            seen = []

            def test_default(shoal_cluster):
                assert shoal.cluster_resources()["CPU"] == 2
                seen.append(shoal_cluster)

            @pytest.mark.shoal_options(num_cpus=3)
            def test_marker(shoal_cluster):
                assert shoal.cluster_resources()["CPU"] == 3
                assert not seen[0].processes.members()

            @pytest.mark.shoal_options(num_cpus=3, resources={"x": 1})
            class TestClass:
                @pytest.mark.shoal_options(num_cpus=5)
                def test_the_closest_marker_wins(self, shoal_cluster):
                    assert (shoal.cluster_resources()["CPU"], shoal.cluster_resources()["x"]) == (5, 1)

            @pytest.mark.parametrize("shoal_cluster", [{"num_cpus": 4}], indirect=True)
            def test_parameter(shoal_cluster):
                assert shoal.cluster_resources()["CPU"] == 4
        """,
        test_module="""
            import pytest, shoal

            pytestmark = pytest.mark.shoal_options(num_cpus=1)
            seen = []

            @pytest.mark.parametrize("_", range(2))
            def test_shared(shoal_session, _):
                assert shoal.cluster_resources()["CPU"] == 1
                seen.append(shoal_session)
                assert seen[0] is seen[-1]
        """,
    )
    assert "6 passed" in done.stdout, done.stdout
    assert done.returncode == 0


def test_the_fixtures_name_what_a_test_leaves(tmp_path):
    done = run_pytest(
        tmp_path,
        test_it="""
            import pytest, shoal

            kept = []

            @pytest.mark.shoal_options(within_s=0.2)
            def test_leaks(shoal_cluster):
                kept.append(shoal.put(b"x" * 1_000_000))
                import os
                kept.append(os.memfd_create("shoal-objects"))

            @pytest.mark.shoal_options(1)
            def test_bad_marker(shoal_cluster):
                pass
        """,
    )
    assert "1 passed, 2 errors" in done.stdout, done.stdout
    assert "LeakError: 1 things of the session are still there" in done.stdout
    assert "/memfd:shoal-objects" in done.stdout
    assert "shoal_options takes keywords only" in done.stdout


def test_the_arrays_of_a_failed_test_are_no_leak(tmp_path):
    done = run_pytest(
        tmp_path,
        test_it="""
            import numpy, shoal

            def test_fails(shoal_cluster):
                array = shoal.get(shoal.put(numpy.ones(1_000_000)))
                assert array.sum() == 0
        """,
    )
    assert "1 failed" in done.stdout, done.stdout
    assert "error" not in done.stdout.splitlines()[-1], done.stdout
