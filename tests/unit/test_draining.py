"""What a node that leaves does next, given what is there: loads in, instructions out."""

from __future__ import annotations

import pytest

from shoal._core.node_agent.draining import (
    BATCH,
    END_S,
    MOST_UNDER_WAY,
    RETRY_S,
    SPREAD_S,
    Bequeath,
    CopyOff,
    Draining,
    EndWork,
    Leave,
    Load,
    Phase,
    refusal,
)  # fmt: skip
from shoal._core.wire.messages import DRAIN_IDLE, DRAIN_PREEMPTION

ME, HOME, OTHER = b"me", b"home", b"other"
X, Y = b"x", b"y"


def drain(deadline: float = 10.0) -> Draining:
    return Draining(ME, deadline)


@pytest.mark.parametrize("load", [Load(tasks=1), Load(actors=1), Load(drivers=1), Load(unfinished=1), Load(objects={X: ME})])
def test_only_an_idle_node_leaves_for_being_idle(load: Load) -> None:
    assert "not idle: it has 1 " in refusal(DRAIN_IDLE, load)
    assert not refusal(DRAIN_PREEMPTION, load)
    assert not refusal(DRAIN_IDLE, Load())


def test_a_refusal_says_what_the_node_is_busy_with() -> None:
    assert refusal(DRAIN_IDLE, Load(tasks=2, actors=1)) == "The node is not idle: it has 2 running tasks, 1 actor."


def test_a_node_without_anything_leaves_at_once_and_once() -> None:
    state = drain()
    assert state.step(Load(), [HOME], 0.0) == [Leave()]
    assert state.step(Load(), [HOME], 1.0) == []
    assert state.phase is Phase.GONE


@pytest.mark.parametrize("load", [Load(tasks=1), Load(actors=1), Load(drivers=1), Load(unfinished=1)])
def test_what_must_stay_keeps_the_node_until_it_ends(load: Load) -> None:
    state = drain()
    assert state.step(load, [HOME], 9.9) == []
    assert state.step(Load(), [HOME], 9.9) == [Leave()]


def test_at_the_deadline_work_is_ended_and_the_node_leaves_when_it_has_gone() -> None:
    state = drain()
    assert state.step(Load(tasks=1), [HOME], 10.0) == [EndWork()]
    assert state.step(Load(tasks=1), [HOME], 10.1) == []
    assert state.step(Load(drivers=1), [HOME], 10.2) == [Leave()], "a driver cannot be ended, and is not waited for"


def test_what_cannot_be_ended_keeps_the_node_for_a_moment_only() -> None:
    state = drain()
    state.step(Load(tasks=1), [HOME], 10.0)
    assert state.step(Load(tasks=1), [HOME], 10.0 + END_S) == [Leave()]


def test_a_second_wish_can_only_bring_the_deadline_forward() -> None:
    state = drain(10.0)
    state.again(50.0)
    assert state.deadline == 10.0
    state.again(5.0)
    assert state.step(Load(tasks=1), [HOME], 5.0) == [EndWork()]


def test_objects_go_to_their_owners_node_and_the_node_waits_until_they_are_let_go() -> None:
    state = drain()
    load = Load(tasks=1, objects={X: HOME, Y: OTHER})
    assert state.step(load, [OTHER, HOME], 0.0) == [CopyOff(HOME, [X]), CopyOff(OTHER, [Y])]
    assert state.step(load, [OTHER, HOME], 0.1) == [], "they are under way"
    state.answered(HOME, [X], [X])
    state.answered(OTHER, [Y], [Y])
    state.check()
    assert state.step(Load(objects={X: HOME}), [OTHER, HOME], 0.2) == [], "its owner does not know yet"
    assert state.step(Load(), [OTHER, HOME], 0.3) == [Leave()]


def test_an_object_without_room_at_home_goes_elsewhere_and_is_offered_again_later_if_nobody_has_any() -> None:
    state = drain()
    load = Load(objects={X: HOME})
    assert state.step(load, [HOME, OTHER], 0.0) == [CopyOff(HOME, [X])]
    state.answered(HOME, [X], [])
    assert state.step(load, [HOME, OTHER], 0.1) == [CopyOff(OTHER, [X])]
    state.answered(OTHER, [X], [])
    assert state.step(load, [HOME, OTHER], 0.2) == []
    assert state.step(load, [HOME, OTHER], 0.2 + RETRY_S) == [CopyOff(HOME, [X])]


