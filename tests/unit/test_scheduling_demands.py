"""What waits, added up."""

from __future__ import annotations

from shoal._core.node_agent.waiting import LeaseRequest, WaitingRequests
from shoal._core.scheduling.demands import add_up, add_up_groups, demand_of
from shoal._core.wire.messages import Demand, GroupDemand, Shape

CPU = (("CPU", 10_000),)
GPU = (("GPU", 10_000),)
JOB = b"job1"


def test_one_entry_per_shape_the_largest_first():
    zone = (("zone", "in(a)"),)
    found = add_up(
        [Demand(GPU, 1), Demand(CPU, 2), Demand(CPU, 3), Demand(CPU, 1, zone), Demand(list(map(list, CPU)), 1, [["zone", "in(a)"]])]
    )
    assert found == [Demand(CPU, 5), Demand(CPU, 2, zone), Demand(GPU, 1)]
    assert add_up([Demand(GPU, 1), Demand(CPU, 2)], 1) == [Demand(CPU, 2)]
    assert add_up([]) == []


def test_what_a_shape_asks_for():
    assert demand_of(Shape(JOB, CPU), 3) == Demand(CPU, 3)
    # An actor without options is placed by a CPU that it does not hold.
    assert demand_of(Shape(JOB, (), placement_resources=CPU), 1) == Demand(CPU, 1)
    assert demand_of(Shape(JOB, CPU, label_selector=(("zone", "in(a)"),)), 1) == Demand(CPU, 1, (("zone", "in(a)"),))
    # Its group holds what it asks for.
    assert demand_of(Shape(JOB, CPU, placement_group=b"group"), 1) is None


def test_groups_by_bundles_and_strategy():
    bundle = {"CPU": 10_000, "GPU": 0}
    found = add_up_groups([([bundle], "PACK"), ([bundle, bundle], "PACK"), ([bundle], "SPREAD"), ([bundle], "PACK")])
    assert found == [GroupDemand([CPU], "PACK", 2), GroupDemand([CPU, CPU], "PACK", 1), GroupDemand([CPU], "SPREAD", 1)]


def test_an_owner_has_more_waiting_than_it_has_asked_leases_for():
    waiting = WaitingRequests()
    for owner, backlogs in ((1, [1, 500]), (2, [1, 1, 1])):
        for rid, backlog in enumerate(backlogs):
            waiting.add(LeaseRequest(owner, rid, Shape(JOB, CPU), 0.0, backlog=backlog))
    assert sorted(count for _, count in waiting.counts()) == [3, 500]
