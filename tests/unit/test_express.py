"""Calls that the calling thread sends itself: the offer, who takes it, and the word of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from shoal._core.wire.messages import PushTask, Shape, TaskTemplate
from shoal._core.worker.express import ABANDONED, REFUSED, SENT, UNUSED, Express
from shoal._core.worker.records import PUSHED, TaskRecord

SHAPE = Shape(b"job1")
TEMPLATE = TaskTemplate(b"f", "f", "f", SHAPE)


class FakeConnection:
    def __init__(self) -> None:
        self.sent: list[PushTask] = []
        self.busy = self.allowed = False
        #: Called before it sends, and after.
        self.meanwhile: Callable[[], Any] = lambda: None
        self.afterwards: Callable[[], Any] = lambda: None

    def allow_send_now(self) -> None:
        self.allowed = True

    def send_now(self, message: Any, is_valid: Callable[[], bool], sent: Callable[[], Any]) -> bool:
        self.meanwhile()
        if self.busy or not self.allowed or not is_valid():
            return False
        self.sent.append(message)
        sent()
        self.afterwards()
        return True


class FakePeer:
    def __init__(self) -> None:
        self.connection: Any = FakeConnection()
        self.index: int | None = 7
        self.takes_calls = True

    def known_template(self, template: TaskTemplate) -> int | None:
        return self.index


class FakeInbox:
    def __init__(self) -> None:
        self.queue: list[tuple[Callable[[Any], Any], Any]] = []
        self.quiet = True
        #: Called when something was posted.
        self.meanwhile: Callable[[], Any] = lambda: None

    def settled(self) -> bool:
        return self.quiet

    def post_later(self, fn: Callable[[Any], Any], arg: Any) -> None:
        self.queue.append((fn, arg))
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()

    post = post_later

    def drain(self) -> None:
        while self.queue:
            fn, arg = self.queue.pop(0)
            fn(arg)


class Stage:
    def __init__(self) -> None:
        self.express = Express()
        self.peer, self.inbox = FakePeer(), FakeInbox()
        self.told: list[tuple[bytes, str]] = []
        self.offer: Any = self.new_offer()

    def new_offer(self) -> Any:
        return self.express.offer(SHAPE, self.peer, lambda record, fate: self.told.append((record.task_id, fate)))  # type: ignore[arg-type]

    def send(self, name: bytes = b"t") -> bool:
        self.record = TaskRecord(name, TEMPLATE, b"args", [])
        return self.express.send(SHAPE, self.record, self.inbox)  # type: ignore[arg-type]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_first_call_takes_the_offer_and_leaves_word() -> None:
    stage = Stage()
    assert stage.send(b"one")
    assert stage.record.state == PUSHED
    assert [(message.task_id, message.template, message.args) for message in stage.peer.connection.sent] == [(b"one", 7, b"args")]
    assert stage.told == []
    assert not stage.send(b"two")
    assert not stage.express.withdraw(stage.offer), "taken"
    stage.inbox.drain()
    assert stage.told == [(b"one", SENT)]
    assert stage.new_offer() is not None


def test_a_withdrawn_offer_is_taken_by_nobody() -> None:
    stage = Stage()
    assert stage.express.withdraw(stage.offer)
    assert not stage.send()
    assert (stage.inbox.queue, stage.told) == ([], [])
    assert stage.new_offer() is not None


def test_one_offer_of_a_kind() -> None:
    stage = Stage()
    assert stage.new_offer() is None
    assert stage.express.offer(b"actor", stage.peer, lambda record, fate: None) is not None  # type: ignore[arg-type]


def test_an_offer_that_was_taken_is_not_mistaken_for_a_later_one() -> None:
    stage = Stage()
    assert stage.send()
    stage.inbox.drain()
    later = stage.new_offer()
    assert not stage.express.withdraw(stage.offer)
    assert stage.express.withdraw(later)


@pytest.mark.parametrize("why", ["something was posted before", "the template is new to the worker", "the connection stands not yet"])
def test_a_call_that_something_must_go_before_is_posted_and_the_offer_stays(why: str) -> None:
    stage = Stage()
    connection = stage.peer.connection
    if why.startswith("something"):
        stage.inbox.quiet = False
    elif why.startswith("the template"):
        stage.peer.index = None
    else:
        stage.peer.connection = None
    assert not stage.send()
    stage.inbox.quiet, stage.peer.index, stage.peer.connection = True, 7, connection
    assert stage.inbox.queue == []
    assert stage.send()


@pytest.mark.parametrize("why", ["unsent messages", "templates are numbered anew"])
def test_a_connection_that_refuses_is_told_after_all(why: str) -> None:
    stage = Stage()
    if why == "unsent messages":
        stage.peer.connection.busy = True
    else:
        stage.peer.connection.meanwhile = lambda: setattr(stage.peer, "index", 8)
    assert stage.send(), "whoever is told sends it again"
    stage.inbox.drain()
    assert stage.told == [(b"t", SENT), (b"t", REFUSED)]
    assert stage.peer.connection.sent == []


def test_the_word_is_read_while_the_call_is_being_sent() -> None:
    stage = Stage()
    stage.peer.connection.meanwhile = stage.inbox.drain
    assert stage.send()
    assert stage.told == [(b"t", SENT)]
    assert len(stage.peer.connection.sent) == 1


def test_the_word_is_read_before_the_offer_is_taken() -> None:
    stage = Stage()
    stage.inbox.meanwhile = stage.inbox.drain
    assert not stage.send(), "it is posted"
    assert stage.told == [(b"t", UNUSED)]
    assert stage.peer.connection.sent == []
    assert stage.new_offer() is not None


def test_a_finalizer_that_makes_a_call_meanwhile_has_the_offer() -> None:
    stage = Stage()
    inner: list[bool] = []

    def finalize() -> None:
        record = TaskRecord(b"inner", TEMPLATE, b"", [])
        inner.append(stage.express.send(SHAPE, record, stage.inbox))  # type: ignore[arg-type]

    stage.inbox.meanwhile = finalize
    assert not stage.send(b"outer")
    assert inner == [True]
    stage.inbox.drain()
    assert stage.told == [(b"inner", SENT)]


def test_an_interrupt_before_it_is_sent_leaves_word_of_that() -> None:
    stage = Stage()
    stage.peer.connection.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        stage.send()
    stage.inbox.drain()
    assert stage.told == [(b"t", SENT), (b"t", ABANDONED)]


def test_an_interrupt_after_it_was_sent_changes_nothing() -> None:
    stage = Stage()
    stage.peer.connection.afterwards = interrupt
    with pytest.raises(KeyboardInterrupt):
        stage.send()
    stage.inbox.drain()
    assert stage.told == [(b"t", SENT)]


def test_an_interrupt_before_the_offer_is_taken_leaves_it() -> None:
    stage = Stage()
    stage.inbox.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        stage.send(b"interrupted")
    assert stage.send(b"next")
    stage.inbox.drain()
    assert stage.told == [(b"next", SENT)]


def test_of_many_threads_one_takes_it() -> None:
    for _ in range(50):
        stage = Stage()
        begin = threading.Barrier(4)
        results: list[bool] = []

        def one(stage: Stage = stage, begin: threading.Barrier = begin, results: list[bool] = results) -> None:
            record = TaskRecord(b"t", TEMPLATE, b"", [])
            begin.wait()
            results.append(stage.express.send(SHAPE, record, stage.inbox))  # type: ignore[arg-type]

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [False, False, False, True]
        stage.inbox.drain()
        assert [fate for _, fate in stage.told] == [SENT]
