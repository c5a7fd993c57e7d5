"""A caller whose connection to an actor is lost, while the control store has not said why: only an answer decides that the actor lives."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shoal import exceptions
from shoal._core.serialization import deserialize_error
from shoal._core.wire.messages import ACTOR_ALIVE, ACTOR_DEAD, ActorUpdate, Address, Cause, HandBack, Shape, TaskDone, TaskTemplate
from shoal._core.worker.actors import Actors
from shoal._core.worker.express import Express
from shoal._core.worker.records import TaskRecord

ACTOR = b"a" * 16
WORKER = Address(b"w", b"n", "unix:w")


class FakePeer:
    def __init__(self) -> None:
        self.address = WORKER
        self.connection: Any = SimpleNamespace(allow_send_now=lambda: None)
        self.takes_calls = True
        self.calls: Any = None
        self.sent: list[Any] = []
        self.callbacks: list[Callable[[], None]] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def known_template(self, template: TaskTemplate) -> int | None:
        return 0

    def when_connected(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)


class Caller:
    """The shell with everything around it played by the test."""

    def __init__(self) -> None:
        self.peers: list[FakePeer] = []
        self.failed: list[Exception] = []
        self.timers: list[Callable[[], None]] = []
        self.core = SimpleNamespace(
            loop=SimpleNamespace(
                call_later=lambda _delay, callback, *args: self.timers.append(lambda: callback(*args)),
                call_soon=self.timers.append,
            ),
            objects=SimpleNamespace(own=SimpleNamespace(entries={})),
            cancellation=SimpleNamespace(started=lambda _: None),
            tasks=SimpleNamespace(
                finish=lambda *_: None, fail=lambda _, error: self.failed.append(deserialize_error(error)),
                wire_task=lambda _, record: record,
            ),
            peers=SimpleNamespace(get=self.connect),
            control_store=SimpleNamespace(send=lambda message: None),
            me=Address(b"me", b"n", "unix:me"), job_id=b"job1", closing=False, lost=b"", drain_inbox=lambda: None, express=Express(),
            wants_logs=False,
        )  # fmt: skip
        self.actors = Actors(self.core)  # type: ignore[arg-type]
        self.core.flush = self.actors.flush

    def connect(self, address: Address) -> FakePeer:
        self.peers.append(FakePeer())
        return self.peers[-1]

    def call(self, name: bytes) -> None:
        template = TaskTemplate(b"f", "A.m", "A.m", Shape(b"job1"), max_retries=0, actor_id=ACTOR)
        self.actors.submit((TaskRecord(name, template, b"", []), [], [], None))
        self.actors.flush()

    def told(self, state: str, incarnation: int = 0, **facts: Any) -> None:
        self.actors.on_actor_update(None, ActorUpdate(ACTOR, state, incarnation, **facts))

    def run_timers(self) -> None:
        timers, self.timers = self.timers, []
        for timer in timers:
            timer()


@pytest.fixture
def caller() -> Caller:
    """One call is in flight, the connection is lost, and nobody has said why."""
    caller = Caller()
    caller.call(b"1")
    caller.told(ACTOR_ALIVE, address=WORKER)
    caller.actors.peer_lost(caller.peers[-1])
    return caller


def test_a_process_that_does_not_answer_is_not_called_unavailable(caller: Caller) -> None:
    for _ in range(10):
        caller.run_timers()
        caller.actors.peer_lost(caller.peers[-1])  # no connection could be made
    assert caller.failed == []
    caller.told(ACTOR_DEAD, cause=Cause("exit_actor", "It left."))
    assert [type(error) for error in caller.failed] == [exceptions.ActorDiedError]
    caller.run_timers()
    assert len(caller.failed) == 1


def test_a_process_that_answers_goes_on_with_later_calls(caller: Caller) -> None:
    caller.run_timers()
    caller.call(b"2")
    [reached] = caller.peers[-1].callbacks
    reached()
    assert [type(error) for error in caller.failed] == [exceptions.ActorUnavailableError]
    assert [message.task_id for message in caller.peers[-1].sent if isinstance(message, TaskRecord)] == [b"2"]


def test_calls_over_a_connection_that_never_stood_were_not_sent_and_wait_for_the_next_one() -> None:
    """The actor's node had just joined, and was not known here: a call that may not be repeated failed as unavailable."""
    caller = Caller()
    caller.call(b"1")
    caller.told(ACTOR_ALIVE, address=WORKER)
    caller.call(b"2")
    caller.peers[0].connection = None
    caller.actors.peer_lost(caller.peers[0])  # type: ignore[arg-type]
    caller.run_timers()
    for callback in caller.peers[1].callbacks:
        callback()
    sent = [message.task_id for message in caller.peers[-1].sent if isinstance(message, TaskRecord)]
    assert (sent, caller.failed) == ([b"1", b"2"], [])


def test_a_call_whose_thread_was_held_up_before_it_sent_does_not_follow_the_farewell_of_the_actor() -> None:
    """It had taken the offer of an idle actor, which then moved: sent behind the farewell, the call was lost with the process."""
    caller = Caller()
    caller.call(b"1")
    caller.told(ACTOR_ALIVE, address=WORKER)
    [peer] = caller.peers
    caller.actors.on_task_done(peer, TaskDone(b"1", [], 0))  # type: ignore[arg-type]
    posted: list[tuple[Callable[[Any], None], Any]] = []

    def drain() -> None:
        while posted:
            function, argument = posted.pop(0)
            function(argument)

    caller.core.drain_inbox = drain
    inbox: Any = SimpleNamespace(settled=lambda: True, post=lambda *word: posted.append(word), post_later=lambda *word: posted.append(word))
    sent: list[Any] = []

    def send_now(message: Any, is_valid: Callable[[], bool], _sent: Any) -> bool:
        caller.actors.on_hand_back(peer, HandBack([], moves=True))  # type: ignore[arg-type]  # the I/O thread runs just now
        if is_valid():
            sent.append(message)
            return True
        return False

    peer.connection.send_now = send_now
    template = TaskTemplate(b"f", "A.m", "A.m", Shape(b"job1"), max_retries=0, actor_id=ACTOR)
    assert caller.core.express.send(ACTOR, TaskRecord(b"2", template, b"", []), inbox)
    drain()
    assert sent == []
    caller.told(ACTOR_ALIVE, address=WORKER, incarnation=1)
    caller.actors.flush()
    assert [message.task_id for message in caller.peers[-1].sent if isinstance(message, TaskRecord)][-1] == b"2"
    assert caller.failed == []
