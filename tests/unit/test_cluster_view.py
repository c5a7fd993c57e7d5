"""What an agent knows of the others, and how long what it sent to them counts."""

from __future__ import annotations

from shoal._core.node_agent.cluster_view import REPORTED_S, ClusterView
from shoal._core.scheduling.resources import UNIT
from shoal._core.wire.messages import NodeRecord

FOUR = {"CPU": 4 * UNIT, "seat": UNIT}


def record(name: bytes) -> NodeRecord:
    return NodeRecord(name, "", "", "", dict(FOUR), dict(FOUR), {})


def view_of(*names: bytes) -> ClusterView:
    view = ClusterView(record(b"own"))
    view.update([record(name) for name in names])
    return view


def free(view: ClusterView, name: bytes) -> int:
    known = view.get(name)
    assert known is not None
    return known.available.get("CPU", 0)


def test_figures_are_what_differs_from_the_total() -> None:
    view = view_of(b"a", b"b")
    view.used([(b"a", {"CPU": 0}), (b"b", {"CPU": UNIT}), (b"unknown", {"CPU": 0}), (b"own", {"CPU": 0})], 0.1)
    assert (free(view, b"a"), free(view, b"b"), free(view, b"own")) == (0, UNIT, 4 * UNIT)
    view.used([(b"a", {})], 0.1)
    assert view.nodes()[1].available == FOUR


def test_what_was_sent_to_a_node_is_in_its_next_figures() -> None:
    view = view_of(b"a", b"b")
    view.promise(b"a", {"CPU": UNIT}, 0.0)
    view.promise(b"b", {"CPU": UNIT}, 0.0)
    view.used([(b"a", {"CPU": 2 * UNIT})], 0.1)
    assert (free(view, b"a"), free(view, b"b")) == (2 * UNIT, 3 * UNIT)
    assert view.expire(9.0), "that of b counted still"
    assert (free(view, b"a"), free(view, b"b")) == (2 * UNIT, 4 * UNIT)


def test_what_is_sent_after_a_nodes_figures_counts_again() -> None:
    view = view_of(b"a")
    view.promise(b"a", {"CPU": UNIT}, 0.0)
    view.used([(b"a", {"CPU": 3 * UNIT})], 0.1)
    view.promise(b"a", {"CPU": UNIT}, 1.0)
    assert not view.expire(0.9), "the first is void"
    assert free(view, b"a") == 2 * UNIT
    assert view.expire(2.0)
    assert free(view, b"a") == 3 * UNIT


def test_where_figures_come_rarely_promises_last_longer() -> None:
    view = view_of(b"a")
    view.used([], 5.0)
    view.promise(b"a", {"CPU": UNIT}, 0.0)
    assert view.next_expiry == REPORTED_S + 5.0


def test_a_node_that_died_takes_its_promises_along() -> None:
    view = view_of(b"a")
    view.promise(b"a", {"CPU": UNIT}, 0.0)
    gone = record(b"a")
    gone.alive = False
    assert view.update([gone]) == [b"a"]
    assert not view.expire(9.0)
    assert view.is_alone
