"""Which ways lead from a node to another, and in which order they are tried."""

from __future__ import annotations

import msgspec

from shoal._core.node_agent.ways import FIRST_REST_S, LONGEST_REST_S, THIRDS, Kind, Way, Ways
from shoal._core.wire.messages import NodeRecord

DIRECT, CALL_BACK = Way(Kind.DIRECT), Way(Kind.CALL_BACK)


def node(name: bytes, *, reachable: bool = True, seen_at: str = "", head: bool = False) -> NodeRecord:
    total = {"node:__internal_head__": 10000} if head else {}
    return NodeRecord(name, "", "", "", total, {}, {}, endpoint=f"tcp:{name.decode()}:1", reachable=reachable, seen_at=seen_at)


HEAD = node(b"head", head=True, seen_at="1.1.1.1")
OPEN = node(b"open", seen_at="1.1.1.2")
SHUT = node(b"shut", reachable=False, seen_at="2.2.2.2")
BESIDE = node(b"beside", reachable=False, seen_at="2.2.2.2")
FAR = node(b"far", reachable=False, seen_at="3.3.3.3")
ALL = [HEAD, OPEN, SHUT, BESIDE, FAR]


def ways(own: NodeRecord, to: NodeRecord, now: float = 0.0) -> list[Way]:
    return Ways(own).to(to, ALL, now)


def at(third: NodeRecord) -> Way:
    return Way(Kind.THROUGH, third)


def test_who_can_be_dialled_is_dialled() -> None:
    assert ways(HEAD, OPEN) == [DIRECT, CALL_BACK]
    assert ways(SHUT, HEAD) == [DIRECT, at(OPEN)]


def test_who_cannot_be_dialled_is_called_back() -> None:
    assert ways(HEAD, SHUT) == [CALL_BACK, at(OPEN)]


def test_two_that_cannot_be_dialled_meet_at_the_head_first() -> None:
    assert ways(SHUT, FAR) == [at(HEAD), at(OPEN)]


def test_two_behind_the_same_router_try_each_other_first() -> None:
    assert ways(SHUT, BESIDE) == [DIRECT, CALL_BACK, at(HEAD), at(OPEN)]


def test_where_nodes_are_seen_says_nothing_if_it_is_not_known() -> None:
    unknown = [msgspec.structs.replace(each, seen_at="") for each in (SHUT, BESIDE)]
    assert ways(unknown[0], unknown[1]) == [at(HEAD), at(OPEN)]


def test_few_places_to_meet_are_tried_and_not_all_pairs_have_the_same() -> None:
    crowd = [node(b"n%d" % number) for number in range(50)]
    seconds = set()
    for number in range(20):
        found = Ways(SHUT).to(node(b"f%d" % number, reachable=False), [*crowd, HEAD, SHUT], 0.0)
        assert len(found) == THIRDS
        assert found[0] == at(HEAD)
        seconds.add(found[1].key)
    assert len(seconds) > 10


def test_both_ends_choose_the_same_places() -> None:
    assert ways(SHUT, FAR) == ways(FAR, SHUT)


def test_what_has_failed_comes_last_for_a_while() -> None:
    known = Ways(HEAD)
    known.failed(b"open", DIRECT, 100.0)
    known.failed(b"open", DIRECT, 100.1)  # an attempt that began before the first one had failed
    assert known.to(OPEN, ALL, 100.2) == [CALL_BACK, DIRECT]
    assert known.to(SHUT, ALL, 100.2) == [CALL_BACK, at(OPEN)], "another node"
    assert known.to(OPEN, ALL, 100.0 + FIRST_REST_S) == [DIRECT, CALL_BACK]


def test_the_rest_grows_and_ends_with_success() -> None:
    known, now, rests = Ways(HEAD), 0.0, []
    for _ in range(8):
        begin = now
        known.failed(b"open", DIRECT, now)
        while known.to(OPEN, ALL, now)[0] != DIRECT:
            now += 0.5
        rests.append(now - begin)
    assert rests[:3] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S
    known.worked(b"open", DIRECT)
    known.failed(b"open", DIRECT, now)
    assert known.to(OPEN, ALL, now + FIRST_REST_S)[0] == DIRECT


def test_nodes_that_have_died_are_forgotten() -> None:
    known = Ways(HEAD)
    for name in (b"open", b"gone"):
        known.failed(name, DIRECT, 0.0)
    known.forget([b"head", b"open"])
    assert list(known._resting) == [b"open"]
