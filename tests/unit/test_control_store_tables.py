"""The small tables: jobs, nodes, functions, key-values, publication, placement."""

from __future__ import annotations

import pytest

from shoal._core.control_store.functions import FunctionTable
from shoal._core.control_store.jobs import JobTable
from shoal._core.control_store.key_values import KeyValueTable
from shoal._core.control_store.nodes import NodeTable
from shoal._core.control_store.placement import Chosen, Hopeless, Placement
from shoal._core.control_store.publication import BACKLOG, Publication
from shoal._core.control_store.rows import encode
from shoal._core.control_store.storage import Change
from shoal._core.wire.messages import Address, JobConfigRecord, NodeRecord, PlacementGroupRecord, PlacementGroupSpec, RegisterJob, Shape

JOB = b"\0\0\0\1"
N1, N2 = b"n1", b"n2"


def register(number: int) -> RegisterJob:
    return RegisterJob(1, Address(b"driver%d" % number, b"n", ""), 7, "ns", "run.py", JobConfigRecord({"A": "1"}, "/", []))


def node(node_id: bytes, cpus: int = 2, **labels: str) -> NodeRecord:
    return NodeRecord(node_id, "", "", "", {"CPU": cpus}, {"CPU": cpus}, labels)


def test_finished_jobs_shrink_and_the_oldest_goes():
    jobs = JobTable(history_limit=3)
    for number in range(5):
        row, _ = jobs.register(register(number), now=1.0)
        changes = jobs.finish(row.job_id, 2.0, keep=False)
        assert jobs.finish(row.job_id, 3.0, keep=False) == []
        jobs.check()
    assert Change("jobs", b"\0\0\0\2", None) in changes
    assert jobs.get(b"\0\0\0\1") is None
    assert row.config.env == {}
    assert jobs.statistics().history == 3


def test_a_job_with_a_detached_actor_keeps_its_settings():
    jobs = JobTable(history_limit=0)
    row, _ = jobs.register(register(1), now=1.0)
    assert jobs.driven_by(b"driver1") == row.job_id
    jobs.finish(row.job_id, 2.0, keep=True)
    assert (row.config.env, jobs.driven_by(b"driver1")) == ({"A": "1"}, None)
    jobs.let_go(row.job_id)
    assert jobs.get(row.job_id) is None
    jobs.check()


def test_job_numbers_are_not_used_twice_after_a_restart():
    jobs = JobTable(history_limit=0)
    row, _ = jobs.register(register(1), now=1.0)
    jobs.finish(row.job_id, 2.0, keep=False)
    fresh = JobTable(history_limit=0)
    fresh.load([], encode(2), set())
    assert fresh.register(register(2), now=3.0)[0].job_id == b"\0\0\0\2"


def test_a_function_lives_as_long_as_one_job_needs_it():
    functions = FunctionTable()
    assert len(functions.put(b"f", JOB, b"code")) == 2
    assert functions.put(b"f", JOB, b"code") == []
    assert functions.put(b"f", b"\0\0\0\2", b"code") == [Change("function_jobs", b"f\0\0\0\2", b"")]
    functions.forget_job(JOB)
    assert functions.get(b"f") == b"code"
    functions.check()
    assert Change("functions", b"f", None) in functions.forget_job(b"\0\0\0\2")
    assert functions.get(b"f") is None
    assert functions.statistics().nbytes == 0
    functions.check()


def test_key_values_by_namespace():
    values = KeyValueTable()
    added, (change,) = values.put("a", b"k", b"1", True)
    assert added
    assert isinstance(change, Change)
    values.put("b", b"k", b"2", True)
    assert values.keys("a", b"") == [b"k"]
    assert values.delete("a", b"x") == (False, [])
    values.delete("a", b"k")
    values.check()
    fresh = KeyValueTable()
    fresh.load([(change.key, b"1")])
    assert fresh.get("a", b"k") == b"1"


def test_the_backlog_is_bounded_and_a_gap_shows():
    publication = Publication()
    for _ in range(BACKLOG + 5):
        publication.publish("jobs", b"", b"")
    publication.check()
    assert publication.after("jobs", 2)[0].sequence == 6
    assert publication.after("jobs", BACKLOG + 4)[0].sequence == BACKLOG + 5
    later = Publication()
    later.started(1)
    later.publish("jobs", b"", b"")
    assert len(later.after("jobs", BACKLOG + 5)) == 1, "a number of a control store before this one"
    with pytest.raises(KeyError):
        publication.after("weather", 0)


def test_dead_nodes_are_listed_for_a_while():
    nodes = NodeTable(history_limit=1)
    for node_id in (N1, N2):
        nodes.joined(node(node_id))
        nodes.left(node_id, "gone")
    assert [(record.node_id, record.alive) for record in nodes.records()] == [(N2, False)]
    assert nodes.left(N2, "again") == []
    assert nodes.is_over(N2, known=False)
    assert nodes.is_over(N1, known=True), "dead for so long that nobody remembers"
    assert not nodes.is_over(N1, known=False)
    nodes.check()


