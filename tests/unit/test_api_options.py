"""The table of options: wrong types, bad values, unknown names."""

from __future__ import annotations

import pytest

import shoal
from shoal._core.api.options import ACTOR_OPTIONS, METHOD_OPTIONS, TASK_OPTIONS, check_options


def f(a=1):
    return a


def gen():
    yield 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_cpus": "a"}, TypeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": float("nan")}, ValueError),
        ({"num_cpus": 0.00001}, ValueError),
        ({"memory": "1"}, TypeError),
        ({"resources": 3}, TypeError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": {"GPU": 1}}, ValueError),
        ({"resources": {"a": "b"}}, TypeError),
        ({"resources": {"a": -1}}, ValueError),
        ({"accelerator_type": 1}, TypeError),
        ({"label_selector": 3}, TypeError),
        ({"label_selector": {"a": 3}}, TypeError),
        ({"label_selector": {"a": "in()"}}, ValueError),
        ({"label_selector": {"a": "x" * 64}}, ValueError),
        ({"fallback_strategy": [{"no": 1}]}, ValueError),
        ({"name": 3}, TypeError),
        ({"runtime_env": 3}, TypeError),
        ({"scheduling_strategy": 3}, TypeError),
        ({"enable_task_events": 3}, TypeError),
        ({"_labels": 3}, TypeError),
        ({"max_retries": -2}, ValueError),
        ({"max_retries": 1.5}, TypeError),
        ({"retry_exceptions": [1]}, ValueError),
        ({"retry_exceptions": 1}, TypeError),
        ({"num_returns": -1}, ValueError),
        ({"num_returns": "x"}, ValueError),
        ({"num_returns": 1.0}, TypeError),
        ({"_generator_backpressure_num_objects": 0}, ValueError),
        ({"object_store_memory": 1}, ValueError),
        ({"max_calls": 1}, ValueError),
        ({"lifetime": "detached"}, ValueError),
    ],
)
def test_task_options_that_are_refused(options, error):
    with pytest.raises(error):
        shoal.remote(f).options(**options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": ""}, ValueError),
        ({"name": 3}, TypeError),
        ({"namespace": ""}, ValueError),
        ({"lifetime": "x"}, ValueError),
        ({"max_restarts": -2}, ValueError),
        ({"max_task_retries": -2}, ValueError),
        ({"max_concurrency": 0}, ValueError),
        ({"max_calls": 2}, ValueError),
        ({"num_returns": 2}, ValueError),
        ({"concurrency_groups": {"a": 1}}, ValueError),
    ],
)
def test_actor_options_that_are_refused(options, error):
    class A:
        pass

    with pytest.raises(error):
        shoal.remote(A).options(**options)


def test_an_unknown_name_lists_the_valid_ones_and_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"Invalid option keyword 'num_cpu' for remote functions. Did you mean 'num_cpus'\?.*max_retries"):
        shoal.remote(f).options(num_cpu=1)


def test_none_is_as_if_not_given():
    for table in (TASK_OPTIONS, ACTOR_OPTIONS, METHOD_OPTIONS):
        check_options(table, dict.fromkeys(table), "anything")


def test_defaults_are_valid():
    for table in (TASK_OPTIONS, ACTOR_OPTIONS, METHOD_OPTIONS):
        check_options(table, {name: option.default for name, option in table.items()}, "anything")


@pytest.mark.parametrize(
    "options", [{"num_cpus": 1 / 3}, {"num_gpus": 0.5}, {"resources": {"a": 1.5}}, {"retry_exceptions": (ValueError,)}]
)
def test_task_options_that_are_accepted(options):
    shoal.remote(f).options(**options)


def test_the_decorator_wants_options_or_a_target():
    with pytest.raises(AssertionError, match="num_cpus"):
        shoal.remote()
    with pytest.raises(AssertionError):
        shoal.remote(3)
    with pytest.raises(AssertionError):
        shoal.remote(f, num_cpus=1)


@pytest.mark.parametrize("target", [3, "f", None])
def test_the_decorator_wants_a_function_or_class(target):
    with pytest.raises(TypeError, match="function or a class"):
        shoal.remote(num_cpus=1)(target)


def test_what_is_remote_cannot_be_made_remote():
    class A:
        pass

    for target in (shoal.remote(f), shoal.remote(A)):
        with pytest.raises(TypeError):
            shoal.remote(target)


def test_async_functions_are_refused_at_decoration():
    async def wait():
        pass

    with pytest.raises(ValueError, match=r"asyncio\.run"):
        shoal.remote(wait)


def test_streaming_needs_a_generator_function():
    shoal.remote(num_returns="streaming")(gen)
    for words in ("streaming", "dynamic"):
        with pytest.raises(ValueError, match="generator"):
            shoal.remote(num_returns=words)(f)


def test_method_decorator():
    assert shoal.method(f) is f
    assert shoal.method(num_returns=2)(f) is f
    for bad in (lambda: shoal.method(1), lambda: shoal.method(foo=1), lambda: shoal.method(1, num_returns=2)):
        with pytest.raises(AssertionError):
            bad()
    with pytest.raises(TypeError):
        shoal.method(num_returns=[])
