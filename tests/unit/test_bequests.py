"""What an agent owns goes to another agent when its node leaves: nothing that is held is freed, and nothing stays that is not."""

from __future__ import annotations

from hypothesis import settings, stateful
from hypothesis import strategies as st

from shoal._core.node_agent.adoption import Adoption
from shoal._core.wire.messages import INLINE, Address, ObjectRefInfo, OwnedObject, Value

GRACE_S = 5.0
TESTATOR = b"leaving"
A, B = (Address(name, b"", "") for name in (b"a", b"b"))


def owned(name: bytes, borrowers: dict[bytes, int], *inside: bytes) -> OwnedObject:
    refs = [ObjectRefInfo(one, A) for one in inside]
    return OwnedObject(name, Value(INLINE, b"value", refs=refs), [(Address(who, b"", ""), count) for who, count in borrowers.items()])


def bequeath(testator: Adoption, heir: Adoption, now: float = 0.0) -> None:
    going = testator.held()
    heir.inherit([owned(one.object_id, one.counts, *(i.object_id for i in one.value.refs)) for one in going], TESTATOR, set(), now)
    testator.pass_on(going)
    testator.check()
    heir.check()


def names(objects: list) -> list[bytes]:
    return sorted(one.object_id for one in objects)


def test_what_is_inside_goes_along_to_any_depth_and_what_nobody_holds_does_not():
    testator, heir = Adoption(GRACE_S), Adoption(GRACE_S)
    testator.adopt([owned(b"outer", {b"a": 1}, b"middle"), owned(b"middle", {}, b"inner"), owned(b"inner", {})], set(), 0.0)
    testator.adopt_stored(b"nobody's", Value(INLINE), 0.0)
    bequeath(testator, heir)
    assert (sorted(testator.objects), sorted(heir.objects)) == ([b"nobody's"], [b"inner", b"middle", b"outer"])
    assert heir.testator_ended(TESTATOR, 100.0, is_heir=True) == []
    heir.add_borrower(b"outer", b"a", 1, full=True)
    assert heir.tick(105.0, set()) == []
    assert names(heir.remove_borrower(b"outer", b"a", 1)) == [b"inner", b"middle", b"outer"]


def test_the_heir_keeps_it_as_long_as_the_node_takes_to_leave_and_for_the_grace_after_that():
    testator, heir = Adoption(GRACE_S), Adoption(GRACE_S)
    testator.adopt([owned(b"o", {b"a": 1})], set(), 0.0)
    bequeath(testator, heir)
    heir.get(b"o", 1.0)  # a reader does not shorten it
    assert heir.tick(1000.0, set()) == []
    heir.testator_ended(TESTATOR, 1000.0, is_heir=True)
    assert heir.tick(1004.0, set()) == []
    assert names(heir.tick(1005.0, set())) == [b"o"], "its borrower never appeared"


def test_a_node_that_dies_without_naming_its_heir_leaves_nothing_behind():
    testator, heir = Adoption(GRACE_S), Adoption(GRACE_S)
    testator.adopt([owned(b"o", {b"a": 1}), owned(b"p", {b"a": 1}, b"o")], set(), 0.0)
    bequeath(testator, heir)
    assert names(heir.testator_ended(TESTATOR, 1.0, is_heir=False)) == [b"o", b"p"]
    heir.check()


def test_the_same_word_twice_is_one():
    testator, heir = Adoption(GRACE_S), Adoption(GRACE_S)
    testator.adopt([owned(b"o", {b"a": 2})], set(), 0.0)
    for _ in range(2):
        heir.inherit([owned(b"o", {b"a": 2})], TESTATOR, set(), 0.0)
    heir.testator_ended(TESTATOR, 0.0, is_heir=True)
    heir.tick(GRACE_S, {b"a"})
    assert names(heir.remove_borrower(b"o", b"a", 2)) == [b"o"]


class Leaving(stateful.RuleBasedStateMachine):
    """Three borrowers hold and drop two objects, one inside of the other, while their owner's node leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.testator, self.heir = Adoption(GRACE_S), Adoption(GRACE_S)
        self.holders = {b"outer": {b"a": 2, b"b": 1}, b"inner": {b"c": 1}}
        self.testator.adopt([owned(b"outer", self.holders[b"outer"], b"inner"), owned(b"inner", self.holders[b"inner"])], set(b"abc"), 0.0)
        self.now = 0.0
        self.ended = False

    def owner(self, object_id: bytes) -> Adoption:
        """Who is asked: the node that leaves as long as it is there, and passes on what is not its any more."""
        return self.heir if self.ended or object_id in self.heir else self.testator

    @stateful.rule(who=st.sampled_from([b"a", b"b", b"c"]), what=st.sampled_from([b"outer", b"inner"]))
    def hold(self, who: bytes, what: bytes) -> None:
        if self.is_alive(what):
            assert self.owner(what).add_borrower(what, who, 1, full=False)
            self.holders[what][who] = self.holders[what].get(who, 0) + 1

    @stateful.rule(who=st.sampled_from([b"a", b"b", b"c"]), what=st.sampled_from([b"outer", b"inner"]))
    def drop(self, who: bytes, what: bytes) -> None:
        if self.holders[what].get(who):
            self.holders[what][who] -= 1
            self.owner(what).remove_borrower(what, who, 1)

    @stateful.rule()
    def hand_on(self) -> None:
        if not self.ended:
            bequeath(self.testator, self.heir, self.now)

    @stateful.precondition(lambda self: not self.ended and not self.testator.held())
    @stateful.rule()
    def leave(self) -> None:
        self.ended = True
        self.heir.testator_ended(TESTATOR, self.now, is_heir=True)
        for what, holders in self.holders.items():
            for who, count in holders.items():
                if count:
                    assert self.heir.add_borrower(what, who, count, full=True)

    @stateful.rule(seconds=st.floats(0.1, 20.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for adoption in (self.testator, self.heir):
            adoption.tick(self.now, {b"a", b"b", b"c"})

    def is_alive(self, what: bytes) -> bool:
        return any(self.holders[what].values()) or (what == b"inner" and any(self.holders[b"outer"].values()))

    @stateful.invariant()
    def what_is_held_is_there(self) -> None:
        for what in self.holders:
            assert not self.is_alive(what) or what in self.owner(what)
        self.testator.check()
        self.heir.check()

    def teardown(self) -> None:
        for what, holders in self.holders.items():
            for who, count in list(holders.items()):
                for _ in range(count):
                    self.drop(who, what)
        self.heir.testator_ended(TESTATOR, self.now, is_heir=True)
        self.wait(GRACE_S + 1.0)
        assert not self.testator.objects
        assert not self.heir.objects


TestLeaving = Leaving.TestCase
TestLeaving.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