def test_promises_are_kept_beside_the_report():
    nodes = NodeTable(history_limit=1)
    nodes.joined(node(N1, 4))
    one = nodes.get(N1)
    assert one is not None
    one.promise({"CPU": 3})
    assert one.view.available == {"CPU": 1}
    nodes.resources(N1, {"CPU": 2}, {"CPU": 8})
    assert one.view.available == {"CPU": -1}
    one.settle({"CPU": 3}, taken=False)
    assert one.view.available == {"CPU": 2}
    nodes.check()


def placement(*records: NodeRecord, group: PlacementGroupRecord | None = None) -> tuple[NodeTable, Placement]:
    nodes = NodeTable(history_limit=1)
    for record in records:
        nodes.joined(record)
    return nodes, Placement(nodes, lambda group_id: group)


def test_with_one_candidate_the_agent_queues():
    nodes, places = placement(node(N1))
    shape = Shape(JOB, (("CPU", 2),))
    for name in (b"a", b"b"):
        places.add(name, shape, "")
    assert places.retry() == [Chosen(b"a", N1), Chosen(b"b", N1)]
    places.settled(b"a")
    places.settled(b"b")
    places.check()
    nodes.check()


def test_with_more_candidates_it_waits_for_room():
    _, places = placement(node(N1), node(N2))
    shape = Shape(JOB, (("CPU", 2),))
    for name in (b"a", b"b", b"c"):
        places.add(name, shape, "")
    assert {chosen.node_id for chosen in places.retry() if isinstance(chosen, Chosen)} == {N1, N2}
    assert places.waits_for_room()
    places.settled(b"a")
    assert len(places.retry()) == 1


def test_spread_without_resources_uses_all_nodes():
    _, places = placement(*[node(b"n%d" % n) for n in range(3)])
    for n in range(6):
        places.add(b"a%d" % n, Shape(JOB, strategy=("SPREAD",)), "")
    chosen = [result.node_id for result in places.retry() if isinstance(result, Chosen)]
    assert sorted(chosen) == [b"n0", b"n0", b"n1", b"n1", b"n2", b"n2"]


def test_infeasible_shapes_wait_without_asking_for_room():
    _, places = placement(node(N1))
    shape = Shape(JOB, (("CPU", 3),))
    places.add(b"a", shape, "Actor Big")
    assert places.retry() == []
    assert not places.waits_for_room()
    assert "largest node has" in places.why_infeasible(shape)
    places.remove(b"a")
    assert places.why_infeasible(shape) == ""
    places.check()


def test_actors_of_a_group_go_to_their_bundle():
    group = PlacementGroupRecord(PlacementGroupSpec(b"g", JOB, [{"CPU": 1}, {"CPU": 2}], "PACK"), "PENDING", [b"", b""])
    _, places = placement(node(N1), node(N2), group=group)
    places.add(b"a", Shape(JOB, (("CPU", 2),), placement_group=b"g"), "")
    places.add(b"b", Shape(JOB, placement_group=b"g", bundle_index=0), "")
    assert places.retry() == []
    group.state, group.nodes = "CREATED", [N1, N2]
    assert sorted(places.retry(), key=str) == [Chosen(b"a", N2), Chosen(b"b", N1)]
    group.state = "REMOVED"
    places.add(b"c", Shape(JOB, placement_group=b"g"), "")
    assert [type(result) for result in places.retry()] == [Hopeless]
    places.check()


def test_an_actor_for_any_bundle_tries_one_node_after_the_other_and_waits_for_the_end_of_others():
    group = PlacementGroupRecord(PlacementGroupSpec(b"g", JOB, [{"CPU": 1}] * 2, "SPREAD"), "CREATED", [N1, N2])
    _, places = placement(node(N1), node(N2), group=group)
    shape = Shape(JOB, (("CPU", 1),), placement_group=b"g")
    for full in (N1, N2):
        places.add(b"a", shape, "")
        assert places.retry() == [Chosen(b"a", full, movable=True)]
        places.settled(b"a")
        places.refused(full, shape)
    places.add(b"a", shape, "")
    assert places.retry() == []
    assert places.waits_for_room()
    places.actor_left(b"other")
    assert places.retry() == []
    places.actor_left(b"g")
    assert places.retry() == [Chosen(b"a", N1, movable=True)]
    places.check()


def test_a_hundred_actors_too_many_for_a_group_are_sent_one_at_a_time():
    group = PlacementGroupRecord(PlacementGroupSpec(b"g", JOB, [{"CPU": 1}] * 2, "SPREAD"), "CREATED", [N1, N2])
    _, places = placement(node(N1), node(N2), group=group)
    shape = Shape(JOB, (("CPU", 1),), placement_group=b"g")
    for number in range(100):
        places.add(b"%d" % number, shape, "")
    first = [chosen for chosen in places.retry() if isinstance(chosen, Chosen)]
    assert len(first) == 100, "nobody has refused yet"
    for chosen in first[2:]:
        places.settled(chosen.actor_id)
        places.refused(chosen.node_id, shape)
        places.add(chosen.actor_id, shape, "")
    assert places.retry() == []
    for _ in range(3):
        places.forget_refusals()
        assert places.retry() == [], "two are on their way still"
    for chosen in first[:2]:
        places.settled(chosen.actor_id)
    places.forget_refusals()
    assert [result.node_id for result in places.retry() if isinstance(result, Chosen)] == [N1, N2]
    places.check()
