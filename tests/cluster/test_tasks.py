"""Tasks in real processes: arguments, results, errors, nesting, the worker's environment."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal.exceptions import RayTaskError, WorkerCrashedError

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("session")]


@shoal.remote
def add(a, b=1, *more, **named):
    return a + b + sum(more) + sum(named.values())


@shoal.remote
def echo(value):
    return value


@shoal.remote
def pid():
    return os.getpid()


@shoal.remote
def fail(error, *args):
    raise error(*args)


class Odd(Exception):
    """An exception that its class's own constructor cannot rebuild."""

    def __init__(self, a, b):
        super().__init__(a)
        self.a, self.b = a, b


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code):
        self.code = code


# --- results ----------------------------------------------------------------------------------------------


def test_task_runs_in_another_process():
    assert shoal.get(pid.remote()) != os.getpid()


def test_no_returns_gives_none_and_runs(tmp_path):
    @shoal.remote(num_returns=0)
    def touch(path):
        open(path, "w").close()

    @shoal.remote
    def after():
        return True

    assert touch.remote(str(tmp_path / "ran")) is None
    deadline = time.monotonic() + 20
    while not (tmp_path / "ran").exists():
        assert time.monotonic() < deadline
        assert shoal.get(after.remote())


def test_several_returns():
    @shoal.remote(num_returns=3)
    def three():
        return 1, "two", [3]

    assert shoal.get(three.remote()) == [1, "two", [3]]
    assert shoal.get(echo.options(num_returns=2).remote([5, 6])) == [5, 6]


def test_wrong_number_of_returns():
    refs = echo.options(num_returns=2).remote((1, 2, 3))
    for ref in refs:
        with pytest.raises(ValueError, match="num_returns=2"):
            shoal.get(ref)


def test_generator_with_a_fixed_number_of_returns():
    @shoal.remote(num_returns=3)
    def squares():
        for i in range(3):
            yield i * i

    assert shoal.get(squares.remote()) == [0, 1, 4]


# --- arguments --------------------------------------------------------------------------------------------


def test_positional_and_keyword_arguments():
    assert shoal.get(add.remote(1)) == 2
    assert shoal.get(add.remote(1, 2, 3, x=4, y=5)) == 15
    assert shoal.get(add.remote(b=1, a=2)) == 3


def test_references_as_arguments():
    one = shoal.put(1)
    two = add.remote(one)
    assert shoal.get(add.remote(one, b=two)) == 3
    assert shoal.get(add.remote(1, 1, one, two, z=two)) == 7


def test_nested_references_stay_references():
    @shoal.remote
    def look(holder):
        ref = holder["here"][0]
        assert isinstance(ref, shoal.ObjectRef)
        return shoal.get(ref)

    assert shoal.get(look.remote({"here": [shoal.put("value")]})) == "value"
    assert shoal.get(look.remote({"here": [echo.remote("later")]})) == "later"


def test_arguments_are_copies():
    mine = [1]
    ref = echo.remote(mine)
    mine.append(2)
    assert shoal.get(ref) == [1]


def test_the_same_reference_twice_in_one_call():
    ref = echo.remote(2)
    assert shoal.get(add.remote(ref, ref)) == 4


def test_argument_dropped_at_once():
    assert shoal.get(add.remote(shoal.put(1), add.remote(shoal.put(2), 3))) == 6


def test_argument_that_cannot_be_serialized():
    with pytest.raises(TypeError, match="serialize"):
        echo.remote(threading.Lock())


def test_result_that_cannot_be_serialized():
    @shoal.remote
    def lock():
        return threading.Lock()

    with pytest.raises(TypeError):
        shoal.get(lock.remote())


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [(ValueError, "bad"), (KeyError, "k"), (Odd, 1, 2), (Slotted, 7), (ExceptionGroup, "g", [ValueError("x")])]
)
def test_errors_arrive_as_their_own_class(error):
    with pytest.raises(error[0]) as caught:
        shoal.get(fail.remote(*error))
    assert isinstance(caught.value, RayTaskError)
    assert type(caught.value.cause) is error[0]
    if error[0] is Odd:
        assert (caught.value.a, caught.value.b) == (1, 2)
    assert "test_tasks.py" in str(caught.value)


