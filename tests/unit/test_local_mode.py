"""The public API on local mode: the semantics that need no second process."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import pytest

import shoal
from shoal import exceptions


@pytest.fixture(autouse=True)
def session():
    shoal.init(local_mode=True, num_cpus=4, resources={"x": 2}, labels={"zone": "a"})
    yield
    shoal.shutdown()


@shoal.remote
def add(a, b=1):
    return a + b


@shoal.remote
class Counter:
    kind = "counter"

    def __init__(self, start=0):
        self.n = start

    def add(self, k=1):
        self.n += k
        return self.n

    @shoal.method(num_returns=2)
    def both(self):
        return self.n, -self.n

    @classmethod
    def name(cls):
        return cls.__name__

    @staticmethod
    def double(x):
        return 2 * x

    @property
    def prop(self):
        return 1

    def upto(self, n):
        yield from range(n)

    def fail(self):
        raise KeyError("k")

    def leave(self):
        shoal.actor.exit_actor()

    def me(self):
        return shoal.get_runtime_context().current_actor


class TwoArgs(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b


# --- tasks ---------------------------------------------------------------------------------------------------------------------


def test_results_in_every_form():
    assert shoal.get(add.remote(1)) == 2
    assert shoal.get([add.remote(i, b=i) for i in range(3)]) == [0, 2, 4]
    assert add.options(num_returns=0).remote(1) is None
    pair = shoal.remote(lambda: (1, 2)).options(num_returns=2).remote()
    assert shoal.get(list(pair)) == [1, 2]
    assert shoal.get(add._remote((1,), {"b": 5}, num_cpus=2)) == 6
    assert add._function(1, 2) == 3


def test_references_at_top_level_become_values_and_inside_stay():
    ref = shoal.put(5)
    assert shoal.get(add.remote(ref, b=ref)) == 10
    assert shoal.get(shoal.remote(lambda box: shoal.get(box[0])).remote([ref])) == 5


def test_wrong_number_of_returns():
    with pytest.raises(ValueError, match="Task returned 3 objects, but num_returns=2"):
        shoal.get(shoal.remote(lambda: (1, 2, 3)).options(num_returns=2).remote()[0])


def test_arguments_and_results_are_copies():
    data = [1]

    @shoal.remote
    def change(x):
        x.append(2)
        return x

    result = shoal.get(change.remote(data))
    assert (data, result) == ([1], [1, 2])
    ref = shoal.put(data)
    shoal.get(ref).append(9)
    assert shoal.get(ref) == [1]


def test_closures_are_frozen_at_the_first_call():
    box = [1]

    @shoal.remote
    def read():
        return box[0]

    assert shoal.get(read.remote()) == 1
    box[0] = 2
    assert shoal.get(read.remote()) == 1


def test_errors_keep_their_class_and_attributes():
    @shoal.remote
    def bad():
        raise TwoArgs("text", {"b": 1})

    with pytest.raises(TwoArgs) as caught:
        shoal.get(bad.remote())
    assert isinstance(caught.value, exceptions.RayTaskError)
    assert caught.value.b == {"b": 1}
    assert "in bad" in str(caught.value)


def test_a_failed_dependency_fails_the_task_with_its_error():
    bad = shoal.remote(lambda: 1 / 0).remote()
    with pytest.raises(ZeroDivisionError):
        shoal.get(add.remote(bad))


@pytest.mark.parametrize(("limit", "runs"), [(None, 4), (0, 1), (2, 3)])
def test_sys_exit_is_a_crash_and_is_retried_as_one(limit, runs, tmp_path):
    log = tmp_path / "log"

    @shoal.remote
    def leave():
        with open(log, "a") as f:
            f.write("x")
        exit(3)

    options = {} if limit is None else {"max_retries": limit}
    with pytest.raises(exceptions.WorkerCrashedError, match=rf"sys\.exit\(3\) was called in function leave at {__file__}:\d+"):
        shoal.get(leave.options(**options).remote())
    assert log.read_text() == "x" * runs


def test_a_task_that_calls_sys_exit_once_has_its_value(tmp_path):
    @shoal.remote
    def leave_once():
        try:
            os.mkdir(tmp_path / "been here")
        except FileExistsError:
            return "value"
        sys.exit()

    assert shoal.get(leave_once.remote()) == "value"


@shoal.remote
class Leaver:
    def __init__(self, at_once=False):
        if at_once:
            sys.exit(1)

    def leave(self):
        sys.exit(3)


def test_sys_exit_in_an_actor_ends_it():
    leaver = Leaver.remote()
    for _ in range(2):
        with pytest.raises(exceptions.ActorDiedError):
            shoal.get(leaver.leave.remote())


def test_sys_exit_in_a_constructor_is_an_actor_that_cannot_start():
    with pytest.raises(exceptions.ActorDiedError):
        shoal.get(Leaver.remote(True).leave.remote())


@pytest.mark.parametrize(("which", "runs"), [(True, 3), ([KeyError], 3), ([ValueError], 1), (False, 1)])
def test_retry_exceptions(which, runs, tmp_path):
    log = tmp_path / "log"

    @shoal.remote(max_retries=2, retry_exceptions=which)
    def fail():
        with open(log, "a") as f:
            f.write("x")
        raise KeyError

    with pytest.raises(KeyError):
        shoal.get(fail.remote())
    assert log.read_text() == "x" * runs


def test_recursion_and_functions_in_arguments():
    @shoal.remote
    def fact(n):
        return 1 if n == 0 else n * shoal.get(fact.remote(n - 1))

    assert shoal.get(fact.remote(10)) == 3628800
    assert shoal.get(shoal.remote(lambda f: shoal.get(f.remote(3))).remote(fact)) == 6


def test_direct_call_and_bad_calls():
    with pytest.raises(TypeError, match=r"\.remote\(\)"):
        add()
    with pytest.raises(TypeError, match="missing a required argument"):
        add.remote()
    with pytest.raises(TypeError, match="Could not serialize the argument"):
        add.remote(i for i in range(3))
    with pytest.raises(AttributeError):
        add.bind  # noqa: B018


def test_the_same_function_in_the_next_session():
    assert shoal.get(add.remote(1)) == 2
    shoal.shutdown()
    shoal.init(local_mode=True)
    assert shoal.get(add.remote(1)) == 2


def test_a_strategy_that_does_not_exist():
    with pytest.raises(ValueError, match="Invalid scheduling_strategy"):
        add.options(scheduling_strategy="x").remote(1)


# --- objects -------------------------------------------------------------------------------------------------------------------


def test_put_get_wait_refuse_what_they_cannot_take():
    ref = shoal.put(1)
    for bad in (3, None, {}, (ref,)):
        with pytest.raises(ValueError, match="ObjectRef"):
            shoal.get(bad)
    for bad in ([3], [ref, None]):
        with pytest.raises(TypeError):
            shoal.get(bad)
    with pytest.raises(TypeError):
        shoal.put(ref)
    for bad in (ref, (ref,), [1]):
        with pytest.raises(TypeError):
            shoal.wait(bad)
    for options in ({"num_returns": 0}, {"num_returns": 2}, {"timeout": -1}):
        with pytest.raises(ValueError):
            shoal.wait([ref], **options)
    with pytest.raises(ValueError, match="unique"):
        shoal.wait([ref, ref])
    assert shoal.get([]) == []
    assert shoal.wait([]) == ([], [])
    assert shoal.get(ref, timeout=-1) == 1
    with pytest.raises(ValueError, match="negative"):
        shoal.get(ref, timeout=-2)


def test_wait_returns_at_most_what_was_asked_in_input_order():
    refs = [shoal.put(i) for i in range(5)]
    assert shoal.wait(refs, num_returns=2) == (refs[:2], refs[2:])
    failed = shoal.remote(lambda: 1 / 0).remote()
    assert shoal.wait([failed, *refs], num_returns=6) == ([failed, *refs], [])


def test_the_first_error_in_list_order_is_raised():
    bad = [shoal.remote(lambda e: exec("raise e")).remote(e) for e in (KeyError("1"), ValueError("2"))]
    with pytest.raises(KeyError):
        shoal.get([shoal.put(0), *bad])


def test_cancel_and_kill_want_the_right_thing():
    counter = Counter.remote()
    ref = shoal.put(1)
    with pytest.raises(TypeError, match=r"shoal\.kill"):
        shoal.cancel(counter)
    with pytest.raises(TypeError):
        shoal.cancel(3)
    with pytest.raises(ValueError, match=r"shoal\.cancel"):
        shoal.kill(ref)
    shoal.cancel(ref)


def test_futures_and_await():
    async def main():
        ref = add.remote(1)
        first, second = await asyncio.gather(ref, asyncio.wait_for(add.remote(2), 5))
        with pytest.raises(ZeroDivisionError):
            await shoal.remote(lambda: 1 / 0).remote()
        return first, second, await asyncio.wrap_future(ref.future())

    assert asyncio.run(main()) == (2, 3, 2)


def test_inner_references_keep_objects_alive():
    outer = shoal.put([shoal.put("inner")])
    assert shoal.get(shoal.get(outer)[0]) == "inner"


def test_objects_go_with_their_last_reference():
    runtime = shoal._base.runtime.current()
    before = len(runtime.objects.entries)
    refs = [shoal.put([shoal.put(i)]) for i in range(100)]
    assert len(runtime.objects.entries) == before + 200
    del refs
    assert len(runtime.objects.entries) == before


# --- generators ----------------------------------------------------------------------------------------------------------------


def test_generators_stream():
    @shoal.remote
    def count(n):
        yield from range(n)
        raise ValueError("end")

    items = count.remote(2)
    assert isinstance(items, shoal.ObjectRefGenerator)
    assert [shoal.get(next(items)), shoal.get(next(items))] == [0, 1]
    with pytest.raises(ValueError, match="end"):
        shoal.get(next(items))
    with pytest.raises(StopIteration):
        next(items)
    assert items.is_finished()
    with pytest.raises(ValueError):
        shoal.get(items.completed())
    assert shoal.get(items) is items


def test_backpressure_lets_the_consumer_lead():
    @shoal.remote(_generator_backpressure_num_objects=2)
    def endless():
        n = 0
        while True:
            yield n
            n += 1

    items = endless.remote()
    assert [shoal.get(next(items)) for _ in range(10)] == list(range(10))


def test_fixed_and_dynamic_numbers_of_yields():
    @shoal.remote(num_returns=2)
    def two():
        yield 1
        yield 2

    @shoal.remote(num_returns="dynamic")
    def some():
        yield from range(3)

    assert shoal.get(list(two.remote())) == [1, 2]
    assert [shoal.get(ref) for ref in shoal.get(some.remote())] == [0, 1, 2]


def test_wait_takes_generators():
    items = Counter.remote().upto.remote(1)
    assert shoal.wait([items], timeout=0) == ([items], [])


# --- actors --------------------------------------------------------------------------------------------------------------------


def test_methods_of_all_kinds():
    counter = Counter.remote(10)
    assert shoal.get([counter.add.remote(), counter.add.remote(k=5)]) == [11, 16]
    assert shoal.get(counter.both.remote()) == [16, -16]
    assert shoal.get(counter.name.remote()) == "Counter"
    assert shoal.get(counter.double.remote(4)) == 8
    assert [shoal.get(ref) for ref in counter.upto.remote(3)] == [0, 1, 2]
    assert shoal.get(counter.__ray_ready__.remote()) is True
    assert shoal.get(counter.__ray_call__.remote(lambda self, k: self.n + k, 1)) == 17
    assert shoal.get(counter.both.options(num_returns=1).remote()) == (16, -16)


def test_what_a_handle_shows():
    counter = Counter.remote()
    assert repr(counter) == f"Actor(Counter, {counter._actor_id.hex()})"
    assert {"add", "both", "name", "double", "upto", "__ray_ready__"} <= set(dir(counter))
    assert counter == shoal.get(shoal.put(counter))
    assert hash(counter) == hash(shoal.get(shoal.put([counter]))[0])
    assert counter != Counter.remote()
    assert counter._ray_actor_id == counter._actor_id
    for name in ("nothing", "prop", "kind"):
        with pytest.raises(AttributeError):
            getattr(counter, name)
    with pytest.raises(AttributeError, match="Did you mean 'add'"):
        counter.adds  # noqa: B018
    with pytest.raises(TypeError, match=r"\.remote\(\)"):
        counter.add()


def test_bad_calls_of_actors():
    with pytest.raises(TypeError, match=r"Counter\.remote\(\)"):
        Counter()
    with pytest.raises(TypeError, match="too many positional"):
        Counter.remote(1, 2)
    counter = Counter.remote()
    with pytest.raises(TypeError, match="too many positional"):
        counter.add.remote(1, 2)
    with pytest.raises(ValueError, match="concurrency group"):
        counter.add.options(concurrency_group="io")
    with pytest.raises(shoal.actor.ActorClassInheritanceException):

        class Sub(Counter):
            pass


def test_errors_of_methods():
    with pytest.raises(KeyError):
        shoal.get(Counter.remote().fail.remote())


def test_init_that_raises():
    @shoal.remote
    class Bad:
        def __init__(self):
            raise ValueError("no")

        def m(self): ...

    with pytest.raises(exceptions.ActorDiedError, match="no") as caught:
        shoal.get(Bad.remote().m.remote())
    assert caught.value.actor_init_failed


def test_named_actors():
    counter = Counter.options(name="c").remote()
    assert shoal.get_actor("c") == counter
    with pytest.raises(exceptions.ActorAlreadyExistsError):
        Counter.options(name="c").remote()
    assert Counter.options(name="c", get_if_exists=True).remote(5) == counter
    assert shoal.util.list_named_actors() == ["c"]
    shoal.kill(counter)
    shoal.kill(counter)
    for bad in ("c", "", "nobody"):
        with pytest.raises(ValueError):
            shoal.get_actor(bad)
    with pytest.raises(exceptions.ActorDiedError):
        shoal.get(counter.add.remote())
    with pytest.raises(ValueError, match="get_if_exists"):
        Counter.options(get_if_exists=True).remote()


def test_namespaces():
    Counter.options(name="c", namespace="other", lifetime="detached").remote()
    with pytest.raises(ValueError):
        shoal.get_actor("c")
    assert shoal.get(shoal.get_actor("c", "other").add.remote()) == 1
    assert shoal.util.list_named_actors(all_namespaces=True) == [{"name": "c", "namespace": "other"}]


def test_an_actor_ends_with_its_last_handle():
    counter = Counter.options(name="c").remote()
    inside = shoal.put([counter])
    del counter
    assert shoal.get(shoal.get_actor("c").add.remote()) == 1
    del inside
    with pytest.raises(ValueError):
        shoal.get_actor("c")


def test_detached_actors_stay():
    Counter.options(name="c", lifetime="detached").remote()
    assert shoal.get(shoal.get_actor("c").add.remote()) == 1
    assert shoal.get(shoal.get_actor("c").add.remote()) == 2


def test_exit_actor_and_terminate():
    for method in ("leave", "__ray_terminate__"):
        counter = Counter.remote()
        ref = getattr(counter, method).remote()
        if method == "leave":
            with pytest.raises(exceptions.ActorDiedError):
                shoal.get(ref)
        with pytest.raises(exceptions.ActorDiedError):
            shoal.get(counter.add.remote())
    with pytest.raises(TypeError):
        shoal.actor.exit_actor()


def test_kill_with_restart_begins_anew():
    counter = Counter.options(max_restarts=1).remote(10)
    shoal.get(counter.add.remote())
    shoal.kill(counter, no_restart=False)
    assert shoal.get(counter.add.remote()) == 11
    shoal.kill(counter, no_restart=False)
    with pytest.raises(exceptions.ActorDiedError):
        shoal.get(counter.add.remote())


def test_current_actor_and_handles_in_arguments():
    counter = Counter.remote()
    assert shoal.get(counter.me.remote()) == counter
    assert shoal.get(shoal.remote(lambda c: shoal.get(c.add.remote(7))).remote(counter)) == 7


@shoal.remote
class Signal:
    def __init__(self):
        self.event = asyncio.Event()

    async def wait(self):
        await self.event.wait()
        return "sent"

    async def send(self):
        self.event.set()

    async def sleep(self, s):
        await asyncio.sleep(s)

    async def upto(self, n):
        for i in range(n):
            yield i

    async def nested(self, refs):
        return await refs[0]


def test_async_calls_overlap():
    signal = Signal.remote()
    waiting = signal.wait.remote()
    assert shoal.wait([waiting], timeout=0) == ([], [waiting])
    with pytest.raises(exceptions.GetTimeoutError):
        shoal.get(waiting, timeout=0.01)
    signal.send.remote()
    assert shoal.get(waiting) == "sent"
    start = time.monotonic()
    shoal.get([signal.sleep.remote(0.2) for _ in range(100)])
    assert time.monotonic() - start < 2


def test_async_generators_await_and_cancel():
    signal = Signal.remote()
    assert [shoal.get(ref) for ref in signal.upto.remote(3)] == [0, 1, 2]
    assert shoal.get(signal.nested.remote([add.remote(1)])) == 2
    waiting = signal.wait.remote()
    with pytest.raises(ValueError, match="force"):
        shoal.cancel(waiting, force=True)
    shoal.cancel(waiting)
    with pytest.raises(exceptions.TaskCancelledError):
        shoal.get(waiting, timeout=5)


def test_max_pending_calls():
    signal = Signal.options(max_pending_calls=1).remote()
    waiting = signal.wait.remote()
    with pytest.raises(exceptions.PendingCallsLimitExceeded):
        signal.send.remote()
    del waiting


# --- context -------------------------------------------------------------------------------------------------------------------


def test_runtime_context():
    context = shoal.get_runtime_context()
    assert (context.get_task_id(), context.get_actor_id(), context.get_task_name()) == (None, None, None)
    with pytest.raises(AssertionError):
        context.get_assigned_resources()
    with pytest.raises(RuntimeError):
        context.current_actor  # noqa: B018
    with pytest.raises(RuntimeError):
        context.is_canceled()
    assert context.get_node_labels()["zone"] == "a"
    assert context.runtime_env == {}

    @shoal.remote(num_cpus=2, resources={"x": 0.5})
    def look():
        own = shoal.get_runtime_context()
        return own.get_task_name(), own.get_task_function_name(), own.get_assigned_resources(), own.get_job_id()

    name, function_name, resources, job = shoal.get(look.options(name="n").remote())
    assert (name, resources, job) == ("n", {"CPU": 2.0, "x": 0.5}, context.get_job_id())
    assert function_name.endswith("look")


def test_nodes_and_resources():
    (node,) = shoal.nodes()
    assert node["NodeID"] == shoal.get_runtime_context().get_node_id()
    assert node["Alive"]
    assert shoal.cluster_resources()["x"] == 2.0
    assert shoal.available_resources()["CPU"] == 4.0
    assert shoal.get_gpu_ids() == []
    assert shoal.util.get_node_ip_address() == node["NodeManagerAddress"]


def test_tasks_run_here():
    assert shoal.get(shoal.remote(os.getpid).remote()) == os.getpid()
