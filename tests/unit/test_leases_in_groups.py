"""Where lease requests inside placement groups go when the bundles lie on several nodes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.lease_records import FindGroup, Grant, Instruction, Refuse, Spill
from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.routing import MOVE_S, TOUR
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling.resources import Capacity
from shoal._core.wire.messages import GroupChanged, NodeRecord, Shape

UNIT = 10_000
GROUP = b"g"
CPU = {"CPU": UNIT}


def record(name: bytes) -> NodeRecord:
    total = {"CPU": 8 * UNIT}
    return NodeRecord(name, f"unix:{name!r}", "", "", total, dict(total), {})


class Cluster:
    """Agents a, b and c, and a request that is carried from one to the next as its owner would."""

    def __init__(self, bundles: list[bytes], cpus: int = 1, names: Sequence[bytes] = (b"a", b"b", b"c")) -> None:
        self.bundles = [dict(CPU, CPU=cpus * UNIT) for _ in bundles]
        self.places = bundles
        self.agents: dict[bytes, Leases] = {}
        self.told: dict[bytes, int] = {}
        self.rid = 0
        for name in names:
            view = ClusterView(record(name))
            view.update(record(other) for other in names)
            self.agents[name] = Leases(Capacity(record(name).total), name, view.nodes)
            mine = {index: bundle for index, bundle in enumerate(self.bundles) if bundles[index] == name}
            if mine:
                assert self.agents[name].prepare(GROUP, mine, 0.0)
                self.agents[name].commit(GROUP)

    def news(self, state: str = "CREATED") -> GroupChanged:
        return GroupChanged(GROUP, state, self.bundles, self.places)

    def ask(
        self, at: bytes, index: int = -1, now: float = 0.0, *, cpus: int = 1, actor: bool = False, movable: bool = False, hops: int = 0
    ) -> tuple[list[bytes], Instruction | None]:
        """Return the agents that the request came to, and what the last one did; None: it waits there."""
        shape = Shape(b"j", (("CPU", cpus * UNIT),), (), "", GROUP, index)
        path: list[bytes] = []
        self.rid += 1
        while True:
            path.append(at)
            assert len(path) < 15, "it wanders"
            request = LeaseRequest(1, self.rid, shape, now, actor_id=b"x" if actor else b"", hops=hops + len(path) - 1, movable=movable)
            out = self.agents[at].add(request)
            if FindGroup(GROUP) in out:
                assert self.told.setdefault(at, 0) == 0, "asked twice"
                self.told[at] = 1
                out = self.agents[at].group_changed(self.news(), now)
            out += self.agents[at].schedule(now)
            self.agents[at].check()
            spills = [one for one in out if isinstance(one, Spill)]
            if not spills:
                return path, next((one for one in out if isinstance(one, Grant | Refuse)), None)
            at = spills[0].node_id


def test_a_bundle_of_this_node_needs_no_questions() -> None:
    cluster = Cluster([b"a", b"b"])
    path, grant = cluster.ask(b"a", 0)
    assert path == [b"a"]
    assert isinstance(grant, Grant)
    assert not cluster.told
    assert cluster.ask(b"a", 0) == ([b"a"], None), "full: it waits, wherever else there is room"


@pytest.mark.parametrize("start", [b"a", b"b", b"c"])
def test_a_request_for_one_bundle_goes_to_its_node_and_waits_there(start: bytes) -> None:
    cluster = Cluster([b"a", b"b"])
    for expected in (Grant, type(None)):
        path, end = cluster.ask(start, 1)
        assert path[-1] == b"b"
        assert len(path) <= 2
        assert type(end) is expected


@pytest.mark.parametrize("start", [b"a", b"b", b"c"])
def test_any_bundle_is_found_wherever_it_is_free_and_then_all_wait_without_wandering(start: bytes) -> None:
    cluster = Cluster([b"a", b"b", b"c"])
    ends = [cluster.ask(start) for _ in range(3)]
    assert sorted(path[-1] for path, _ in ends) == [b"a", b"b", b"c"]
    assert all(isinstance(end, Grant) for _, end in ends)
    path, end = cluster.ask(start)
    assert end is None
    assert path[-1] == start, "once around, and home"
    assert len(path) == 4


@pytest.mark.parametrize("nodes", [3, 30, 100])
def test_a_tour_of_a_large_group_ends_and_later_ones_find_what_is_free(nodes: int) -> None:
    names = [b"%d" % number for number in range(nodes)]
    cluster = Cluster(names, names=names)
    for name in names[:-1]:
        cluster.ask(name, names.index(name))
    path, end = cluster.ask(b"0")
    tours = 1
    while end is None:
        (request,) = cluster.agents[path[-1]].waiting
        [spill] = cluster.agents[path[-1]].tick(request.queued_at + MOVE_S)
        assert isinstance(spill, Spill)
        more, end = cluster.ask(spill.node_id, hops=request.hops + 1)
        path, tours = path + more, tours + 1
    assert path[-1] == names[-1]
    assert tours <= nodes // TOUR + 1


def test_from_outside_of_the_group_requests_begin_at_different_nodes() -> None:
    cluster = Cluster([b"a", b"b"], cpus=8)
    assert {cluster.ask(b"c")[0][1] for _ in range(4)} == {b"a", b"b"}


def test_who_waited_in_vain_goes_round_again_but_not_if_others_overtook_it() -> None:
    cluster = Cluster([b"a", b"b"])
    for _ in range(3):
        cluster.ask(b"a")
    agent = cluster.agents[b"a"]
    (request,) = agent.waiting
    assert agent.tick(0.9) == []
    request.passed_over = 1
    assert agent.tick(1.0) == []
    request.passed_over = 0
    assert agent.tick(1.0) == [Spill(request, b"b")]
    assert not list(agent.waiting)


def test_requests_wait_for_a_group_that_is_not_there_yet_or_lost_its_node() -> None:
    cluster = Cluster([b"b"])
    cluster.places = [b""]
    assert cluster.ask(b"a", 0) == ([b"a"], None)
    cluster.places = [b"b"]
    agent = cluster.agents[b"a"]
    assert [type(one) for one in agent.group_changed(cluster.news(), 1.0)] == [Spill]
    cluster.places = [b""]
    assert agent.group_changed(cluster.news("RESCHEDULING"), 1.0) == []
    assert cluster.ask(b"a", 0) == ([b"a"], None)


def test_nothing_is_sent_to_a_node_that_is_known_to_be_dead() -> None:
    cluster = Cluster([b"b", b"c"])
    agent = cluster.agents[b"a"]
    cluster.ask(b"a", 0)
    gone = record(b"b")
    gone.alive = False
    view = ClusterView(record(b"a"))
    view.update([record(b"c"), gone])
    agent.routing.nodes = view.nodes
    assert cluster.ask(b"a", 0) == ([b"a"], None)
    assert cluster.ask(b"a")[0] == [b"a", b"c"]


def test_a_removed_group_refuses_who_waits_and_who_comes() -> None:
    cluster = Cluster([b"b"])
    cluster.places = [b""]
    cluster.ask(b"a", 0)
    agent = cluster.agents[b"a"]
    (refused,) = agent.group_changed(GroupChanged(GROUP, "REMOVED"), 0.0)
    assert isinstance(refused, Refuse)
    assert refused.kind == "TaskPlacementGroupRemoved"
    _, end = cluster.ask(b"a", 0)
    assert isinstance(end, Refuse)


def test_an_actor_that_may_move_does_not_wait_for_other_actors() -> None:
    cluster = Cluster([b"a", b"a"], cpus=2)
    agent = cluster.agents[b"a"]
    for _ in range(3):
        agent.add(LeaseRequest(0, 1, Shape(b"j", (("CPU", UNIT),), (), "", GROUP, -1), 0.0, actor_id=b"x", movable=True))
    assert not isinstance(cluster.ask(b"a", actor=True, movable=True)[1], Refuse), "three wait, and all four will have room"
    _, refused = cluster.ask(b"a", actor=True, movable=True)
    assert isinstance(refused, Refuse)
    assert refused.kind == "NoRoom"
    assert cluster.ask(b"a", actor=True) == ([b"a"], None), "it can go nowhere else"


def test_an_actor_waits_for_tasks_however_many_there_are() -> None:
    cluster = Cluster([b"a"], cpus=2)
    for _ in range(5):
        cluster.ask(b"a", 0)
    _, end = cluster.ask(b"a", actor=True, movable=True)
    assert not isinstance(end, Refuse)