def test_base_exceptions_arrive():
    class Stop(BaseException):
        pass

    @shoal.remote
    def stop():
        raise Stop

    with pytest.raises(RayTaskError):
        shoal.get(stop.remote())


def test_failed_dependency_fails_the_task():
    broken = fail.remote(ValueError, "deep")
    last = add.remote(add.remote(add.remote(broken), 1), 2)
    with pytest.raises(ValueError, match="deep"):
        shoal.get(last)
    with pytest.raises(ValueError, match="deep"):
        shoal.get(add.remote(1, b=broken))


def test_error_of_a_nested_task():
    @shoal.remote
    def outer():
        return shoal.get(fail.remote(KeyError, "inner"))

    with pytest.raises(KeyError):
        shoal.get(outer.remote())


def test_first_failed_of_a_list_raises():
    with pytest.raises(ValueError):
        shoal.get([echo.remote(1), fail.remote(ValueError), echo.remote(2)])


def test_user_errors_are_retried_when_asked(tmp_path):
    log = tmp_path / "runs"

    @shoal.remote(max_retries=2, retry_exceptions=True)
    def flaky():
        with open(log, "a") as file:
            file.write("x")
        raise ValueError("again")

    with pytest.raises(ValueError):
        shoal.get(flaky.remote())
    assert log.read_text() == "xxx"


def test_retry_of_listed_classes_only(tmp_path):
    log = tmp_path / "runs"

    @shoal.remote(max_retries=2, retry_exceptions=[KeyError])
    def flaky():
        with open(log, "a") as file:
            file.write("x")
        raise ValueError("once")

    with pytest.raises(ValueError):
        shoal.get(flaky.remote())
    assert log.read_text() == "x"


def test_worker_that_dies():
    @shoal.remote(max_retries=0)
    def die():
        os._exit(3)

    with pytest.raises(WorkerCrashedError):
        shoal.get(die.remote())
    assert shoal.get(add.remote(1)) == 2


def test_killed_worker_is_replaced(tmp_path):
    log = tmp_path / "runs"

    @shoal.remote(max_retries=1)
    def die_once():
        with open(log, "a") as file:
            file.write("x")
        if len(log.read_text()) == 1:
            os.kill(os.getpid(), 9)
        return "done"

    assert shoal.get(die_once.remote()) == "done"
    assert log.read_text() == "xx"


# --- many, deep -------------------------------------------------------------------------------------------


def test_chain_of_10000_tasks():
    ref = shoal.put(0)
    for _ in range(10_000):
        ref = add.remote(ref)
    assert shoal.get(ref) == 10_000


def test_chain_of_10000_tasks_that_fails_at_its_start():
    ref = fail.remote(ValueError, "first")
    for _ in range(10_000):
        ref = add.remote(ref)
    with pytest.raises(ValueError, match="first"):
        shoal.get(ref)


def test_many_tasks():
    assert shoal.get([echo.remote(i) for i in range(3000)]) == list(range(3000))


def test_fan_in_of_1000_references():
    assert shoal.get(add.remote(0, 0, *[echo.remote(1) for _ in range(1000)])) == 1000


@shoal.remote
def count_down(n):
    return 0 if n == 0 else 1 + shoal.get(count_down.remote(n - 1))


def test_recursion():
    assert shoal.get(count_down.remote(30)) == 30


def test_nested_gets():
    @shoal.remote
    def total(n):
        return sum(shoal.get([echo.remote(i) for i in range(n)]))

    assert shoal.get([total.remote(20) for _ in range(6)]) == [190] * 6


def test_nested_wait():
    @shoal.remote
    def first(refs):
        ready, _ = shoal.wait(refs, num_returns=len(refs))
        return len(ready)

    assert shoal.get(first.remote([echo.remote(i) for i in range(5)])) == 5


def test_calls_from_many_threads():
    def work(i):
        return shoal.get([add.remote(i, j) for j in range(20)])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [[i + j for j in range(20)] for i in range(8)]


def test_calls_from_threads_of_a_task():
    @shoal.remote
    def spread():
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda i: shoal.get(echo.remote(i)), range(6)))

    assert shoal.get(spread.remote()) == list(range(6))


# --- functions --------------------------------------------------------------------------------------------


