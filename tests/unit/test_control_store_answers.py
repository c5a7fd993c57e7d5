"""Answers that are remembered for requests which may come twice."""

from __future__ import annotations

from shoal._core.control_store.answers import AnswerTable
from shoal._core.wire.messages import Ack, KvValue, Once

A, B = b"a", b"b"


def test_the_same_request_gets_the_same_answer_also_after_a_restart():
    table = AnswerTable(limit=4)
    assert table.recall(Once(A, 1, 1)) is None
    changes = table.remember(Once(A, 1, 1), KvValue(7, b"1"))
    assert table.recall(Once(A, 1, 1)) == KvValue(7, b"1")
    assert table.recall(Once(B, 1, 1)) is None
    later = AnswerTable(limit=4)
    later.load([(change.key, change.value) for change in changes])
    assert later.recall(Once(A, 1, 1)) == KvValue(7, b"1")
    later.check()


def test_answers_that_have_arrived_are_forgotten_and_old_copies_are_known_as_such():
    table = AnswerTable(limit=4)
    table.remember(Once(A, 1, 1), Ack(1))
    table.remember(Once(A, 2, 1), Ack(2))
    rows = table.remember(Once(A, 5, 2), Ack(3))
    assert [change.value is None for change in rows] == [False, True]
    assert len(table) == 2
    assert table.recall(Once(A, 1, 1)) is None
    assert table.is_stale(Once(A, 1, 1))
    assert not table.is_stale(Once(A, 2, 2))
    assert not table.is_stale(Once(B, 1, 1))
    table.check()


def test_clients_that_ended_or_were_silent_for_longest_are_forgotten():
    table = AnswerTable(limit=2)
    for client in (A, B, A, b"c"):
        table.remember(Once(client, 1, 1), Ack(1))
    assert table.recall(Once(B, 1, 1)) is None
    assert table.recall(Once(A, 1, 1)) == Ack(1)
    assert len(table.forget(A)) == 1
    assert table.forget(A) == []
    assert len(table) == 1
    table.check()
