"""Placement groups: all bundles or none, whatever nodes answer and whenever they die."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st

from shoal._core.control_store.group_records import GroupNameTaken
from shoal._core.control_store.instructions import BundlesLost, Commit, GroupSettled, Prepare, Release, RemovalDone
from shoal._core.control_store.nodes import NodeTable
from shoal._core.control_store.placement_groups import MAX_PASSED, PlacementGroupTable
from shoal._core.control_store.rows import encode
from shoal._core.control_store.storage import Change
from shoal._core.wire.messages import NodeRecord, PlacementGroupSpec

JOB = b"\0\0\0\1"
N1, N2, N3 = b"n1", b"n2", b"n3"


def node(node_id: bytes, cpus: int = 2) -> NodeRecord:
    return NodeRecord(node_id, "", "", "", {"CPU": cpus}, {"CPU": cpus}, {})


def spec(group_id: bytes, bundles: list[int], strategy: str = "PACK", **fields: Any) -> PlacementGroupSpec:
    return PlacementGroupSpec(group_id, JOB, [{"CPU": cpus} for cpus in bundles], strategy, namespace="ns", **fields)


def tables(*nodes: NodeRecord, limit: int = 10) -> tuple[NodeTable, PlacementGroupTable]:
    node_table = NodeTable(limit)
    for record in nodes:
        node_table.joined(record)
    return node_table, PlacementGroupTable(node_table, limit)


def short(instructions: list[Any]) -> list[Any]:
    return [instruction for instruction in instructions if not isinstance(instruction, Change)]


def state(groups: PlacementGroupTable, group_id: bytes) -> str:
    record = groups.get(group_id)
    assert record is not None
    return record.state


def create(groups: PlacementGroupTable, group: PlacementGroupSpec) -> list[Any]:
    return short(groups.create(group, 1.0) + groups.schedule())


def test_two_phases():
    _, groups = tables(node(N1), node(N2))
    assert create(groups, spec(b"g", [2, 2])) == [Prepare(N1, b"g", {0: {"CPU": 2}}), Prepare(N2, b"g", {1: {"CPU": 2}})]
    assert short(groups.prepared(b"g", N1, ok=True)) == []
    assert state(groups, b"g") == "PENDING"
    assert short(groups.prepared(b"g", N2, ok=True)) == [Commit(N1, b"g"), Commit(N2, b"g")]
    assert state(groups, b"g") == "PREPARED"
    assert short(groups.committed(b"g", N2, ok=True)) == []
    assert short(groups.committed(b"g", N1, ok=True)) == [GroupSettled(b"g", removed=False)]
    assert state(groups, b"g") == "CREATED"
    groups.check()


def test_one_no_releases_the_others():
    nodes, groups = tables(node(N1), node(N2))
    create(groups, spec(b"g", [2, 2]))
    assert short(groups.prepared(b"g", N2, ok=False)) == []
    assert short(groups.prepared(b"g", N1, ok=True)) == [Release(N1, b"g")]
    assert short(groups.schedule()) == [], "not before the release is done"
    assert short(groups.released(b"g", N1)) == [], "nothing has changed: it would fail again"
    assert [len(short(groups.schedule()))] == [2]
    nodes.check()
    groups.check()


def test_a_change_during_a_failing_attempt_is_not_missed():
    _, groups = tables(node(N1))
    create(groups, spec(b"g", [2]))
    groups.something_changed()
    assert short(groups.prepared(b"g", N1, ok=False)) == [Prepare(N1, b"g", {0: {"CPU": 2}})]


def test_a_group_that_is_refused_again_and_again_waits_for_the_tick():
    _, groups = tables(node(N1))
    create(groups, spec(b"g", [2]))
    for _ in range(3):
        groups.prepared(b"g", N1, ok=False)
        again = short(groups.schedule())
    assert again == []
    assert short(groups.schedule(tick=True)) == [Prepare(N1, b"g", {0: {"CPU": 2}})]


@pytest.mark.parametrize("answers", [0, 1, 2, 3, 4])
def test_removal_at_any_moment_releases_every_node_that_was_asked(answers: int):
    nodes, groups = tables(node(N1), node(N2))
    create(groups, spec(b"g", [2, 2], name="it"))
    steps = [
        lambda: groups.prepared(b"g", N1, ok=True),
        lambda: groups.prepared(b"g", N2, ok=True),
        lambda: groups.committed(b"g", N1, ok=True),
        lambda: groups.committed(b"g", N2, ok=True),
    ]
    for step in steps[:answers]:
        step()
    assert short(groups.remove(b"g")) == [GroupSettled(b"g", removed=True), Release(N1, b"g"), Release(N2, b"g")]
    assert groups.named("ns", "it") is None
    for step in steps[answers:]:
        assert short(step()) == [], "a late answer changes nothing"
    assert short(groups.released(b"g", N1)) == []
    assert short(groups.released(b"g", N2)) == [RemovalDone(b"g")]
    assert short(groups.remove(b"g")) == []
    nodes.check()
    groups.check()


def test_removal_of_a_group_that_waits():
    _, groups = tables(node(N1))
    assert create(groups, spec(b"g", [3])) == []
    assert short(groups.remove(b"g")) == [GroupSettled(b"g", removed=True), RemovalDone(b"g")]


def test_names_are_per_namespace_and_free_after_removal():
    _, groups = tables(node(N1, 10))
    create(groups, spec(b"g", [1], name="it"))
    with pytest.raises(GroupNameTaken):
        groups.create(spec(b"h", [1], name="it"), 1.0)
    groups.remove(b"g")
    create(groups, spec(b"h", [1], name="it"))
    record = groups.named("ns", "it")
    assert record is not None
    assert record.spec.placement_group_id == b"h"


def test_strict_spread_with_more_bundles_than_nodes_waits_and_blocks_nobody():
    nodes, groups = tables(node(N1), node(N2))
    assert create(groups, spec(b"g", [1, 1, 1], "STRICT_SPREAD")) == []
    assert len(create(groups, spec(b"h", [1]))) == 1
    nodes.joined(node(N3))
    assert len(short(groups.schedule())) == 3


def test_a_large_group_is_overtaken_a_bounded_number_of_times():
    nodes, groups = tables(node(N1, 4))
    hold = spec(b"hold", [1])
    create(groups, hold)
    assert create(groups, spec(b"large", [4])) == []
    started = 0
    for n in range(2 * MAX_PASSED):
        small = b"small%d" % n
        if create(groups, spec(small, [1])):
            started += 1
            groups.prepared(small, N1, ok=True)
            groups.committed(small, N1, ok=True)
            groups.remove(small)
            groups.released(small, N1)
    assert started == MAX_PASSED
    groups.prepared(b"hold", N1, ok=True)
    groups.committed(b"hold", N1, ok=True)
    groups.remove(b"hold")
    groups.released(b"hold", N1)
    assert short(groups.schedule())[0] == Prepare(N1, b"large", {0: {"CPU": 4}})
    nodes.check()


def test_a_dead_node_loses_its_bundles_only():
    nodes, groups = tables(node(N1), node(N2), node(N3))
    create(groups, spec(b"g", [2, 2], "STRICT_SPREAD"))
    record = groups.get(b"g")
    assert record is not None
    for node_id in (N1, N2, N3):
        groups.prepared(b"g", node_id, ok=True)
    for node_id in (N1, N2, N3):
        groups.committed(b"g", node_id, ok=True)
    record = groups.get(b"g")
    assert record is not None
    lost, kept = record.nodes
    nodes.left(lost, "gone")
    assert short(groups.node_died(lost)) == [BundlesLost(b"g")]
    assert state(groups, b"g") == "RESCHEDULING"
    (prepare,) = short(groups.schedule())
    assert list(prepare.bundles) == [0]
    assert short(groups.prepared(b"g", prepare.node_id, ok=True)) == [Commit(prepare.node_id, b"g")]
    assert short(groups.committed(b"g", prepare.node_id, ok=True)) == [GroupSettled(b"g", removed=False)]
    record = groups.get(b"g")
    assert record is not None
    assert record.nodes == [prepare.node_id, kept]
    groups.check()


def test_the_job_takes_its_groups_but_not_those_of_a_living_detached_actor():
    _, groups = tables(node(N1, 10))
    for group in (spec(b"g", [1]), spec(b"d", [1], detached=True), spec(b"a", [1], creator_actor=b"actor")):
        create(groups, group)
    groups.job_finished(JOB, lambda actor_id: True)
    assert [state(groups, group) for group in (b"g", b"d", b"a")] == ["REMOVED", "PENDING", "PENDING"]
    groups.actor_ended(b"actor")
    assert state(groups, b"a") == "REMOVED"


def test_a_saved_decision_is_carried_out_after_a_restart():
    nodes, groups = tables(node(N1))
    create(groups, spec(b"g", [1], name="it"))
    (change, *_) = groups.prepared(b"g", N1, ok=True)
    assert isinstance(change, Change)
    assert change.value is not None
    fresh = PlacementGroupTable(nodes, 10)
    fresh.load([(b"g", change.value)])
    assert short(fresh.node_back(N1, {b"g": [0]})) == [Commit(N1, b"g")]
    assert short(fresh.committed(b"g", N1, ok=False)) == [BundlesLost(b"g")]
    assert state(fresh, b"g") == "RESCHEDULING"
    assert len(short(fresh.schedule())) == 1
    created = PlacementGroupTable(nodes, 10)
    record = groups.get(b"g")
    assert record is not None
    record.state = "CREATED"
    created.load([(b"g", encode(record))])
    assert short(created.node_back(N1, {b"g": [0], b"h": [1]})) == [Release(N1, b"h")]
    created.check()


class GroupMachine(stateful.RuleBasedStateMachine):
    """Three nodes with two CPUs that answer in any order, sometimes no, and sometimes die, are cut off, or the control store restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.groups = tables(limit=5)
        self.count = 0
        self.questions: list[Any] = []
        #: Node -> group -> bundle -> committed.
        self.held: dict[bytes, dict[bytes, dict[int, bool]]] = {}
        self.settled: set[bytes] = set()
        #: What is on disk.
        self.rows: dict[bytes, bytes] = {}
        self.joined = 0
        for _ in range(3):
            self.join()

    def join(self) -> None:
        self.joined += 1
        node_id = b"node%d" % self.joined
        self.held[node_id] = {}
        self.nodes.joined(node(node_id))

    def perform(self, instructions: list[Any]) -> None:
        for one in instructions:
            match one:
                case Prepare() | Commit() | Release():
                    assert one.node_id in self.held
                    self.questions.append(one)
                case GroupSettled():
                    self.settled.add(one.group_id)
                case Change():
                    self.rows[one.key] = one.value
                    if one.value is None:
                        del self.rows[one.key]
                case _:
                    pass

    def free(self, node_id: bytes) -> int:
        return 2 - sum(len(bundles) for bundles in self.held[node_id].values())

    @stateful.rule(bundles=st.integers(1, 4), strategy=st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]))
    def create(self, bundles: int, strategy: str) -> None:
        self.count += 1
        self.perform(self.groups.create(spec(b"%04d" % self.count, [1] * bundles, strategy), float(self.count)))

    @stateful.rule(tick=st.booleans())
    def schedule(self, tick: bool) -> None:
        for node_id in self.held:
            self.nodes.resources(node_id, {"CPU": self.free(node_id)}, None)
        self.perform(self.groups.schedule(tick=tick))

    @stateful.precondition(lambda self: self.questions)
    @stateful.rule(index=st.integers(0, 99), no=st.integers(0, 5))
    def answer(self, index: int, no: int) -> None:
        node_id = sorted({question.node_id for question in self.questions})[index % len({q.node_id for q in self.questions})]
        question = next(q for q in self.questions if q.node_id == node_id)  # a node answers in order
        self.questions.remove(question)
        ok = self.carry_out(question, refuse=no == 0)
        match question:
            case Prepare():
                self.perform(self.groups.prepared(question.group_id, node_id, ok=ok))
            case Commit():
                self.perform(self.groups.committed(question.group_id, node_id, ok=ok))
            case Release():
                self.perform(self.groups.released(question.group_id, node_id))

    def carry_out(self, question: Any, *, refuse: bool = False) -> bool:
        """Do at the node what it is asked, and return its answer."""
        held = self.held[question.node_id]
        match question:
            case Prepare():
                new = set(question.bundles) - held.get(question.group_id, {}).keys()
                if (refuse and new) or len(new) > self.free(question.node_id):
                    return False
                held.setdefault(question.group_id, {}).update(dict.fromkeys(new, False))
            case Commit():
                held[question.group_id] = dict.fromkeys(held[question.group_id], True)
            case Release():
                held.pop(question.group_id, None)
        return True

    def back(self, node_id: bytes) -> None:
        self.nodes.joined(node(node_id))
        self.perform(self.groups.node_back(node_id, {group_id: list(bundles) for group_id, bundles in self.held[node_id].items()}))

    def lose_answers(self, node_id: bytes, done: int) -> None:
        """The node has carried out the first of its questions, and the connection is lost."""
        mine = [question for question in self.questions if question.node_id == node_id]
        self.questions = [question for question in self.questions if question.node_id != node_id]
        for question in mine[:done]:
            self.carry_out(question)
        self.nodes.disconnected(node_id)

    @stateful.rule(index=st.integers(0, 2), done=st.integers(0, 3))
    def cut_off_for_a_while(self, index: int, done: int) -> None:
        node_id = sorted(self.held)[index]
        self.lose_answers(node_id, done)
        self.back(node_id)

    @stateful.rule(done=st.integers(0, 3), order=st.permutations([0, 1, 2]))
    def restart(self, done: int, order: list[int]) -> None:
        """The control store dies; the nodes come back one after the other."""
        ids = sorted(self.held)
        for node_id in ids:
            self.lose_answers(node_id, done)
        self.nodes, self.groups = tables(limit=5)
        self.nodes.load([(node_id, encode(node(node_id))) for node_id in ids])
        self.perform(self.groups.load(list(self.rows.items())))
        for position in order:
            self.back(ids[position])
            self.perform(self.groups.schedule())

    @stateful.rule(index=st.integers(0, 99))
    def remove(self, index: int) -> None:
        if records := self.groups.records():
            self.perform(self.groups.remove(records[index % len(records)].spec.placement_group_id))

    @stateful.rule(index=st.integers(0, 2))
    def lose(self, index: int) -> None:
        node_id = sorted(self.held)[index]
        self.questions = [question for question in self.questions if question.node_id != node_id]
        del self.held[node_id]
        self.nodes.left(node_id, "gone")
        self.perform(self.groups.node_died(node_id))
        self.join()

    @stateful.invariant()
    def all_or_none(self) -> None:
        self.groups.check()
        self.nodes.check()
        if self.questions:
            return
        for record in self.groups.records():
            group_id = record.spec.placement_group_id
            where = [[n for n, held in self.held.items() if index in held.get(group_id, {})] for index in range(len(record.nodes))]
            if record.state == "CREATED":
                assert where == [[node_id] for node_id in record.nodes]
            elif record.state == "RESCHEDULING":
                assert where == [[node_id] if node_id else [] for node_id in record.nodes]
            else:
                assert not any(where), "nothing is left behind"


