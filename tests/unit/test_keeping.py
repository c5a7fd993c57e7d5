"""How long a node waits before it starts its control store again."""

from __future__ import annotations

from shoal._core.process.keeping import FIRST_PAUSE_S, LONGEST_PAUSE_S, STEADY_S, Pauses


def test_pauses_grow_while_it_dies_at_once_and_are_short_again_after_a_while_of_life():
    pauses, now, seen = Pauses(), 100.0, []
    for _ in range(20):
        seen.append(pauses.next(now))
        pauses.started(now)
        now += STEADY_S / 2
    assert seen[0] == FIRST_PAUSE_S
    assert seen == sorted(seen)
    assert seen[-1] == LONGEST_PAUSE_S
    assert pauses.next(now + STEADY_S) == FIRST_PAUSE_S
