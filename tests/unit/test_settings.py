"""The environment variables that steer the runtime: under both names, and what they must not be."""

from __future__ import annotations

import logging
import os

import pytest

import shoal
from shoal._base.settings import Settings, read_environment
from shoal._core.api import lifecycle
from shoal._core.api.job import JobConfig, job_record
from shoal._core.api.node_overrides import override_node
from shoal._core.process.options import HeadOptions
from shoal._core.process.resources import plan
from shoal._core.worker.execution import environment
from shoal._core.worker.execution.job import apply_job

#: Ray's name, its value, the field, what it becomes.
KNOWN = [
    ("RAY_TASK_MAX_RETRIES", "-1", "task_max_retries", -1),
    ("RAY_LOG_TO_DRIVER", "0", "log_to_driver", False),
    ("RAY_DEDUP_LOGS", "off", "dedup_logs", False),
    ("RAY_DEDUP_LOGS_ALLOW_REGEX", "^a.*", "dedup_logs_allow_regex", "^a.*"),
    ("RAY_DEDUP_LOGS_SKIP_REGEX", "b$", "dedup_logs_skip_regex", "b$"),
    ("RAY_LOGGER_LEVEL", "WARNING", "logger_level", "warning"),
    ("RAY_ROTATION_MAX_BYTES", "1000", "log_rotate_bytes", 1000),
    ("RAY_ENABLE_AUTO_CONNECT", "0", "auto_init", False),
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1", "hide_unassigned_devices", True),
    ("RAY_memory_monitor_refresh_ms", "500", "memory_monitor_s", 0.5),
    ("RAY_memory_monitor_refresh_ms", "0", "memory_monitor_s", 0.0),
    ("RAY_memory_usage_threshold", "0.5", "memory_usage_threshold", 0.5),
    ("RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION", "0.1", "store_share", 0.1),
    ("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", "100000000", "store_most_bytes", 10**8),
]


@pytest.mark.parametrize(("name", "text", "field", "value"), KNOWN)
def test_rays_names(name, text, field, value):
    assert getattr(read_environment({name: text}), field) == value != getattr(Settings(), field)


def test_the_own_name_wins_and_counts_in_the_fields_unit():
    read = read_environment({"SHOAL_MEMORY_MONITOR_S": "2", "RAY_memory_monitor_refresh_ms": "500"})
    assert read.memory_monitor_s == 2.0


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("RAY_LOG_TO_DRIVER", "maybe", "0, false"),
        ("RAY_ENABLE_AUTO_CONNECT", "2", "0, false"),
        ("RAY_LOGGER_LEVEL", "loud", "debug, info, warning"),
        ("RAY_DEDUP_LOGS_SKIP_REGEX", "(", "regular expression"),
        ("RAY_memory_monitor_refresh_ms", "-1", "at least 0"),
        ("RAY_memory_monitor_refresh_ms", "soon", "number"),
        ("RAY_memory_usage_threshold", "1.5", "from 0 to 1"),
        ("RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION", "nan", "from 0 to 1"),
        ("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", "1e9", "number (int)"),
        ("SHOAL_CANCEL_GRACE_S", "inf", "number"),
        ("RAY_TASK_MAX_RETRIES", "-2", "at least -1"),
        ("RAY_OVERRIDE_RESOURCES", "[1]", "JSON object"),
        ("RAY_OVERRIDE_RESOURCES", '{"GPU": -1}', ">= 0, got -1"),
        ("RAY_OVERRIDE_RESOURCES", '{"object_store_memory": 5}', "75 MiB"),
        ("RAY_OVERRIDE_LABELS", "zone=a", "JSON object"),
        ("RAY_OVERRIDE_LABELS", '{"ray.io/x": "1"}', "ray.io"),
        ("RAY_RUNTIME_ENV", "{", "JSON object"),
    ],
)
def test_bad_values_end_init_with_the_variable_and_what_is_allowed(name, text, allowed, monkeypatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=name) as info:
        shoal.init(local_mode=True)
    assert allowed in str(info.value)
    assert not shoal.is_initialized()


def test_node_overrides():
    node = {"num_cpus": 4, "num_gpus": None, "resources": {"a": 1.0, "b": 2.0}, "labels": {"zone": "a", "rack": "1"}}
    resources = '{"CPU": 2, "GPU": 1, "memory": 5, "object_store_memory": 100000000, "b": 3}'
    override_node(node, {"RAY_OVERRIDE_RESOURCES": resources, "RAY_OVERRIDE_LABELS": '{"zone": "b"}'})
    assert node == {
        "num_cpus": 2, "num_gpus": 1, "memory_bytes": 5, "object_store_bytes": 10**8,
        "resources": {"a": 1.0, "b": 3.0}, "labels": {"zone": "b", "rack": "1"},
    }  # fmt: skip


def test_the_size_of_the_object_store():
    most = HeadOptions(settings=read_environment({"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(80 << 20)}))
    assert plan(most).object_store_bytes == 80 << 20
    least = HeadOptions(settings=read_environment({"RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0"}))
    assert plan(least).object_store_bytes == 75 << 20


def test_the_default_runtime_env():
    environ = {"RAY_RUNTIME_ENV": '{"env_vars": {"A": "1"}}'}

    def variables(config=None, runtime_env=None):
        return job_record(job_config=config, namespace=None, runtime_env=runtime_env, logging_config=None, environ=environ).env

    assert variables() == {"A": "1"}
    assert variables(runtime_env={"env_vars": {"B": "2"}}) == {"B": "2"}
    assert variables(runtime_env={}) == {}
    assert variables(JobConfig(runtime_env={"env_vars": {"C": "3"}})) == {"C": "3"}


def test_no_start_at_first_use(monkeypatch):
    monkeypatch.setattr(lifecycle, "init", lambda *a, **k: pytest.fail("it started a session"))
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")
    with pytest.raises(RuntimeError, match=r"shoal\.init\(\) first.*RAY_ENABLE_AUTO_CONNECT=0"):
        shoal.put(1)


def test_the_level_of_the_logger(monkeypatch):
    logger = logging.getLogger("shoal")
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setenv("RAY_LOGGER_LEVEL", "ERROR")
    for given, level in (({}, logging.ERROR), ({"logging_level": "debug"}, logging.DEBUG)):
        with shoal.init(local_mode=True, **given):
            assert logger.level == level


def test_devices_of_a_task_without(monkeypatch):
    monkeypatch.setattr(environment, "_ours", {"OMP_NUM_THREADS"})
    monkeypatch.setattr(environment, "_offered", {})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    for name in set(environment.VISIBLE_DEVICES.values()) - {"CUDA_VISIBLE_DEVICES"}:
        monkeypatch.setenv(name, "0")

    def seen(devices, **options):
        environment.apply_lease_environment({"CPU": 10000}, {"GPU": devices}, **options)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    assert [seen([]), seen([1]), seen([]), seen([0])] == ["4,5", "5", "4,5", "4"]
    assert [seen([], hide_unassigned=True), seen([1], hide_unassigned=True)] == ["", "5"]


def test_a_worker_shows_the_drivers_script_as_its_program(monkeypatch, tmp_path):
    for place, name in ((os, "environ"), (environment.sys, "path"), (environment.sys, "argv")):
        monkeypatch.setattr(place, name, place.__dict__[name].copy())
    monkeypatch.chdir(tmp_path)
    record = job_record(job_config=None, namespace=None, runtime_env=None, logging_config=None, environ={})
    for path in ("/somewhere/script.py", ""):
        record.main_path = path
        apply_job(record)
        assert environment.sys.argv == [path]