TestGroupMachine = GroupMachine.TestCase
TestGroupMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_bundles_leave_a_node_that_drains():
    nodes, groups = tables(node(N1), node(N2), node(N3))
    create(groups, spec(b"g", [2, 2]))
    for node_id in (N1, N2):
        groups.prepared(b"g", node_id, ok=True)
    for node_id in (N1, N2):
        groups.committed(b"g", node_id, ok=True)
    nodes.draining(N1, "preemption", 1.0)
    assert short(groups.node_drains(N1)) == [BundlesLost(b"g")]
    assert short(groups.schedule()) == [Prepare(N3, b"g", {0: {"CPU": 2}})], "not on the node that leaves"
    groups.check()


def test_a_bundle_that_is_committed_on_a_node_that_drains_by_now_goes_elsewhere():
    nodes, groups = tables(node(N1), node(N2))
    create(groups, spec(b"g", [2]))
    groups.prepared(b"g", N1, ok=True)
    nodes.draining(N1, "preemption", 1.0)
    assert short(groups.node_drains(N1)) == [], "its answer is to come"
    assert short(groups.committed(b"g", N1, ok=True)) == [BundlesLost(b"g")]
    assert short(groups.schedule()) == [Prepare(N2, b"g", {0: {"CPU": 2}})]
    groups.check()


