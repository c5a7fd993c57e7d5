"""``init`` and ``shutdown`` without processes, the job's record, and the names of the package."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

import shoal
from shoal._base.log_config import LoggingConfig
from shoal._base.optional import try_import
from shoal._core.api import lifecycle
from shoal._core.api.job import JobConfig, job_record


@pytest.fixture(autouse=True)
def no_session():
    yield
    shoal.shutdown()
    shoal.shutdown()


def record(environ=None, **arguments):
    given = {"job_config": None, "namespace": None, "runtime_env": None, "logging_config": None, **arguments}
    return job_record(**given, environ=environ or {})


def test_init_twice():
    context = shoal.init(local_mode=True)
    assert shoal.is_initialized()
    with pytest.raises(RuntimeError, match="ignore_reinit_error"):
        shoal.init(local_mode=True)
    assert shoal.init(ignore_reinit_error=True) is context
    shoal.shutdown()
    assert not shoal.is_initialized()


def test_the_context_is_a_mapping_and_a_context_manager():
    with shoal.init(local_mode=True) as context:
        assert {"address", "node_id", "session_dir", "webui_url"} <= set(context)
        assert context.address_info["node_id"] == shoal.get_runtime_context().get_node_id()
        with pytest.warns(DeprecationWarning, match="address_info"):
            assert context["node_ip_address"] == "127.0.0.1"
        assert context.python_version == sys.version.split()[0]
    assert not shoal.is_initialized()


def test_keywords():
    with pytest.raises(RuntimeError, match=r"Unknown keyword argument.*num_cpu.*Did you mean 'num_cpus'"):
        shoal.init(local_mode=True, num_cpu=1)
    with pytest.raises(RuntimeError, match=r"Unknown keyword argument.*foo\. Valid ones: .*num_cpus, .*runtime_env"):
        shoal.init(local_mode=True, foo=3)
    with pytest.raises(TypeError):
        shoal.init(local_mode=True, _system_config=3)
    given = {"anything": 1}
    shoal.init(local_mode=True, _system_config=given, _temp_dir=None)
    assert given == {"anything": 1}


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("auto", "No running cluster of this user .*shoal start --head"),
        ("127.0.0.1:1", r"No cluster can be reached at '127.0.0.1:1' \(from init\(address=...\)\): Cannot connect"),
        ("ray://host:10001", "no client protocol"),
        ("6379", "no address"),
        ("host:0", "no address"),
        ("host:port", "no address"),
    ],
)
def test_there_is_no_cluster_to_join(address, match):
    with pytest.raises(ConnectionError, match=match):
        shoal.init(address)
    assert not shoal.is_initialized()


def test_an_address_must_be_a_string():
    with pytest.raises(TypeError, match="address must be a string or None, got int: 6379"):
        shoal.init(6379)


@pytest.mark.parametrize("address", [None, "auto"])
def test_ray_address_counts_without_an_address(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConnectionError, match=r"'127.0.0.1:1' \(from RAY_ADDRESS\)"):
        shoal.init(address)
    with pytest.raises(ConnectionError, match=r"'127.0.0.1:1' \(from RAY_ADDRESS\)"):  # who never called init, too
        shoal.put(1)


def test_local_mode_joins_nothing(monkeypatch):
    with pytest.raises(ValueError, match="joins no cluster"):
        shoal.init("10.0.0.1:6379", local_mode=True)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    shoal.init("local", local_mode=True)
    shoal.shutdown()
    shoal.init(local_mode=True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": "x"}, TypeError),
        ({"labels": {"ray.io/x": "1"}}, ValueError),
        ({"labels": "x"}, TypeError),
        ({"namespace": ""}, ValueError),
        ({"namespace": 3}, TypeError),
        ({"num_cpus": "2"}, TypeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_gpus": -1}, ValueError),
        ({"object_store_memory": 10}, ValueError),
        ({"object_store_memory": "1g"}, TypeError),
        ({"_memory": -5}, ValueError),
        ({"_node_name": 3}, TypeError),
        ({"_temp_dir": 3}, TypeError),
        ({"runtime_env": 3}, TypeError),
        ({"job_config": 3}, TypeError),
        ({"job_config": JobConfig(ray_namespace=3)}, TypeError),
        ({"logging_config": 3}, TypeError),
    ],
)
def test_bad_values(arguments, error):
    with pytest.raises(error):
        shoal.init(local_mode=True, **arguments)
    assert not shoal.is_initialized()


def test_the_first_use_starts_a_session_and_so_does_the_next_after_shutdown(monkeypatch):
    monkeypatch.setattr(lifecycle, "init", lambda *a, **k: shoal.init(*a, **k, local_mode=True))
    double = shoal.remote(lambda x: 2 * x)
    ref = double.remote(1)
    assert shoal.get(ref) == 2
    shoal.shutdown()
    with pytest.raises(ValueError, match="owner is unknown"):
        shoal.get(ref)
    assert not shoal.is_initialized()
    assert shoal.get(double.remote(shoal.put(2))) == 4


def test_questions_before_init():
    for ask in (shoal.nodes, shoal.cluster_resources, shoal.available_resources):
        with pytest.raises(shoal.exceptions.RaySystemError, match="init"):
            ask()
    assert shoal.get([]) == []
    assert not shoal.is_initialized()


def test_the_jobs_record():
    config = JobConfig(runtime_env={"env_vars": {"A": "1"}}, metadata={"k": "v"}, ray_namespace="n", default_actor_lifetime="detached")
    made = record(job_config=config, runtime_env={"env_vars": {"B": "2"}})
    assert made.env == {"A": "1", "B": "2"}
    assert (made.namespace, made.metadata, made.default_actor_lifetime) == ("n", {"k": "v"}, "detached")
    assert made.cwd == os.getcwd()
    assert os.getcwd() in made.sys_path
    assert all(map(os.path.isabs, made.sys_path))
    assert record(namespace="own", job_config=config).namespace == "own"
    assert record(environ={"RAY_NAMESPACE": "env"}).namespace == "env"
    assert record().namespace != record().namespace


def test_a_submitted_jobs_environment_must_not_differ():
    environ = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"working_dir": "/", "env_vars": {"A": "1"}}})}
    assert json.loads(record(environ, runtime_env={"env_vars": {"B": "2"}}).runtime_env)["env_vars"] == {"A": "1", "B": "2"}
    for own in ({"working_dir": "/tmp"}, {"env_vars": {"A": "2"}}):
        with pytest.raises(ValueError, match="differ"):
            record(environ, runtime_env=own)
        assert record({**environ, "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}, runtime_env=own)


def test_bad_job_configs():
    with pytest.raises(ValueError):
        JobConfig(default_actor_lifetime="x")
    with pytest.raises(TypeError):
        JobConfig(code_search_path=[3])


def test_logging_config():
    for bad in ({"encoding": "x"}, {"additional_log_standard_attrs": ["x"]}):
        with pytest.raises(ValueError):
            shoal.LoggingConfig(**bad)
    config = shoal.LoggingConfig(encoding="JSON", log_level="DEBUG", additional_log_standard_attrs=["name"])
    assert LoggingConfig.from_json(config.to_json()) == config


def test_log_records_say_where_they_were_written(capsys):
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    try:
        shoal.init(local_mode=True, logging_config=shoal.LoggingConfig(encoding="JSON"))
        logging.getLogger("mine").info("hello %s", 1)
    finally:
        root.handlers[:], root.level = kept
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["message"] == "hello 1"
    assert line["job_id"] == shoal.get_runtime_context().get_job_id()


def test_a_forked_child_has_no_session():
    shoal.init(local_mode=True)
    pid = os.fork()
    if pid == 0:
        os._exit(int(shoal.is_initialized()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert shoal.is_initialized()


def test_sigterm_ends_the_driver_in_good_order():
    program = """
import atexit, os, signal, shoal
shoal.init(local_mode=True)
atexit.register(lambda: print("end", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (15, "end\n")


def test_public_names():
    for name in shoal.__all__:
        value = getattr(shoal, name)
        if name != "ObjectID" and callable(value) and name not in ("Language",):
            assert value.__module__ == "shoal", name
    assert set(dir(shoal)) == set(shoal.__all__)
    for name in shoal.util.__all__:
        assert getattr(shoal.util, name) is not None


@pytest.mark.parametrize("name", ["dag", "timeline", "data", "nothing"])
def test_names_that_do_not_exist(name):
    with pytest.raises(AttributeError):
        getattr(shoal, name)


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    for _ in range(2):
        with pytest.raises(ImportError, match=r"pip install 'shoal\[x\]'"):
            try_import("no_such_module_anywhere", "shoal[x]")
    assert try_import("json", "json") is json