def test_an_owners_node_that_leaves_too_is_passed_over() -> None:
    assert drain().step(Load(objects={X: HOME}), [OTHER], 0.0) == [CopyOff(OTHER, [X])]


def test_with_no_other_node_objects_keep_nobody() -> None:
    assert drain().step(Load(objects={X: HOME}), [], 0.0) == [Leave()]


def test_objects_leave_in_batches_and_no_more_than_a_bounded_number_at_once() -> None:
    state = drain()
    load = Load(objects={b"%d" % number: HOME for number in range(1000)})
    asked = state.step(load, [HOME], 0.0)
    assert [len(one.object_ids) for one in asked if isinstance(one, CopyOff)] == [BATCH] * (MOST_UNDER_WAY // BATCH)
    first = asked[0]
    assert isinstance(first, CopyOff)
    state.answered(HOME, first.object_ids, first.object_ids)
    state.check()
    assert [len(one.object_ids) for one in state.step(load, [HOME], 0.1) if isinstance(one, CopyOff)] == [BATCH]


def test_an_answer_about_an_object_that_was_freed_meanwhile_changes_nothing() -> None:
    state = drain()
    state.step(Load(objects={X: HOME}), [HOME], 0.0)
    assert state.step(Load(tasks=1), [HOME], 0.1) == []
    state.answered(HOME, [X], [X])
    state.check()
    assert state.step(Load(objects={X: HOME}), [HOME], 0.2) == [CopyOff(HOME, [X])], "made again by a task that still ran"


# --- what the agent owns in the place of processes that have ended


def test_what_the_agent_owns_goes_to_one_node_and_everybody_has_time_to_hear_of_it() -> None:
    state = drain()
    assert state.step(Load(leaving=1), [HOME, OTHER], 0.0) == [], "they may have something to hand over"
    assert state.step(Load(tasks=1, owned=2), [HOME, OTHER], 0.0) == [Bequeath(HOME)], "they may run to the deadline"
    assert state.step(Load(owned=2), [OTHER], 0.1) == [], "it is under way"
    state.bequeathed(True, 1.0)
    assert state.step(Load(owned=1), [OTHER, HOME], 1.1) == [Bequeath(HOME)], "there is one heir"
    state.bequeathed(True, 2.0)
    assert state.step(Load(objects={X: HOME}), [HOME, OTHER], 2.1) == [CopyOff(HOME, [X])]
    state.answered(HOME, [X], [X])
    assert state.step(Load(), [HOME, OTHER], 2.0 + SPREAD_S / 2) == []
    assert state.step(Load(), [HOME, OTHER], 2.0 + SPREAD_S) == [Leave()]


def test_if_one_node_does_not_take_what_the_agent_owns_the_next_one_is_asked() -> None:
    state = drain()
    for heir in (HOME, OTHER, HOME):
        assert state.step(Load(owned=1), [HOME, OTHER], 0.0) == [Bequeath(heir)]
        state.bequeathed(False, 0.0)


def test_what_the_agent_owns_keeps_the_last_node_not_at_all_and_the_others_until_the_deadline() -> None:
    assert drain().step(Load(owned=1), [], 0.0) == [Leave()]
    state = drain()
    state.step(Load(owned=1), [HOME], 0.0)
    assert state.step(Load(owned=1), [HOME], 10.0) == [EndWork()]
    state.bequeathed(False, 10.0)
    assert state.step(Load(owned=1), [HOME], 10.0) == [Leave()]


def test_a_hand_over_that_is_under_way_at_the_deadline_has_a_moment_to_end() -> None:
    for ends in (True, False):
        state = drain()
        assert state.step(Load(tasks=1, owned=1), [HOME], 9.9) == [Bequeath(HOME)]
        assert state.step(Load(tasks=1, owned=1), [HOME], 10.0) == [EndWork()]
        assert state.step(Load(owned=1), [HOME], 10.1) == []
        if ends:
            state.bequeathed(True, 10.2)
        assert state.step(Load(), [HOME], 10.2 if ends else 10.0 + END_S) == [Leave()]