def moved_off(first: bytes, second: bytes) -> tuple[NodeTable, PlacementGroupTable]:
    """A group whose only bundle has left a node that drains, where what runs in it runs on."""
    nodes, groups = tables(node(first), node(second))
    create(groups, spec(b"g", [2]))
    groups.prepared(b"g", first, ok=True)
    groups.committed(b"g", first, ok=True)
    nodes.draining(first, "preemption", 1.0)
    groups.node_drains(first)
    return nodes, groups


@pytest.mark.parametrize("placed_again", [False, True])
def test_the_removal_of_a_group_ends_what_still_runs_on_a_node_that_drains(placed_again):
    _, groups = moved_off(N1, N2)
    if placed_again:
        groups.schedule()
        groups.prepared(b"g", N2, ok=True)
        groups.committed(b"g", N2, ok=True)
    elsewhere = [Release(N2, b"g")] if placed_again else []
    assert short(groups.remove(b"g")) == [GroupSettled(b"g", removed=True), Release(N1, b"g"), *elsewhere]
    groups.released(b"g", N2)
    assert groups.releasing(b"g")
    assert short(groups.released(b"g", N1)) == [RemovalDone(b"g")]
    groups.check()


def test_a_node_that_drains_and_comes_back_keeps_what_runs_in_a_group_until_that_is_removed():
    _, groups = moved_off(N1, N2)
    groups.schedule()
    groups.prepared(b"g", N2, ok=True)
    groups.committed(b"g", N2, ok=True)
    assert short(groups.node_back(N1, {b"g": [0]})) == []
    groups.remove(b"g")
    groups.released(b"g", N1)
    groups.released(b"g", N2)
    assert short(groups.node_back(N1, {b"g": [0]})) == [Release(N1, b"g")], "it did not hear of it before the control store's restart"
    groups.check()
