"""Actors in real processes: calls and their order, constructors, methods, names, handles."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

import pytest

import shoal

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("session")]


@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def add(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def pid(self) -> int:
        return os.getpid()


@shoal.remote(num_cpus=0)
class Log:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, number: Any, _arg: Any = None) -> None:
        self.seen.append(number)

    def all(self) -> list[Any]:
        return self.seen


@shoal.remote
def slow(value: Any, seconds: float = 0.05) -> Any:
    time.sleep(seconds)
    return value


def unique(prefix: str = "actor") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


# --- order ------------------------------------------------------------------------------------------------


def test_calls_of_one_handle_run_in_order_though_some_wait_for_arguments() -> None:
    log = Log.remote()
    for number in range(10_000):
        if number % 1000 == 7:
            log.note.remote(number, slow.remote(number))
        elif number % 7 == 0:
            log.note.remote(number, shoal.put(number))
        else:
            log.note.remote(number)
    assert shoal.get(log.all.remote(), timeout=60) == list(range(10_000))


def test_a_failed_argument_fails_its_call_and_no_other() -> None:
    @shoal.remote
    def broken() -> None:
        raise KeyError("no such thing")

    log = Log.remote()
    log.note.remote(1)
    bad = log.note.remote(2, broken.remote())
    log.note.remote(3)
    assert shoal.get(log.all.remote(), timeout=20) == [1, 3]
    with pytest.raises(KeyError):
        shoal.get(bad, timeout=20)


def test_two_handles_in_two_processes_each_keep_their_order() -> None:
    @shoal.remote
    def write(log: Any, name: str) -> None:
        shoal.get([log.note.remote((name, i)) for i in range(300)])

    log = Log.remote()
    shoal.get([write.remote(log, "a"), write.remote(log, "b")], timeout=30)
    seen = shoal.get(log.all.remote(), timeout=10)
    for name in ("a", "b"):
        assert [i for who, i in seen if who == name] == list(range(300))


# --- constructors -----------------------------------------------------------------------------------------


def test_an_error_in_the_constructor_is_what_every_call_reads() -> None:
    @shoal.remote
    class Broken:
        def __init__(self, x: int) -> None:
            self._check(x)

        def _check(self, x: int) -> None:
            raise ValueError(f"bad x: {x}")

        def hello(self) -> None: ...

    broken = Broken.remote(7)
    early = broken.hello.remote()
    for ref in (early, early, broken.hello.remote()):
        with pytest.raises(shoal.exceptions.ActorDiedError) as caught:
            shoal.get(ref, timeout=20)
        assert caught.value.actor_init_failed
        text = str(caught.value)
        assert "bad x: 7" in text
        assert "_check" in text, text
        assert "Broken" in text
    deadline = time.monotonic() + 10
    while shoal.available_resources().get("CPU") != 2.0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_constructor_that_leaves_the_process() -> None:
    @shoal.remote
    class Gone:
        def __init__(self) -> None:
            os._exit(3)

        def hello(self) -> None: ...

    with pytest.raises(shoal.exceptions.ActorDiedError):
        shoal.get(Gone.remote().hello.remote(), timeout=20)


@pytest.mark.parametrize("name", ["", "named"])
def test_a_constructor_argument_that_fails(name: str) -> None:
    @shoal.remote
    def broken() -> None:
        raise RuntimeError("argument is broken")

    options = {"name": unique()} if name else {}
    counter = Counter.options(**options).remote(broken.remote())
    with pytest.raises(shoal.exceptions.ActorDiedError, match="argument is broken"):
        shoal.get(counter.add.remote(), timeout=20)


def test_large_constructor_arguments() -> None:
    @shoal.remote
    class Holder:
        def __init__(self, data: bytes, other: bytes, *, third: bytes = b"") -> None:
            self.sizes = [len(data), len(other), len(third)]

        def get(self) -> list[int]:
            return self.sizes

    ref = shoal.put(b"y" * 5_000_000)
    holder = Holder.remote(b"x" * 3_000_000, ref, third=b"z" * 1_000_000)
    del ref
    assert shoal.get(holder.get.remote(), timeout=20) == [3_000_000, 5_000_000, 1_000_000]


def test_the_constructor_may_use_the_api() -> None:
    @shoal.remote
    class Asking:
        def __init__(self, refs: list[Any]) -> None:
            self.total = sum(shoal.get(refs)) + shoal.get(slow.remote(100, 0.0))

        def get(self) -> int:
            return self.total

    assert shoal.get(Asking.remote([shoal.put(1), slow.remote(2)]).get.remote(), timeout=20) == 103


# --- methods ----------------------------------------------------------------------------------------------


class Base:
    factor = 3

    def inherited(self, x: int) -> int:
        return x * self.factor

    @classmethod
    def by_class(cls, x: int) -> str:
        return f"{cls.__name__}{x}"

    @staticmethod
    def static(x: int) -> int:
        return -x


@shoal.remote(num_cpus=0)
class Methods(Base):
    def pair(self) -> tuple[int, int]:
        return 1, 2

    @shoal.method(num_returns=2)
    def two(self) -> tuple[int, int]:
        return 1, 2

    def count(self, n: int) -> Any:
        for i in range(n):
            if i == 7:
                raise ZeroDivisionError("seven")
            yield i

    def fail(self) -> None:
        raise ValueError("wrong value")

    def big(self) -> bytes:
        return b"x" * 2_000_000

    @property
    def attribute(self) -> int:
        return 1


def test_methods_of_every_kind() -> None:
    actor = Methods.remote()
    assert shoal.get(actor.inherited.remote(2), timeout=20) == 6
    assert shoal.get(actor.by_class.remote(1)) == "Methods1"
    assert shoal.get(actor.static.remote(4)) == -4
    assert shoal.get(list(actor.two.remote())) == [1, 2]
    assert shoal.get(list(actor.pair.options(num_returns=2).remote())) == [1, 2]
    assert len(shoal.get(actor.big.remote())) == 2_000_000
    assert [shoal.get(ref) for ref in actor.count.remote(3)] == [0, 1, 2]
    with pytest.raises(AttributeError):
        actor.attribute  # noqa: B018
    with pytest.raises(AttributeError):
        actor.nothing.remote()
    with pytest.raises(TypeError):
        actor.inherited(1)
    with pytest.raises(TypeError):
        actor.inherited.remote(1, 2, 3)
    with pytest.raises(ValueError, match="wrong value"):
        shoal.get(actor.fail.remote())
    assert shoal.get(actor.static.remote(5)) == -5, "an error does not end the actor"


def test_an_error_in_a_generator_comes_after_its_items() -> None:
    refs = list(Methods.remote().count.remote(20))
    assert shoal.get(refs[:7], timeout=20) == list(range(7))
    assert len(refs) == 8
    with pytest.raises(ZeroDivisionError):
        shoal.get(refs[7])


def test_async_generators() -> None:
    import asyncio

    @shoal.remote(num_cpus=0)
    class Streams:
        async def count(self, n: int) -> Any:
            for i in range(n):
                await asyncio.sleep(0)
                yield i

        def plain(self, n: int) -> Any:
            yield from range(n)

    actor = Streams.remote()
    streams = [actor.count.remote(10) for _ in range(5)]
    assert [[shoal.get(ref, timeout=20) for ref in stream] for stream in streams] == [list(range(10))] * 5
    assert [shoal.get(ref) for ref in actor.plain.remote(4)] == [0, 1, 2, 3]


def test_built_in_methods() -> None:
    counter = Counter.remote(5)
    assert shoal.get(counter.__ray_ready__.remote(), timeout=20) is True
    assert shoal.get(counter.__ray_call__.remote(lambda self, k: self.n + k, 4)) == 9
    last = [counter.add.remote() for _ in range(5)][-1]
    counter.__ray_terminate__.remote()
    assert shoal.get(last) == 10
    with pytest.raises(shoal.exceptions.ActorDiedError):
        shoal.get([counter.add.remote() for _ in range(50)], timeout=20)


# --- names ------------------------------------------------------------------------------------------------


def test_names() -> None:
    name = unique()
    counter = Counter.options(name=name).remote()
    shoal.get(counter.add.remote(), timeout=20)
    assert shoal.get_actor(name) == counter
    assert shoal.get(shoal.get_actor(name).add.remote()) == 2
    with pytest.raises(ValueError):
        Counter.options(name=name).remote()
    with pytest.raises(shoal.exceptions.ActorAlreadyExistsError):
        Counter.options(name=name).remote()
    same = Counter.options(name=name, get_if_exists=True).remote()
    assert same == counter
    assert shoal.get(same.add.remote()) == 3
    assert name in shoal.util.list_named_actors()
    with pytest.raises(ValueError):
        shoal.get_actor(unique("never"))
    shoal.kill(counter)
    with pytest.raises(ValueError):
        shoal.get_actor(name)
    again = Counter.options(name=name).remote()
    assert shoal.get(again.add.remote(), timeout=20) == 1


def test_namespaces() -> None:
    name = unique()
    here = Counter.options(name=name).remote()
    there = Counter.options(name=name, namespace="elsewhere").remote()
    assert here != there
    assert shoal.get_actor(name) == here
    assert shoal.get_actor(name, namespace="elsewhere") == there
    assert {"name": name, "namespace": "elsewhere"} in shoal.util.list_named_actors(all_namespaces=True)


def test_a_name_is_free_again_when_the_last_handle_is_gone() -> None:
    name = unique()
    counter = Counter.options(name=name).remote()
    shoal.get(counter.add.remote(), timeout=20)
    del counter
    deadline = time.monotonic() + 10
    while True:
        try:
            shoal.get_actor(name)
        except ValueError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_detached_actors_need_no_handle() -> None:
    name = unique()
    Counter.options(name=name, lifetime="detached").remote(10)
    time.sleep(0.3)
    counter = shoal.get_actor(name)
    assert shoal.get(counter.add.remote(), timeout=20) == 11
    del counter
    time.sleep(0.3)
    assert shoal.get(shoal.get_actor(name).add.remote(), timeout=20) == 12
    shoal.kill(shoal.get_actor(name))
    with pytest.raises(ValueError):
        shoal.get_actor(name)


def test_get_if_exists_from_two_processes_at_once() -> None:
    @shoal.remote
    def get_or_create(name: str) -> int:
        counter = Counter.options(name=name, get_if_exists=True, lifetime="detached").remote()
        return shoal.get(counter.pid.remote())

    for _ in range(10):
        name = unique("race")
        first, second = shoal.get([get_or_create.remote(name), get_or_create.remote(name)], timeout=30)
        assert first == second
        shoal.kill(shoal.get_actor(name))


# --- handles ----------------------------------------------------------------------------------------------


def test_handles_travel() -> None:
    @shoal.remote
    def use(counter: Any) -> int:
        return shoal.get(counter.add.remote())

    @shoal.remote
    def hand_back(box: dict[str, Any]) -> dict[str, Any]:
        return {"counter": box["counter"]}

    @shoal.remote(num_cpus=0)
    class Keeper:
        def keep(self, counter: Any) -> None:
            self.counter = counter

        def use(self) -> int:
            return shoal.get(self.counter.add.remote())

        def give(self) -> Any:
            return self.counter

    counter = Counter.remote()
    assert sorted(shoal.get([use.remote(counter) for _ in range(10)], timeout=30)) == list(range(1, 11))
    back = shoal.get(hand_back.remote({"counter": counter}))["counter"]
    assert back == counter
    assert hash(back) == hash(counter)
    assert len({back, counter}) == 1
    keeper = Keeper.remote()
    shoal.get(keeper.keep.remote(counter))
    del counter, back
    time.sleep(0.5)
    assert shoal.get(keeper.use.remote(), timeout=20) == 11, "the keeper's handle alone keeps the actor"
    given = shoal.get(keeper.give.remote())
    shoal.kill(keeper)
    time.sleep(0.5)
    assert shoal.get(given.add.remote(), timeout=20) == 12


def test_a_handle_created_in_a_task_and_returned() -> None:
    @shoal.remote(num_cpus=0)
    class Maker:
        def make(self, start: int) -> Any:
            return Counter.remote(start)

    maker = Maker.remote()
    counter = shoal.get(maker.make.remote(5), timeout=20)
    time.sleep(0.3)
    assert shoal.get(counter.add.remote(), timeout=20) == 6


def test_refs_of_calls_travel() -> None:
    counter = Counter.remote()

    @shoal.remote
    def plus(x: int) -> int:
        return x + 100

    assert shoal.get(plus.remote(counter.add.remote()), timeout=20) == 101
    assert shoal.get(counter.add.remote(counter.add.remote())) == 4


def test_the_runtime_context_inside() -> None:
    @shoal.remote(num_cpus=1)
    class Inside:
        def look(self) -> Any:
            context = shoal.get_runtime_context()
            return (
                context.get_actor_id(), context.get_actor_name(), context.get_assigned_resources(), context.get_job_id(),
                context.current_actor, context.was_current_actor_reconstructed, context.get_task_id(),
            )  # fmt: skip

    name = unique()
    actor = Inside.options(name=name).remote()
    actor_id, actor_name, resources, job, me, again, task_id = shoal.get(actor.look.remote(), timeout=20)
    assert actor_id == actor._actor_id.hex()
    assert actor_name == name
    assert resources.get("CPU") == 1.0
    assert job == shoal.get_runtime_context().get_job_id()
    assert me == actor
    assert again is False
    assert task_id


def test_repr_and_dir() -> None:
    counter = Counter.remote()
    assert repr(counter) == f"Actor(Counter, {counter._actor_id.hex()})"
    assert {"add", "pid"} <= set(dir(counter))


def test_max_pending_calls_counts_down() -> None:
    @shoal.remote(num_cpus=0, max_pending_calls=5)
    class Limited:
        def wait(self, seconds: float) -> None:
            time.sleep(seconds)

    actor = Limited.remote()
    shoal.get(actor.wait.remote(0), timeout=20)
    for _ in range(3):
        refs = [actor.wait.remote(0.05) for _ in range(5)]
        with pytest.raises(shoal.exceptions.PendingCallsLimitExceeded):
            actor.wait.remote(0)
        shoal.get(refs, timeout=20)
    for _ in range(50):
        shoal.get(actor.wait.remote(0), timeout=20)


def test_an_actor_class_is_no_base_class() -> None:
    with pytest.raises(TypeError):

        class Derived(Counter):  # type: ignore[misc, valid-type]
            pass

    with pytest.raises(TypeError):
        Counter()
