"""How actors end and start again: out of scope, kill, restarts, exit_actor; what they hold and give back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError, ActorUnavailableError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("session")]


@shoal.remote(num_cpus=0)
class Actor:
    def __init__(self) -> None:
        self.n = 0

    def pid(self) -> int:
        return os.getpid()

    def add(self) -> int:
        self.n += 1
        return self.n

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def die(self) -> None:
        os._exit(9)

    def reconstructed(self) -> bool:
        return shoal.get_runtime_context().was_current_actor_reconstructed

    def leave(self) -> None:
        shoal.actor.exit_actor()


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.02)


# --- out of scope -----------------------------------------------------------------------------------------


def test_an_actor_ends_when_its_last_handle_is_gone() -> None:
    eventually(lambda: shoal.available_resources().get("CPU") == 2.0)
    actor = Actor.options(num_cpus=1).remote()
    pid = shoal.get(actor.pid.remote(), timeout=20)
    eventually(lambda: shoal.available_resources().get("CPU") == 1.0)
    del actor
    eventually(lambda: not alive(pid))
    eventually(lambda: shoal.available_resources().get("CPU") == 2.0)


def test_queued_calls_run_before_the_end() -> None:
    actor = Actor.remote()
    refs = [actor.sleep.remote(0.05) for _ in range(5)]
    last = actor.pid.remote()
    del actor
    assert shoal.get(refs, timeout=20) == ["slept"] * 5
    pid = shoal.get(last)
    eventually(lambda: not alive(pid))


def test_queued_calls_run_before_the_end_though_one_waits_for_an_argument() -> None:
    @shoal.remote
    def slow() -> float:
        time.sleep(0.5)
        return 0.0

    assert shoal.get(Actor.remote().sleep.remote(slow.remote()), timeout=20) == "slept"


def test_an_actor_used_once() -> None:
    assert shoal.get([Actor.remote().add.remote() for _ in range(5)], timeout=20) == [1] * 5


@pytest.mark.parametrize("kind", ["async", "threaded"])
def test_queued_calls_of_concurrent_actors_run_before_the_end(kind: str) -> None:
    class Async:
        async def work(self) -> int:
            await asyncio.sleep(0.1)
            return os.getpid()

    class Threaded:
        def work(self) -> int:
            time.sleep(0.1)
            return os.getpid()

    cls = Async if kind == "async" else Threaded
    actor = shoal.remote(num_cpus=0, max_concurrency=2)(cls).remote()
    refs = [actor.work.remote() for _ in range(6)]
    del actor
    pid = set(shoal.get(refs, timeout=20)).pop()
    eventually(lambda: not alive(pid))


def test_handles_in_ten_tasks_keep_the_actor() -> None:
    @shoal.remote(num_cpus=0.2)
    def hold(actor: Any, seconds: float) -> int:
        time.sleep(seconds)
        return shoal.get(actor.add.remote())

    actor = Actor.remote()
    pid = shoal.get(actor.pid.remote(), timeout=20)
    refs = [hold.remote(actor, 0.1 * i) for i in range(10)]
    del actor
    assert sorted(shoal.get(refs, timeout=30)) == list(range(1, 11))
    del refs
    eventually(lambda: not alive(pid))


# --- kill -------------------------------------------------------------------------------------------------


def test_kill() -> None:
    actor = Actor.options(num_cpus=1).remote()
    pid = shoal.get(actor.pid.remote(), timeout=20)
    running, queued = actor.sleep.remote(60), actor.add.remote()
    time.sleep(0.1)
    shoal.kill(actor)
    for ref in (running, queued, actor.add.remote()):
        with pytest.raises(ActorDiedError) as caught:
            shoal.get(ref, timeout=10)
        assert "kill" in str(caught.value)
        assert not caught.value.actor_init_failed
    shoal.kill(actor)
    eventually(lambda: not alive(pid))
    eventually(lambda: shoal.available_resources().get("CPU") == 2.0)
    with pytest.raises(ValueError):
        shoal.kill(running)


def test_kill_before_it_lives() -> None:
    actor = Actor.remote()
    shoal.kill(actor)
    with pytest.raises(ActorDiedError):
        shoal.get(actor.add.remote(), timeout=10)


def test_kill_with_restart() -> None:
    actor = Actor.options(max_restarts=1).remote()
    first = shoal.get(actor.pid.remote(), timeout=20)
    assert shoal.get(actor.add.remote()) == 1
    shoal.kill(actor, no_restart=False)
    eventually(lambda: not alive(first))

    def again() -> bool:
        try:
            return shoal.get(actor.pid.remote(), timeout=10) != first
        except ActorUnavailableError:
            return False

    eventually(again)
    assert shoal.get(actor.add.remote(), timeout=10) == 1, "a new instance"
    assert shoal.get(actor.reconstructed.remote()) is True
    shoal.kill(actor, no_restart=False)
    with pytest.raises(ActorDiedError):
        for _ in range(100):
            try:
                shoal.get(actor.pid.remote(), timeout=10)
            except ActorUnavailableError:
                pass


# --- restarts ---------------------------------------------------------------------------------------------


def test_calls_with_retries_survive_a_restart() -> None:
    actor = Actor.options(max_restarts=2, max_task_retries=2).remote()
    pid = shoal.get(actor.pid.remote(), timeout=20)
    refs = [actor.sleep.remote(0.1) for _ in range(5)]
    time.sleep(0.15)
    os.kill(pid, signal.SIGKILL)
    assert shoal.get(refs, timeout=20) == ["slept"] * 5
    assert shoal.get(actor.pid.remote(), timeout=20) != pid


def test_calls_without_retries_are_unavailable_then_it_works() -> None:
    actor = Actor.options(max_restarts=1).remote()
    pid = shoal.get(actor.pid.remote(), timeout=20)
    running = actor.sleep.remote(60)
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorUnavailableError):
        shoal.get(running, timeout=20)
    assert shoal.get(actor.add.remote(), timeout=20) == 1
    dying = actor.die.remote()
    with pytest.raises(ActorDiedError):
        shoal.get(dying, timeout=20)
    with pytest.raises(ActorDiedError):
        shoal.get(actor.add.remote(), timeout=20)


def test_a_death_without_restarts_says_how() -> None:
    actor = Actor.remote()
    shoal.get(actor.pid.remote(), timeout=20)
    with pytest.raises(ActorDiedError) as caught:
        shoal.get(actor.die.remote(), timeout=20)
    text = str(caught.value)
    assert "9" in text, text
    assert "Actor" in text
    assert actor._actor_id.hex() in text


def test_unlimited_restarts_and_constructor_arguments() -> None:
    @shoal.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    class Fragile:
        def __init__(self, data: bytes, ref: int) -> None:
            self.size = len(data) + ref

        def get(self) -> int:
            return self.size

        def pid(self) -> int:
            return os.getpid()

    @shoal.remote
    def one() -> int:
        return 1

    actor = Fragile.remote(b"x" * 1_000_000, one.remote())
    for _ in range(5):
        os.kill(shoal.get(actor.pid.remote(), timeout=20), signal.SIGKILL)
        assert shoal.get(actor.get.remote(), timeout=20) == 1_000_001


def test_retry_exceptions() -> None:
    @shoal.remote(num_cpus=0)
    class Flaky:
        def __init__(self) -> None:
            self.tries = 0

        @shoal.method(max_task_retries=3, retry_exceptions=[KeyError])
        def work(self, fails: int) -> int:
            self.tries += 1
            if self.tries <= fails:
                raise KeyError(self.tries)
            return self.tries

    assert shoal.get(Flaky.remote().work.remote(3), timeout=20) == 4
    with pytest.raises(KeyError):
        shoal.get(Flaky.remote().work.remote(4), timeout=20)


# --- leaving ----------------------------------------------------------------------------------------------


def check_left(actor: Any, ref: Any) -> None:
    for submit in (lambda: ref, actor.add.remote):  # the second is made when the actor has left
        with pytest.raises(ActorDiedError) as caught:
            shoal.get(submit(), timeout=10)
        assert "exit_actor" in str(caught.value), str(caught.value)


def test_exit_actor(tmp_path: Path) -> None:
    @shoal.remote(num_cpus=0, max_restarts=5)
    class Leaving:
        def __init__(self, path: str) -> None:
            import atexit

            atexit.register(Path(path).write_text, "left")

        def add(self) -> None: ...

        def leave(self) -> None:
            shoal.actor.exit_actor()

    mark = tmp_path / "mark"
    actor = Leaving.remote(str(mark))
    before = actor.add.remote()
    ref = actor.leave.remote()
    queued = actor.add.remote()
    shoal.get(before, timeout=20)
    check_left(actor, ref)
    check_left(actor, queued)
    eventually(mark.exists)
    with pytest.raises(TypeError):
        shoal.actor.exit_actor()


def test_exit_actor_from_a_coroutine_while_others_wait() -> None:
    @shoal.remote(num_cpus=0)
    class Leaving:
        async def add(self) -> None: ...

        async def wait(self) -> None:
            await asyncio.sleep(60)

        async def leave(self) -> None:
            await asyncio.sleep(0.01)
            shoal.actor.exit_actor()

    actor = Leaving.remote()
    shoal.get(actor.add.remote(), timeout=20)
    waiting = actor.wait.remote()
    check_left(actor, actor.leave.remote())
    check_left(actor, waiting)


def test_exit_actor_from_a_thread() -> None:
    @shoal.remote(num_cpus=0, max_concurrency=3)
    class Leaving:
        def add(self) -> None: ...

        def leave(self) -> None:
            shoal.actor.exit_actor()

    actor = Leaving.remote()
    shoal.get(actor.add.remote(), timeout=20)
    check_left(actor, actor.leave.remote())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_exit_actor_from_a_generator(kind: str) -> None:
    class Leaving:
        def add(self) -> None: ...

        def stream(self) -> Any:
            yield 1
            shoal.actor.exit_actor()

    class LeavingAsync:
        async def add(self) -> None: ...

        async def stream(self) -> Any:
            yield 1
            shoal.actor.exit_actor()

    actor = shoal.remote(num_cpus=0)(Leaving if kind == "sync" else LeavingAsync).remote()
    stream = actor.stream.remote()
    assert shoal.get(next(stream), timeout=20) == 1
    check_left(actor, next(stream))


def test_terminate_lets_the_running_calls_of_threads_end() -> None:
    @shoal.remote(num_cpus=0, max_concurrency=3)
    class Threaded:
        def work(self, seconds: float) -> str:
            time.sleep(seconds)
            return "worked"

    actor = Threaded.remote()
    shoal.get(actor.work.remote(0), timeout=20)
    ref = actor.work.remote(0.5)
    time.sleep(0.1)
    actor.__ray_terminate__.remote()
    assert shoal.get(ref, timeout=20) == "worked"
    with pytest.raises(ActorDiedError):
        for _ in range(200):
            shoal.get(actor.work.remote(0.05), timeout=20)


# --- families, numbers, resources -------------------------------------------------------------------------


def test_children_end_with_their_creator() -> None:
    @shoal.remote(num_cpus=0)
    class Parent:
        def __init__(self) -> None:
            self.children = [Actor.remote() for _ in range(3)]

        def pids(self) -> list[int]:
            return shoal.get([child.pid.remote() for child in self.children])

        def child(self) -> Any:
            return self.children[0]

    parent = Parent.remote()
    pids = shoal.get(parent.pids.remote(), timeout=20)
    child = shoal.get(parent.child.remote())
    shoal.kill(parent)
    eventually(lambda: not any(alive(pid) for pid in pids))
    with pytest.raises(ActorDiedError):
        shoal.get(child.add.remote(), timeout=10)


def test_an_actor_whose_constructor_argument_failed_is_dead_everywhere() -> None:
    @shoal.remote
    def broken() -> None:
        raise RuntimeError("argument is broken")

    @shoal.remote(num_cpus=0)
    class Needs:
        def __init__(self, value: int) -> None: ...

        def add(self) -> None: ...

    @shoal.remote
    def use(actor: Any) -> str:
        try:
            shoal.get(actor.add.remote(), timeout=10)
        except ActorDiedError as error:
            return str(error)
        return "alive"

    assert "argument is broken" in shoal.get(use.remote(Needs.remote(broken.remote())), timeout=20)


def test_resources() -> None:
    eventually(lambda: shoal.available_resources().get("CPU") == 2.0)
    two = [Actor.options(num_cpus=1).remote() for _ in range(2)]
    shoal.get([actor.add.remote() for actor in two], timeout=20)
    third = Actor.options(num_cpus=1).remote()
    ref = third.add.remote()
    assert shoal.wait([ref], timeout=0.5) == ([], [ref])
    shoal.kill(two.pop())
    assert shoal.get(ref, timeout=20) == 1
    del two, third, ref
    eventually(lambda: shoal.available_resources().get("CPU") == 2.0)


def test_a_hundred_actors() -> None:
    actors = [Actor.remote() for _ in range(100)]
    pids = shoal.get([actor.pid.remote() for actor in actors], timeout=60)
    assert len(set(pids)) == 100
    del actors
    eventually(lambda: not any(alive(pid) for pid in pids), 20)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_thousand_actors() -> None:
    actors = [Actor.remote() for _ in range(1000)]
    pids = shoal.get([actor.pid.remote() for actor in actors], timeout=240)
    assert len(set(pids)) == 1000
    del actors
    eventually(lambda: not any(alive(pid) for pid in pids), 60)
