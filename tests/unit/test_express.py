"""Calls that the calling thread sends itself: the offer, who takes it, and the word of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from shoal._core.wire.messages import PushTask, Shape, TaskTemplate
from shoal._core.worker.express import Express, Left
from shoal._core.worker.records import PUSHED, WAITING, TaskRecord

SHAPE = Shape(b"job1")
TEMPLATE = TaskTemplate(b"f", "f", "f", SHAPE)


class FakeConnection:
    def __init__(self) -> None:
        self.sent: list[PushTask] = []
        self.busy = False
        self.interrupt = False

    def send_now(self, make: Callable[[], Any]) -> bool:
        if self.interrupt:
            raise KeyboardInterrupt
        if not self.busy and (message := make()) is not None:
            self.sent.append(message)
            return True
        return False


class FakePeer:
    def __init__(self) -> None:
        self.connection: FakeConnection | None = FakeConnection()
        self.index: int | None = 7

    def known_template(self, template: TaskTemplate) -> int | None:
        return self.index


class FakeInbox:
    def __init__(self) -> None:
        self.queue: list[tuple[Callable[[Any], Any], Any]] = []
        self.quiet = True

    def settled(self) -> bool:
        return self.quiet

    def post_later(self, fn: Callable[[Any], Any], arg: Any) -> None:
        self.queue.append((fn, arg))

    def drain(self) -> None:
        while self.queue:
            fn, arg = self.queue.pop(0)
            fn(arg)


class Stage:
    def __init__(self) -> None:
        self.express = Express()
        self.peer, self.inbox = FakePeer(), FakeInbox()
        self.words: list[tuple[bytes, Left]] = []
        self.offer = self.express.offer(SHAPE, self.peer, lambda record, left: self.words.append((record.task_id, left)))  # type: ignore[arg-type]

    def send(self, name: bytes = b"t") -> tuple[bool | None, TaskRecord]:
        record = TaskRecord(name, TEMPLATE, b"args", [])
        return self.express.send(SHAPE, record, self.inbox), record  # type: ignore[arg-type]


def test_the_first_call_takes_the_offer_and_leaves_word() -> None:
    stage = Stage()
    sent, record = stage.send(b"one")
    assert (sent, record.state) == (True, PUSHED)
    assert stage.peer.connection is not None
    assert [(message.task_id, message.template, message.args) for message in stage.peer.connection.sent] == [(b"one", 7, b"args")]
    assert stage.words == []
    sent, record = stage.send(b"two")
    assert (sent, record.state) == (False, WAITING)
    assert not stage.express.withdraw(stage.offer), "taken"  # type: ignore[arg-type]
    stage.inbox.drain()
    assert stage.words == [(b"one", True)]


def test_a_withdrawn_offer_is_taken_by_nobody() -> None:
    stage = Stage()
    assert stage.express.withdraw(stage.offer)  # type: ignore[arg-type]
    assert stage.send()[0] is False
    assert (stage.inbox.queue, stage.words) == ([], [])


def test_one_offer_of_a_kind() -> None:
    stage = Stage()
    assert stage.express.offer(SHAPE, FakePeer(), lambda record, left: None) is None  # type: ignore[arg-type]
    assert stage.express.offer(b"actor", FakePeer(), lambda record, left: None) is not None  # type: ignore[arg-type]


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
    assert stage.send()[0] is False
    stage.inbox.quiet, stage.peer.index, stage.peer.connection = True, 7, connection
    assert stage.inbox.queue == []
    assert stage.send()[0] is True


def test_a_connection_with_unsent_messages_refuses_and_the_word_says_so() -> None:
    stage = Stage()
    assert stage.peer.connection is not None
    stage.peer.connection.busy = True
    sent, record = stage.send()
    assert (sent, record.state) == (False, WAITING)
    stage.inbox.drain()
    assert stage.words == [(b"t", False)]


def test_an_interrupt_while_it_sends_leaves_word_that_nobody_knows() -> None:
    stage = Stage()
    assert stage.peer.connection is not None
    stage.peer.connection.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        stage.send()
    stage.inbox.drain()
    assert stage.words == [(b"t", None)]
    assert not stage.express.withdraw(stage.offer)  # type: ignore[arg-type]


def test_an_offer_that_was_taken_is_not_mistaken_for_a_later_one() -> None:
    stage = Stage()
    assert stage.send()[0]
    later = stage.express.offer(SHAPE, FakePeer(), lambda record, left: None)  # type: ignore[arg-type]
    assert later is not None
    assert not stage.express.withdraw(stage.offer)  # type: ignore[arg-type]
    assert stage.express.withdraw(later)


def test_an_interrupt_before_it_sends_takes_nothing() -> None:
    stage = Stage()

    def post_later(fn: Callable[[Any], Any], arg: Any) -> None:
        stage.inbox.queue.append((fn, arg))
        raise KeyboardInterrupt

    stage.inbox.post_later = post_later  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stage.send()
    stage.inbox.drain()
    assert stage.words == [(b"t", False)]
    assert stage.express.offer(SHAPE, FakePeer(), lambda record, left: None) is not None, "the old one is gone"  # type: ignore[arg-type]


def test_of_many_threads_one_takes_it() -> None:
    for _ in range(50):
        stage = Stage()
        begin = threading.Barrier(4)
        results: list[bool | None] = []

        def one(stage: Stage = stage, begin: threading.Barrier = begin, results: list[bool | None] = results) -> None:
            begin.wait()
            results.append(stage.send()[0])

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(bool, results)) == [False, False, False, True]
