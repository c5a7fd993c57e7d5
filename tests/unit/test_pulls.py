"""What is fetched from whom, in which order: no sockets, no clock."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal._core.object_store.pulls import (
    ATTEMPTS,
    BATCH_PIECES,
    CHUNK_BYTES,
    DEPTH,
    Answer,
    Ask,
    Found,
    GiveUp,
    MakeRoom,
    Pulls,
    Seal,
    Source,
    Urgency,
)

HERE, ABSENT = Answer(Found.HERE), Answer(Found.ABSENT)
A, B, C = (name.encode() for name in "ABC")
KIB, MIB = 1 << 10, 1 << 20


class Node:
    """A puller whose store always has room."""

    def __init__(self, limit_bytes=100 * MIB, limit_objects=1000):
        self.pulls = Pulls(limit_bytes, limit_objects)

    def want(self, *names, nbytes=KIB, primary=A, urgency=Urgency.GET):
        for name in names:
            self.pulls.want(name.encode(), nbytes, primary, urgency)

    def step(self):
        """Perform what is to be done, without the answers; say it in short."""
        out = []
        while instructions := self.pulls.advance():
            for instruction in instructions:
                match instruction:
                    case MakeRoom(object_id):
                        self.pulls.room(object_id)
                    case Ask(source, pieces):
                        relay = ">" if source.relay_of else ":"
                        out.append(source.node_id.decode() + relay + ",".join(p.object_id.decode() for p in pieces))
                    case Seal(object_id):
                        out.append("+" + object_id.decode())
                    case GiveUp(object_id, reason):
                        out.append("-" + object_id.decode() + (" " + reason if reason else ""))
            self.pulls.check()
        return out

    def answer(self, *answers, source=None):
        self.pulls.answered(source or Source(A), list(answers))
        return self.step()

    def fail(self, *answers, source=None):
        self.pulls.failed(source or Source(A), list(answers), "gone")
        return self.step()


@pytest.fixture
def node():
    return Node()


def test_small_objects_are_asked_for_together(node):
    node.want("a", "b", "c")
    assert node.step() == ["A:a,b,c"]
    assert node.answer(HERE, HERE, HERE) == ["+a", "+b", "+c"]


def test_one_wanted_twice_is_fetched_once(node):
    node.want("a", "a")
    assert node.step() == ["A:a"]
    node.want("a")
    assert node.step() == []
    assert node.answer(HERE) == ["+a"]
    assert node.pulls.statistics().pulled_objects_total == 1


def test_a_batch_is_neither_too_many_nor_too_much_and_two_are_under_way(node):
    node.want(*[f"o{i}" for i in range(3 * BATCH_PIECES)])
    assert [len(line.split(",")) for line in node.step()] == [BATCH_PIECES] * DEPTH
    other = Node()
    other.want("a", "b", "c", "d", nbytes=3 * MIB)
    assert other.step() == ["A:a,b", "A:c,d"]


def test_a_blocked_get_comes_first_then_arguments_then_what_is_ahead_of_need():
    node = Node(limit_bytes=KIB)
    node.want("w", urgency=Urgency.GET)
    assert node.step() == ["A:w"]
    node.want("p", urgency=Urgency.AHEAD)
    node.want("t", "u", urgency=Urgency.ARGUMENT)
    node.want("g", "h", urgency=Urgency.GET)
    order = []
    while under_way := node.answer(HERE)[1:]:
        order += under_way
    assert order == ["A:g", "A:h", "A:t", "A:u", "A:p"]


def test_what_becomes_urgent_overtakes():
    node = Node(limit_bytes=KIB)
    node.want("w", "x")
    node.want("p", urgency=Urgency.AHEAD)
    assert node.step() == ["A:w"]
    node.want("t", urgency=Urgency.ARGUMENT)
    node.want("p", urgency=Urgency.GET)
    assert node.answer(HERE) == ["+w", "A:x"]
    assert node.answer(HERE) == ["+x", "A:p"]


def test_an_urgent_object_overtakes_the_rest_of_a_large_one(node):
    node.want("l", nbytes=100 * CHUNK_BYTES, urgency=Urgency.ARGUMENT)
    assert node.step() == ["A:l"]
    assert node.answer(HERE) == ["A:l", "A:l"]
    node.want("g")
    assert node.step() == []
    assert node.answer(HERE) == ["A:g,l"]


def test_only_so_many_bytes_and_objects_are_under_way():
    node = Node(limit_bytes=10 * KIB, limit_objects=3)
    node.want("a", nbytes=50 * KIB)  # alone
    node.want("b", "c", nbytes=5 * KIB)
    node.want("d", "e", "f", nbytes=0)
    assert node.step() == ["A:a"]
    assert node.answer(HERE) == ["+a", "A:b,c,d"]
    assert node.answer(HERE, HERE, HERE) == ["+b", "+c", "+d", "A:e,f"]


def test_a_large_object_comes_in_order_one_piece_first(node):
    node.want("l", nbytes=3 * CHUNK_BYTES + 1)
    assert node.step() == ["A:l"]
    assert node.pulls.done_bytes(b"l") == 0
    assert node.answer(HERE) == ["A:l", "A:l"]
    assert node.pulls.done_bytes(b"l") == CHUNK_BYTES
    assert node.answer(HERE) == ["A:l"]
    assert node.answer(HERE) == []
    assert node.answer(HERE) == ["+l"]


def test_an_empty_object(node):
    node.want("e", nbytes=0)
    assert node.step() == ["A:e"]
    assert node.answer(HERE) == ["+e"]


def test_a_relay_is_followed_and_left_when_it_is_of_no_use(node):
    node.want("l", nbytes=4 * CHUNK_BYTES)
    node.step()
    assert node.answer(Answer(Found.ELSEWHERE, B)) == ["B>l"]
    relay = Source(B, b"l")
    assert node.answer(HERE, source=relay) == ["B>l", "B>l"]
    [ask] = [one for one in self_after(node, lambda: node.pulls.failed(relay, [], "killed")) if isinstance(one, Ask)]
    assert ask.source == Source(A)
    assert (ask.pieces[0].offset, ask.pieces[0].avoid) == (CHUNK_BYTES, B), "the rest, and who was of no use"
    assert node.answer(Answer(Found.ELSEWHERE, C)) == ["C>l"]
    assert node.answer(ABSENT, source=Source(C, b"l")) == ["A:l"]


def self_after(node, event):
    event()
    return node.pulls.advance()


def test_a_source_that_fails_costs_the_rest_only(node):
    node.want("l", nbytes=4 * CHUNK_BYTES)
    node.step()
    node.answer(HERE)
    [ask] = [one for one in self_after(node, lambda: node.pulls.failed(Source(A), [HERE], "reset")) if isinstance(one, Ask)]
    assert ask.pieces[0].offset == 2 * CHUNK_BYTES


def test_a_primary_that_is_gone_is_believed_after_some_attempts(node):
    node.want("a", "b")
    node.step()
    assert node.fail(HERE) == ["+a", "A:b"]
    for _ in range(ATTEMPTS - 2):
        assert node.fail() == ["A:b"]
    assert node.fail() == ["-b gone"]


def test_those_who_wait_for_a_dead_node_hear_of_it_without_attempts_of_their_own():
    node = Node(limit_bytes=KIB)
    node.want("a", "b", "c")
    assert node.step() == ["A:a"]
    for _ in range(ATTEMPTS - 1):
        assert node.fail() == ["A:a"]
    assert sorted(node.fail()) == ["-a gone", "-b gone", "-c gone"]


def test_what_nobody_waits_for_is_given_up_when_its_memory_is_not_written_any_more(node):
    node.want("a", "b")
    node.pulls.unwanted(b"b")
    assert node.step() == ["-b", "A:a"]
    node.pulls.unwanted(b"a")
    assert node.step() == []
    assert node.answer(ABSENT) == ["-a"]


def test_what_is_wanted_again_goes_on(node):
    node.want("l", nbytes=3 * CHUNK_BYTES)
    node.step()
    node.answer(HERE)
    node.pulls.unwanted(b"l")
    assert node.answer(HERE) == []
    node.want("l", nbytes=3 * CHUNK_BYTES)
    assert node.answer(HERE) == ["+l"]
    node.want("m")
    node.pulls.unwanted(b"m")
    node.want("m")
    assert node.step() == ["A:m"]


def test_a_source_that_fails_after_it_sent_us_to_another_leaves_us_with_that_one(node):
    node.want("l", nbytes=4 * CHUNK_BYTES)
    assert node.step() == ["A:l"]
    assert node.answer(HERE) == ["A:l", "A:l"]
    assert node.answer(Answer(Found.ELSEWHERE, C)) == [], "a piece of A may still come"
    assert node.fail() == ["C>l"]


class PullsMachine(RuleBasedStateMachine):
    """Any order of events: everything wanted ends, in one of the ways that there are, and the rest is in order."""

    def __init__(self):
        super().__init__()
        self.pulls = Pulls(4 * CHUNK_BYTES, 5)
        self.sizes: dict[bytes, int] = {}
        self.asking_room: list[bytes] = []
        self.asked: dict[Source, list[list]] = {}
        self.here: dict[bytes, int] = {}
        self.last = 0

    def perform(self):
        for instruction in self.pulls.advance():
            match instruction:
                case MakeRoom(object_id):
                    self.asking_room.append(object_id)
                    self.here[object_id] = 0
                case Ask(source, pieces):
                    assert pieces
                    self.asked.setdefault(source, []).append(pieces)
                case Seal(object_id):
                    assert self.here.pop(object_id) == self.sizes.pop(object_id)
                case GiveUp(object_id, _):
                    self.here.pop(object_id, None)
                    self.sizes.pop(object_id)
                    if object_id in self.asking_room:
                        self.asking_room.remove(object_id)
                    assert not any(p.object_id == object_id for batches in self.asked.values() for batch in batches for p in batch)

    @rule(
        nbytes=st.sampled_from([0, 1, KIB, CHUNK_BYTES, 3 * CHUNK_BYTES + 5, 20 * CHUNK_BYTES]),
        primary=st.sampled_from([A, B]),
        urgency=st.sampled_from(Urgency),
    )
    def want_new(self, nbytes, primary, urgency):
        self.last += 1
        object_id = b"%d" % self.last
        self.sizes[object_id] = nbytes
        self.pulls.want(object_id, nbytes, primary, urgency)
        self.perform()

    @precondition(lambda self: self.sizes)
    @rule(data=st.data(), urgency=st.sampled_from(Urgency), primary=st.sampled_from([A, B]))
    def want_again(self, data, urgency, primary):
        object_id = data.draw(st.sampled_from(sorted(self.sizes)))
        self.pulls.want(object_id, self.sizes[object_id], primary, urgency)
        self.perform()

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def unwanted(self, data):
        self.pulls.unwanted(data.draw(st.sampled_from(sorted(self.sizes))))
        if data.draw(st.booleans()):
            self.perform()

    @precondition(lambda self: self.asking_room)
    @rule(refuse=st.booleans())
    def room(self, refuse):
        object_id = self.asking_room.pop(0)
        if refuse:
            self.pulls.no_room(object_id)
            self.sizes.pop(object_id)
            self.here.pop(object_id)
        else:
            self.pulls.room(object_id)
        self.perform()

    def some_answers(self, data, pieces):
        answers = []
        for piece in pieces:
            answer = data.draw(st.sampled_from([HERE, HERE, HERE, ABSENT, Answer(Found.ELSEWHERE, C)]))
            if answer is HERE and self.here.get(piece.object_id) == piece.offset:
                self.here[piece.object_id] += piece.length
            answers.append(answer)
        return answers

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answer(self, data):
        source = data.draw(st.sampled_from(sorted(self.asked)))
        pieces = self.asked[source].pop(0)
        if not self.asked[source]:
            del self.asked[source]
        self.pulls.answered(source, self.some_answers(data, pieces))
        self.perform()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def fail(self, data):
        source = data.draw(st.sampled_from(sorted(self.asked)))
        first = self.asked.pop(source)[0]
        answered = data.draw(st.integers(0, len(first) - 1))
        self.pulls.failed(source, self.some_answers(data, first[:answered]), "gone")
        self.perform()

    @invariant()
    def holds(self):
        self.pulls.check()

    def teardown(self):
        """Whatever happened: with sources that answer, everything still wanted comes."""
        for _ in range(10_000):
            self.perform()
            if self.asking_room:
                self.pulls.room(self.asking_room.pop())
            elif self.asked:
                source, batches = next(iter(self.asked.items()))
                pieces = batches.pop(0)
                if not batches:
                    del self.asked[source]
                for piece in pieces:
                    if self.here.get(piece.object_id) == piece.offset:
                        self.here[piece.object_id] += piece.length
                self.pulls.answered(source, [HERE] * len(pieces))
            else:
                break
            self.pulls.check()
        assert not self.sizes
        statistics = self.pulls.statistics()
        assert (statistics.waiting, statistics.under_way, statistics.under_way_bytes) == (0, 0, 0)


TestPullsMachine = PullsMachine.TestCase
