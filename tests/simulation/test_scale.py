"""Scheduling at two sizes of cluster: what a task costs does not grow with the number of nodes."""

from __future__ import annotations

from contextlib import closing

import pytest

from shoal._core.control_store import node_service
from shoal.testing.simulation.scale import Figures, Plan, ScaleCluster, measure

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def sizes() -> tuple[Figures, Figures]:
    return tuple(measure(Plan(nodes=nodes, tasks=nodes * 12, owners=2)) for nodes in (40, 160))  # type: ignore[return-value]


def test_a_task_costs_as_many_messages_in_a_large_cluster(sizes):
    small, large = sizes
    assert large.messages_per_task < 1.3 * small.messages_per_task


def test_a_lease_needs_at_most_three_requests(sizes):
    for figures in sizes:
        assert max(figures.hops) <= 2
        assert figures.lease_s[0] <= 5 * Plan.wire_s


def test_all_cpus_are_used(sizes):
    for figures in sizes:
        assert figures.makespan_s < 2 * figures.best_makespan_s


def test_memory_grows_with_the_number_of_nodes_alone(sizes):
    small, large = sizes
    assert large.table_bytes / large.nodes < 1.3 * small.table_bytes / small.nodes
    assert large.view_bytes / large.nodes < 1.3 * small.view_bytes / small.nodes


@pytest.mark.parametrize(("bytes_per_s", "words"), [(node_service.USED_BYTES_PER_S, 19), (60_000, 3)])
def test_what_is_used_is_told_more_rarely_when_that_costs_more(monkeypatch, bytes_per_s, words):
    monkeypatch.setattr(node_service, "USED_BYTES_PER_S", bytes_per_s)
    nodes = 40
    with closing(ScaleCluster(Plan(nodes=nodes))) as cluster:
        sent = cluster.wire.messages["NodesUsed"]
        for turn in range(20):
            cluster.report_change(turn)
            cluster.loop.advance(0.1)
        each = (cluster.wire.messages["NodesUsed"] - sent) / nodes
    assert words - 1 <= each <= words + 1
