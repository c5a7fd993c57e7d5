"""Who is served and who is sent on: the tree of a broadcast."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal._core.object_store.uploads import FAN_OUT, RELAYED_BYTES, Uploads

LARGE = RELAYED_BYTES
OBJECT = b"o"


def test_two_are_served_and_the_others_sent_to_those_before_them():
    uploads = Uploads()
    answers = [uploads.ask(OBJECT, LARGE, name.encode()).decode() for name in "ABCDEFG"]
    assert answers == ["", "", "A", "A", "B", "B", "C"]
    uploads.check()


def test_the_same_question_has_the_same_answer():
    uploads = Uploads()
    for name in (b"A", b"B", b"C"):
        first = uploads.ask(OBJECT, LARGE, name)
        assert uploads.ask(OBJECT, LARGE, name) == first


def test_a_node_that_has_been_served_makes_room_for_the_next():
    uploads = Uploads()
    for name in (b"A", b"B"):
        uploads.ask(OBJECT, LARGE, name)
    uploads.sent(OBJECT, b"A")
    assert uploads.ask(OBJECT, LARGE, b"C") == b""
    uploads.hung_up(b"C")
    assert uploads.ask(OBJECT, LARGE, b"D") == b""
    assert uploads.ask(OBJECT, LARGE, b"E") == b"A"
    uploads.check()


def test_small_objects_are_always_served():
    uploads = Uploads()
    assert {uploads.ask(OBJECT, LARGE - 1, bytes([node])) for node in range(100)} == {b""}
    assert uploads.copies(OBJECT) == 100


def test_a_useless_relay_is_not_recommended_again_until_it_has_been_served():
    uploads = Uploads()
    for name in (b"A", b"B"):
        uploads.ask(OBJECT, LARGE, name)
    assert uploads.ask(OBJECT, LARGE, b"C") == b"A"
    assert uploads.ask(OBJECT, LARGE, b"C", avoid=b"A") == b"B"
    assert uploads.ask(OBJECT, LARGE, b"D") == b"B"
    uploads.sent(OBJECT, b"A")
    uploads.ask(OBJECT, LARGE, b"E")
    assert uploads.ask(OBJECT, LARGE, b"F") == b"A"
    uploads.check()


def test_nobody_is_sent_to_a_node_below_it():
    uploads = Uploads()
    for name in (b"A", b"B", b"C", b"D"):  # C and D below A
        uploads.ask(OBJECT, LARGE, name)
    uploads.hung_up(b"A")  # and asks again, when others take its place
    assert uploads.ask(OBJECT, LARGE, b"X") == b""
    assert uploads.ask(OBJECT, LARGE, b"A") not in (b"C", b"D")
    uploads.check()


def test_whoever_has_asked_may_have_a_copy():
    uploads = Uploads()
    for name in (b"A", b"B", b"C"):
        uploads.ask(OBJECT, LARGE, name)
    assert sorted(uploads.forget(OBJECT)) == [b"A", b"B", b"C"]
    assert uploads.forget(OBJECT) == []
    uploads.check()
    uploads.hung_up(b"A")


NODES = [bytes([node]) for node in range(12)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.sampled_from(NODES), st.sampled_from([b"", *NODES])),
            st.tuples(st.just("sent"), st.sampled_from(NODES)),
            st.tuples(st.just("hung_up"), st.sampled_from(NODES)),
            st.tuples(st.just("forget")),
        ),
        max_size=80,
    )
)
def test_whatever_happens_there_is_no_circle_and_nobody_sends_too_often(events):
    uploads = Uploads()
    for kind, *args in events:
        if kind == "ask":
            node, avoid = args
            answer = uploads.ask(OBJECT, LARGE, node, b"" if avoid == node else avoid)
            assert answer != node
            assert not avoid or answer != avoid
        elif kind == "sent":
            uploads.sent(OBJECT, *args)
        elif kind == "hung_up":
            uploads.hung_up(*args)
        else:
            uploads.forget(OBJECT)
        uploads.check()


@given(st.integers(1, 60))
def test_the_tree_is_as_flat_as_it_can_be(count):
    uploads = Uploads()
    depth = {}
    for number in range(count):
        node = bytes([number])
        depth[node] = depth.get(uploads.ask(OBJECT, LARGE, node), 0) + 1
    assert max(depth.values()) <= (count + 1).bit_length()
    assert FAN_OUT == 2
