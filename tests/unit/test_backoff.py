"""How often a node that cannot be reached is tried."""

from __future__ import annotations

import pytest

from shoal._core.object_store.backoff import FIRST_S, LONGEST_S, Backoff


def test_pauses_grow_and_end_with_success() -> None:
    backoff, now, pauses = Backoff(), 0.0, []
    assert backoff.wait_s(b"a", now) == 0.0
    for _ in range(8):
        backoff.failed(b"a", now)
        pauses.append(backoff.wait_s(b"a", now))
        now += pauses[-1]
    assert pauses[:3] == pytest.approx([FIRST_S, 2 * FIRST_S, 4 * FIRST_S])
    assert pauses[-1] == pytest.approx(LONGEST_S)
    backoff.worked(b"a")
    assert backoff.wait_s(b"a", now) == 0.0
    backoff.failed(b"a", now)
    assert backoff.wait_s(b"a", now) == pytest.approx(FIRST_S)


def test_failures_of_the_same_moment_count_once_and_nodes_apart() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.failed(b"a", 10.0)
    assert backoff.wait_s(b"a", 10.0) == pytest.approx(FIRST_S)
    assert backoff.wait_s(b"b", 10.0) == 0.0


def test_what_nobody_tries_any_more_is_forgotten() -> None:
    backoff = Backoff()
    backoff.failed(b"a", 0.0)
    backoff.failed(b"b", 1000.0)
    assert list(backoff._pauses) == [b"b"]


def test_pauses_do_not_grow_for_a_node_that_is_dead():
    backoff, now = Backoff(), 0.0
    for _ in range(10):
        backoff.failed(b"n", now, known=False)
        assert backoff.wait_s(b"n", now) < 1.01 * FIRST_S
        now += FIRST_S
