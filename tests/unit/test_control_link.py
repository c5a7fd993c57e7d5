"""What a link sends again after a lost connection, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from shoal._core.control_link.state import GiveUp, HangUp, LinkState, Send
from shoal._core.wire import messages as m

ME = b"client"
ACTOR, OTHER = b"actor", b"other"


@pytest.fixture
def state() -> LinkState:
    state = LinkState(ME, silence_s=10.0, beat_s=1.0, give_up_s=60.0)
    state.connected(0.0)
    return state


def messages(instructions: list[Any]) -> list[Any]:
    state_check = [one.message for one in instructions if isinstance(one, Send)]
    return [type(message).__name__ for message in state_check]


def test_what_has_no_answer_is_sent_again_in_order(state: LinkState):
    first, _ = state.request(m.KvGet(0, "ns", b"a"), 0.0)
    state.send(m.PutFunction(b"f", b"job", b"code"), 0.0)
    state.request(m.GetFunction(0, b"g"), 0.0)
    state.answered(first, 0.0)
    state.lost(1.0)
    assert state.request(m.KvGet(0, "ns", b"b"), 2.0)[1] == [], "there is no connection"
    state.check()
    again = state.connected(3.0)
    assert messages(again) == ["PutFunction", "GetFunction", "KvGet"]
    assert [one.number > 0 for one in again if isinstance(one, Send)] == [False, True, True]


def test_an_answer_says_that_all_before_it_has_arrived_but_a_no_does_not(state: LinkState):
    state.send(m.JobFinished(b"one"), 0.0)
    number, _ = state.request(m.KvGet(0, "ns", b"a"), 0.0)
    state.refused(number, 0.0)
    state.send(m.JobFinished(b"two"), 0.0)
    state.lost(1.0)
    assert messages(state.connected(2.0)) == ["JobFinished", "JobFinished"]
    number, _ = state.request(m.KvGet(0, "ns", b"a"), 0.0)
    state.answered(number, 2.0)
    state.check()
    state.lost(3.0)
    assert state.connected(4.0) == []


def test_what_is_of_now_is_not_sent_again(state: LinkState):
    assert messages(state.send(m.NodeResources(b"n", {}), 0.0)) == ["NodeResources"]
    state.lost(1.0)
    assert state.send(m.ClusterChanged(b"n"), 1.0) == []
    assert state.connected(2.0) == []


def test_subscriptions_are_renewed_until_they_are_over(state: LinkState):
    for actor_id in (ACTOR, OTHER, b"third"):
        state.send(m.SubscribeActor(actor_id), 0.0)
    state.send(m.UnsubscribeActor(OTHER), 0.0)
    state.heard(m.ActorUpdate(b"third", m.ACTOR_DEAD), 0.0)
    state.heard(m.ActorUpdate(ACTOR, m.ACTOR_ALIVE), 0.0)
    state.lost(1.0)
    assert state.connected(2.0) == [Send(m.SubscribeActor(ACTOR))]


def test_a_channel_is_followed_from_where_it_was_left(state: LinkState):
    number, _ = state.request(m.Watch(0, "nodes", 0), 0.0)
    state.answered(number, 0.0)
    for sequence in (4, 5):
        state.heard(m.Published("nodes", sequence, b"", b""), 0.0)
    for _ in range(2):
        state.lost(1.0)
        (again,) = state.connected(2.0)
        assert isinstance(again, Send)
        assert again.message == m.Watch(0, "nodes", 5)


def test_requests_that_must_not_happen_twice_are_marked(state: LinkState):
    numbers = []
    for message in (m.KvPut(0, "ns", b"k", b"v"), m.KvDelete(0, "ns", b"k"), m.KillActor(0, ACTOR, False)):
        number, (sent,) = state.request(message, 0.0)
        numbers.append(number)
        assert isinstance(sent, Send)
        assert sent.message.once == m.Once(ME, number, numbers[0])
    state.answered(numbers[0], 0.0)
    state.lost(1.0)
    marks = [one.message.once for one in state.connected(2.0) if isinstance(one, Send)]
    assert marks == [m.Once(ME, number, numbers[1]) for number in numbers[1:]], "the same numbers, and what is answered may be forgotten"


def test_a_withdrawn_request_is_not_sent_again(state: LinkState):
    number, _ = state.request(m.GetFunction(0, b"g"), 0.0)
    state.withdraw(number)
    state.lost(1.0)
    assert state.connected(2.0) == []


def test_requests_give_up_when_there_was_no_connection_for_long_and_only_then(state: LinkState):
    old, _ = state.request(m.GetFunction(0, b"g"), 0.0)
    for second in range(1, 500):
        state.heard(None, float(second))
        assert not any(isinstance(one, GiveUp) for one in state.tick(float(second)))
    state.lost(500.0)
    late, _ = state.request(m.GetFunction(0, b"h"), 530.0)
    state.send(m.JobFinished(b"one"), 530.0)
    assert state.must_beat
    assert state.tick(559.0) == []
    assert state.tick(560.0) == [GiveUp(old)]
    assert state.tick(589.0) == []
    assert state.tick(590.0) == [GiveUp(late)]
    assert messages(state.connected(1000.0)) == ["JobFinished"]


def test_a_silent_control_store_is_left_when_something_waits_for_it(state: LinkState):
    assert not state.must_beat
    state.send(m.SubscribeActor(ACTOR), 0.0)
    assert state.must_beat
    assert messages(state.tick(1.0)) == ["Ping"]
    assert [state.tick(float(second)) for second in range(2, 10)] == [[]] * 8, "one question at a time"
    assert state.tick(10.0) == [HangUp()]
    state.lost(10.0)
    state.check()
    assert messages(state.connected(11.0)) == ["SubscribeActor"]
    (ping,) = state.tick(12.0)
    assert isinstance(ping, Send)
    state.answered(ping.number, 12.5)
    assert messages(state.tick(13.0)) == ["Ping"]


def test_own_standstill_is_not_the_silence_of_the_control_store(state: LinkState):
    state.send(m.SubscribeActor(ACTOR), 0.0)
    state.tick(1.0)
    assert state.tick(3600.0) == []
