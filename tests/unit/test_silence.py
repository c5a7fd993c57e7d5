"""Who has been silent for too long, by a clock that stands still while its owner does."""

from __future__ import annotations

from shoal._core.transport.silence import Silence

A, B = b"a", b"b"


def test_who_says_nothing_for_the_limit_is_silent():
    silence = Silence(10.0, 1.0)
    silence.hear(A, 0.0)
    silence.hear(B, 0.0)
    for second in range(1, 10):
        silence.hear(B, float(second))
        assert silence.look(float(second)) == []
    assert silence.look(10.0) == [A]
    silence.forget(A)
    assert silence.look(11.0) == []
    assert silence
    silence.forget(B)
    assert not silence


def test_a_slow_one_that_speaks_once_within_the_limit_is_not_silent():
    silence = Silence(10.0, 1.0)
    silence.hear(A, 0.0)
    for second in range(1, 200):
        if second % 9 == 0:
            silence.hear(A, float(second))
        assert silence.look(float(second)) == []


def test_the_time_in_which_nobody_looked_counts_for_nobody():
    silence = Silence(10.0, 1.0)
    silence.hear(A, 0.0)
    for second in range(1, 5):
        silence.look(float(second))
    assert silence.look(3600.0) == [], "the owner was stopped for an hour"
    assert silence.look(3601.0) == []
    assert silence.look(3604.0) == []
    assert silence.look(3605.0) == []
    assert next(second for second in range(3606, 3620) if silence.look(float(second))) <= 3612


def test_a_first_word_may_be_given_more_time():
    silence = Silence(2.0, 0.5)
    silence.hear(A, 100.0, limit_s=10.0)
    now = 100.0
    while not silence.look(now):
        now += 0.5
    assert now == 110.0