def test_redefined_function_runs_its_newest_body():
    for i in range(50):

        @shoal.remote
        def current():
            return i  # noqa: B023 - the value at the first call is what is asked for

        assert shoal.get(current.remote()) == i


def test_closure_is_frozen_at_the_first_call():
    seen = []

    @shoal.remote
    def look():
        return list(seen)

    assert shoal.get(look.remote()) == []
    seen.append(1)
    assert shoal.get(look.remote()) == []


def test_large_closure_is_exported_once():
    big = bytes(20_000_000)

    @shoal.remote
    def size():
        return len(big)

    assert shoal.get(size.remote()) == 20_000_000
    begin = time.monotonic()
    assert shoal.get([size.remote() for _ in range(100)]) == [20_000_000] * 100
    assert time.monotonic() - begin < 5


def test_reference_in_a_closure():
    ref = shoal.put("kept")

    @shoal.remote
    def read():
        return shoal.get(ref)  # noqa: F821 - deleted below

    assert shoal.get(read.remote()) == "kept"
    del ref
    assert shoal.get(read.remote()) == "kept"


def test_remote_function_as_an_argument():
    @shoal.remote
    def call(function, value):
        return shoal.get(function.remote(value))

    assert shoal.get(call.remote(add, 5)) == 6


def test_max_calls_ends_the_worker():
    once = pid.options()  # max_calls is the decorator's
    assert once is not pid

    @shoal.remote(max_calls=1)
    def fresh():
        return os.getpid()

    pids = shoal.get([fresh.remote() for _ in range(4)])
    assert len(set(pids)) == 4


# --- environment ------------------------------------------------------------------------------------------


def test_working_directory_and_import_path():
    @shoal.remote
    def here():
        return os.getcwd(), sys.path

    cwd, path = shoal.get(here.remote())
    assert cwd == os.getcwd()
    assert set(sys.path) - {""} <= set(path)


def test_environment_variables_of_a_task():
    @shoal.remote(runtime_env={"env_vars": {"SHOAL_TEST_COLOUR": "teal"}})
    def colour():
        return os.environ.get("SHOAL_TEST_COLOUR")

    @shoal.remote
    def plain():
        return os.environ.get("SHOAL_TEST_COLOUR")

    assert shoal.get(colour.remote()) == "teal"
    assert shoal.get(plain.remote()) is None


def test_context_of_a_task():
    @shoal.remote
    def context():
        context = shoal.get_runtime_context()
        return context.get_task_id(), context.get_job_id()

    task, job = shoal.get(context.remote())
    assert task
    assert job == shoal.get_runtime_context().get_job_id()


# --- resources --------------------------------------------------------------------------------------------


def rendezvous(folder, number):
    """Come in; leave when ``number`` have come in. Returns when this call was inside."""
    begin = time.monotonic()
    (folder / f"in-{os.getpid()}-{begin}").touch()
    while len(list(folder.iterdir())) < number:
        time.sleep(0.002)
    return begin, time.monotonic()


def most_at_once(spans):
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


def test_two_cpus_run_two_tasks(tmp_path):
    meet = shoal.remote(rendezvous)
    spans = shoal.get([meet.remote(tmp_path, 2) for _ in range(6)], timeout=30)  # fewer at once would wait for ever
    assert most_at_once(spans) == 2


def test_fractional_resources(tmp_path):
    meet = shoal.remote(num_cpus=0.5)(rendezvous)
    spans = shoal.get([meet.remote(tmp_path, 4) for _ in range(9)], timeout=30)
    assert most_at_once(spans) == 4


def test_zero_cpus_are_not_limited_to_two(tmp_path):
    meet = shoal.remote(num_cpus=0)(rendezvous)
    shoal.get([meet.remote(tmp_path, 5) for _ in range(5)], timeout=30)


def test_resources_return():
    shoal.get([echo.remote(i) for i in range(50)])
    deadline = time.monotonic() + 10
    while shoal.available_resources().get("CPU") != shoal.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_placement_group():
    group = shoal.util.placement_group([{"CPU": 1}], strategy="PACK")
    assert shoal.get(group.ready(), timeout=20) is not None
    strategy = shoal.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    assert shoal.get(add.options(scheduling_strategy=strategy).remote(1)) == 2
    shoal.util.remove_placement_group(group)
