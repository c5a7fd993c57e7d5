"""The ten mistakes of a first day. Each error says what is wrong, why, and what to write instead."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import shoal

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60), pytest.mark.usefixtures("session")]

LOCK = threading.Lock()


@shoal.remote
def same(x=1):
    return x


@shoal.remote
def sleep(seconds):
    time.sleep(seconds)


@shoal.remote
def overwrite(array):
    array[0] = 1


@shoal.remote
def with_lock():
    with LOCK:
        return 1


@shoal.remote
class Shop:
    def __init__(self, database="here"):
        if database != "here":
            raise LookupError(f"no database {database!r}")

    def sales(self):
        return 3


@shoal.remote
class Waiter:
    async def fetch(self, refs):
        return shoal.get(refs[0])


def says(error, *parts):
    text = str(error.value)
    assert [part for part in parts if part not in text] == [], text


def test_misspelt_option():
    with pytest.raises(ValueError) as error:
        same.options(num_cpu=1)
    says(error, "'num_cpu'", "Did you mean 'num_cpus'?", "Valid ones are")


def test_function_called_directly():
    with pytest.raises(TypeError) as error:
        same()
    says(error, "cannot be called directly", "same.remote()")


def test_class_called_directly():
    with pytest.raises(TypeError) as error:
        Shop()
    says(error, "cannot be instantiated directly", "Shop.remote()")


def test_method_without_remote():
    shop = Shop.remote()
    with pytest.raises(TypeError) as error:
        shop.sales()
    says(error, "cannot be called directly", "sales.remote()")


@pytest.mark.parametrize(
    ("wrong", "kind", "parts"),
    [
        (3, ValueError, ("int: 3", "a plain value needs no get()")),
        (same, ValueError, ("RemoteFunction", "was not called", ".remote(")),
        ([3], TypeError, ("list", "int: 3", ".remote()")),
    ],
)
def test_get_of_something_else(wrong, kind, parts):
    with pytest.raises(kind) as error:
        shoal.get(wrong)
    says(error, "get() takes", *parts)


def test_wait_for_one_reference():
    with pytest.raises(TypeError) as error:
        shoal.wait(same.remote())
    says(error, "expected a list", "got ObjectRef", "[ref]")


def test_function_that_cannot_be_pickled():
    held = threading.Lock()

    @shoal.remote
    def closure():
        with held:
            return 1

    with pytest.raises(TypeError) as error:
        closure.remote()
    says(error, "Could not serialize the function", "held", "lock", "Create it inside the task")


def test_argument_that_cannot_be_pickled():
    with pytest.raises(TypeError) as error:
        same.remote(LOCK)
    says(error, "argument 0", "lock", "Create it inside the task")


def test_more_cpus_than_there_are(capfd):
    ref = same.options(num_cpus=64).remote()
    with pytest.raises(shoal.exceptions.GetTimeoutError):
        shoal.get(ref, timeout=1)
    shown = capfd.readouterr().err
    assert "needs 64 CPUs; the largest node has 2" in shown
    assert "num_cpus<=2" in shown
    shoal.cancel(ref)


def test_more_cpus_than_there_are_for_an_actor(capfd):
    shop = Shop.options(num_cpus=32).remote()
    with pytest.raises(shoal.exceptions.GetTimeoutError):
        shoal.get(shop.sales.remote(), timeout=1)
    shown = capfd.readouterr().err
    assert "Actor Shop needs 32 CPUs; the largest node has 2" in shown
    assert "num_cpus<=2" in shown


def test_constructor_that_raises():
    shop = Shop.remote("elsewhere")
    with pytest.raises(shoal.exceptions.ActorDiedError) as error:
        shoal.get(shop.sales.remote())
    says(error, "its __init__ raised", "LookupError: no database 'elsewhere'", "test_mistakes.py", "make a new one")


def test_change_of_an_array_in_the_driver():
    array = shoal.get(shoal.put(np.zeros(100_000)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_change_of_an_array_in_a_task():
    with pytest.raises(ValueError) as error:
        shoal.get(overwrite.remote(np.zeros(100_000)))
    says(error, "read-only", "other tasks may read the same memory", "x.copy()")


def test_get_in_an_async_actor(capfd):
    waiter = Waiter.remote()
    assert shoal.get([waiter.fetch.remote([same.remote()]) for _ in range(3)]) == [1, 1, 1]
    shown = ""
    deadline = time.monotonic() + 5
    while "async actor" not in shown and time.monotonic() < deadline:
        time.sleep(0.05)
        shown += capfd.readouterr().err
    time.sleep(0.3)
    shown += capfd.readouterr().err
    assert shown.count("A blocking get() in Waiter.fetch, an async actor") == 1
    assert "stops the event loop" in shown
    assert "await ref" in shown


def test_no_warning_when_it_is_switched_off(tmp_path):
    import subprocess
    import sys

    program = (
        "import shoal, time\n"
        "@shoal.remote\n"
        "class W:\n"
        "    async def f(self, r): return shoal.get(r[0])\n"
        "shoal.init(num_cpus=1)\n"
        "print(shoal.get(W.remote().f.remote([shoal.put(5)])))\n"
        "time.sleep(0.5)\n"
    )
    import os

    environ = {**os.environ, "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "5\n"
    assert "async actor" not in done.stderr


def test_timeout():
    ref = sleep.remote(30)
    with pytest.raises(shoal.exceptions.GetTimeoutError) as error:
        shoal.get(ref, timeout=0.2)
    says(error, "waited 0.2 s", "1 of 1 objects", "sleep", "Nothing was cancelled", "shoal.cancel()")
    shoal.cancel(ref, force=True)
