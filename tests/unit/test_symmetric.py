"""How long a machine that follows serves: through a silence of its head, and not beyond its end."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.cli.symmetric import serve_until_silent


def served(said: Iterable[bool], *, limit_s: float = 10.0, ends_at: float = 1000.0) -> float:
    """Return when it ended, with a question each second; after what was ``said`` the head says nothing."""
    now = 0.0
    answers = iter(said)

    def goes_on() -> bool:
        nonlocal now
        now += 1.0
        return now < ends_at

    serve_until_silent(lambda: next(answers, False), goes_on, limit_s, lambda: now)
    return now


def test_a_control_store_that_is_started_again_ends_nothing():
    assert served([True, *[False] * 9, True, *[False] * 9, True]) == 31.0


def test_a_head_that_has_gone_is_not_waited_for():
    assert served([]) == 10.0
    assert served([True] * 5) == 15.0


def test_a_signal_or_the_end_of_the_node_ends_it_at_once():
    assert served([True] * 5, ends_at=3.0) == 3.0
