"""Leases under arbitrary histories: never granted twice, everything granted in the end, nothing left over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal._core.node_agent.lease_records import Grant, Refuse, TellInfeasible, Want
from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling.resources import Capacity
from shoal._core.wire.messages import NodeRecord, Shape

TOTAL = {"CPU": 30_000, "GPU": 20_000, "custom": 10_000}
NEEDS = [
    {"CPU": 10_000},
    {"CPU": 1},
    {"CPU": 30_000},
    {"CPU": 40_000},
    {"GPU": 5_000},
    {"GPU": 20_000, "CPU": 10_000},
    {"custom": 10_000},
    {},
]
GROUPS = [b"g1", b"g2"]


class LeaseHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        record = NodeRecord(b"n", "", "", "", dict(TOTAL), dict(TOTAL), {})
        self.leases = Leases(Capacity(TOTAL), b"n", lambda: [record])
        self.now = 0.0
        self.rid = 0
        self.open: set[int] = set()
        self.infeasible: set[int] = set()
        self.wanted: set[int] = set()
        self.removed: set[bytes] = set()

    def perform(self, instructions: list[Any]) -> None:
        for one in instructions:
            if isinstance(one, Grant):
                assert one.lease.request.rid in self.open
                self.open.discard(one.lease.request.rid)
            elif isinstance(one, Refuse):
                self.open.discard(one.request.rid)
            elif isinstance(one, TellInfeasible):
                assert one.request.rid not in self.infeasible
                self.infeasible.add(one.request.rid)
            elif isinstance(one, Want):
                assert one.lease.lease_id not in self.wanted
                self.wanted.add(one.lease.lease_id)

    def schedule(self) -> None:
        self.perform(self.leases.schedule(self.now))

    def pick(self, number: int) -> Any:
        held = list(self.leases.leases.values())
        return held[number % len(held)]

    @rule(
        owner=st.integers(0, 3),
        need=st.sampled_from(NEEDS),
        actor=st.booleans(),
        group=st.sampled_from([b"", b"", *GROUPS]),
        index=st.integers(-1, 1),
    )
    def request(self, owner: int, need: dict[str, int], actor: bool, group: bytes, index: int) -> None:
        self.rid += 1
        self.open.add(self.rid)
        shape = Shape(b"j%d" % (owner % 2), tuple(sorted(need.items())), placement_group=group, bundle_index=index if group else -1)
        self.perform(self.leases.add(LeaseRequest(owner, self.rid, shape, self.now, actor_id=b"a" if actor else b"")))
        self.schedule()

    @precondition(lambda self: self.leases.leases)
    @rule(number=st.integers(0, 20))
    def end(self, number: int) -> None:
        self.leases.end(self.pick(number).lease_id)
        self.schedule()

    @precondition(lambda self: self.leases.leases)
    @rule(number=st.integers(0, 20))
    def block(self, number: int) -> None:
        self.leases.worker_blocked(self.pick(number).lease_id)
        self.schedule()

    @precondition(lambda self: self.leases.leases)
    @rule(number=st.integers(0, 20))
    def unblock(self, number: int) -> None:
        self.leases.worker_unblocked(self.pick(number).lease_id)

    @rule(owner=st.integers(0, 3))
    def lose_owner(self, owner: int) -> None:
        for request in self.leases.waiting.of_owner(owner):
            self.open.discard(request.rid)
        for lease in self.leases.owner_lost(owner):
            self.leases.end(lease.lease_id)
        self.schedule()

    @rule(group=st.sampled_from(GROUPS), need=st.sampled_from(NEEDS[:5]))
    def prepare(self, group: bytes, need: dict[str, int]) -> None:
        before = dict(self.leases.node.free)
        if group not in self.removed and not self.leases.prepare(group, {0: need, 1: {"CPU": 5_000}}, self.now):
            assert self.leases.node.free == before
        self.schedule()

    @rule(group=st.sampled_from(GROUPS))
    def commit(self, group: bytes) -> None:
        self.leases.commit(group)
        self.schedule()

    @rule(group=st.sampled_from(GROUPS), removed=st.booleans())
    def release(self, group: bytes, removed: bool) -> None:
        if removed:
            self.removed.add(group)
        refused, inside = self.leases.release_group(group, removed=removed)
        self.perform(refused)
        for lease in inside:
            self.leases.end(lease.lease_id)
        self.leases.drop_group(group)
        self.schedule()

    @rule(seconds=st.sampled_from([0.1, 2.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.schedule()

    @invariant()
    def nothing_is_granted_twice(self) -> None:
        self.leases.check()

    def teardown(self) -> None:
        """When leases keep coming back, everything that can run is granted, and in the end all is free."""
        for group in GROUPS:
            self.release(group, removed=True)
        for _ in range(10 * len(self.open) + 10):
            self.now += 10.0
            for lease in list(self.leases.leases.values()):
                self.leases.end(lease.lease_id)
            self.schedule()
        left = {request.rid for request in self.leases.waiting}
        assert left == self.open
        assert all(not request.feasible for request in self.leases.waiting)
        assert self.leases.available() == TOTAL
        assert self.leases.node.device_free == self.leases.node.device_total
        self.leases.check()


LeaseHistory.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLeaseHistory = pytest.mark.timeout(300)(LeaseHistory.TestCase)


def test_a_hundred_thousand_leases_of_a_ten_thousandth_leave_no_drift() -> None:
    record = NodeRecord(b"n", "", "", "", dict(TOTAL), dict(TOTAL), {})
    leases = Leases(Capacity(TOTAL), b"n", lambda: [record])
    shape = Shape(b"j", (("CPU", 1), ("GPU", 1)))
    for rid in range(100_000):
        leases.add(LeaseRequest(1, rid, shape, 0.0))
        (grant,) = leases.schedule(0.0)
        assert isinstance(grant, Grant)
        if rid % 3:
            leases.end(grant.lease.lease_id)
        elif rid % 1000 == 0:
            for lease_id in list(leases.leases):
                leases.end(lease_id)
    for lease_id in list(leases.leases):
        leases.end(lease_id)
    assert leases.available() == TOTAL
    leases.check()
