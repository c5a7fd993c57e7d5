"""Leases of one node: events in, instructions out."""

from __future__ import annotations

from typing import Any

from shoal._core.node_agent.lease_records import Grant, Lease, Refuse, TellInfeasible, Want
from shoal._core.node_agent.leases import PASSED_OVER_LIMIT, RESERVE_S, Leases
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling.resources import Capacity
from shoal._core.wire.messages import NodeRecord, Shape

NODE = b"n" * 28


def make(**total: int) -> Leases:
    resources = {name: amount * 10_000 for name, amount in total.items()}
    record = NodeRecord(NODE, "", "", "", resources, dict(resources), {})
    return Leases(Capacity(resources), NODE, lambda: [record])


class Desk:
    """Asks for leases and keeps what was granted."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self.rid = 0
        self.now = 0.0
        self.out: list[Any] = []

    def ask(self, owner: int, job: bytes = b"j", actor: bytes = b"", schedule: bool = True, **shape: Any) -> int:
        self.rid += 1
        amounts = {name: int(amount * 10_000) for name, amount in shape.pop("need", {"CPU": 1}).items()}
        one = Shape(job, tuple(sorted(amounts.items())), **shape)
        self.out += self.leases.add(LeaseRequest(owner, self.rid, one, self.now, actor_id=actor, name="f"))
        if schedule:
            self.schedule()
        return self.rid

    def schedule(self) -> None:
        self.out += self.leases.schedule(self.now)
        self.leases.check()

    def end(self, lease: Lease) -> None:
        self.leases.end(lease.lease_id)
        self.schedule()

    def lease(self, rid: int) -> Lease | None:
        return next((one for one in self.leases.leases.values() if one.request.rid == rid), None)

    def held(self) -> list[int]:
        return [one.request.rid for one in self.leases.leases.values()]

    def take(self, kind: type[Any]) -> list[Any]:
        found = [one for one in self.out if isinstance(one, kind)]
        self.out = [one for one in self.out if not isinstance(one, kind)]
        return found


def test_requests_are_granted_while_there_is_room() -> None:
    desk = Desk(make(CPU=2))
    for _ in range(3):
        desk.ask(1)
    assert desk.held() == [1, 2]
    desk.end(desk.take(Grant)[0].lease)
    assert desk.held() == [2, 3]


def test_owners_take_turns_and_each_is_first_come_first_served() -> None:
    desk = Desk(make(CPU=1))
    first = desk.ask(9)
    for owner in (1, 1, 1, 2, 2):
        desk.ask(owner, schedule=False)
    order = []
    current: int | None = first
    while current is not None:
        lease = desk.lease(current)
        assert lease is not None
        order.append(lease.owner)
        desk.end(lease)
        current = desk.held()[0] if desk.held() else None
    assert order == [9, 1, 2, 1, 2, 1]


def test_jobs_take_turns_however_many_owners_they_have() -> None:
    desk = Desk(make(CPU=1))
    first = desk.ask(9, job=b"z")
    for owner, job in ((1, b"a"), (2, b"a"), (3, b"a"), (4, b"b"), (5, b"b")):
        desk.ask(owner, job=job, schedule=False)
    jobs = []
    rids: list[int] = [first]
    while rids:
        lease = desk.lease(rids[0])
        assert lease is not None
        jobs.append(lease.shape.job_id)
        desk.end(lease)
        rids = desk.held()
    assert jobs == [b"z", b"a", b"b", b"a", b"b", b"a"]


def test_a_shape_that_cannot_run_does_not_block_smaller_ones() -> None:
    desk = Desk(make(CPU=2))
    big, small = desk.ask(1, need={"CPU": 4}), desk.ask(1)
    assert desk.held() == [small]
    told = desk.take(TellInfeasible)
    assert [one.request.rid for one in told] == [big]
    assert "f needs 4 CPUs; the largest node has 2." in told[0].message


def test_holders_are_asked_for_what_others_lack_once() -> None:
    desk = Desk(make(CPU=2))
    first, _ = desk.ask(1), desk.ask(1)
    desk.ask(2)
    desk.ask(2)
    desk.schedule()
    assert [one.lease.request.rid for one in desk.take(Want)] == [first]


def test_the_same_owner_is_asked_for_the_sake_of_its_other_shapes_only() -> None:
    desk = Desk(make(CPU=2))
    desk.ask(1)
    desk.ask(1)
    desk.ask(1)
    assert desk.take(Want) == []
    desk.ask(1, runtime_env="{}")
    assert len(desk.take(Want)) == 1


def test_two_owners_with_enough_work_do_not_pass_leases_to_and_fro() -> None:
    desk = Desk(make(CPU=4))
    for owner in (1, 1, 2, 2):
        desk.ask(owner)
    desk.ask(1)
    desk.ask(2)
    assert desk.take(Want) == []


def test_a_big_request_gets_enough_leases_called_back() -> None:
    desk = Desk(make(CPU=4))
    for _ in range(4):
        desk.ask(1)
    desk.ask(2, need={"CPU": 3})
    assert len(desk.take(Want)) == 3


def test_leases_that_would_not_help_are_left_alone() -> None:
    desk = Desk(make(CPU=2, GPU=1))
    gpu, _ = desk.ask(1, need={"GPU": 1}), desk.ask(1)
    desk.ask(2, need={"GPU": 1})
    assert [one.lease.request.rid for one in desk.take(Want)] == [gpu]


def test_a_stream_of_small_requests_does_not_starve_a_big_one() -> None:
    desk = Desk(make(CPU=2))
    for _ in range(4):
        desk.ask(1)
    big = desk.ask(2, need={"CPU": 2})
    rounds = 0
    while desk.lease(big) is None:
        rounds += 1
        assert rounds < 3 * PASSED_OVER_LIMIT
        lease = next(iter(desk.leases.leases.values()))
        desk.ask(lease.owner, schedule=False)
        desk.end(lease)
    assert desk.held() == [big]


def test_starvation_is_bounded_in_time_too() -> None:
    desk = Desk(make(CPU=2))
    desk.ask(1)
    desk.ask(1)
    big = desk.ask(2, need={"CPU": 2})
    desk.ask(1, schedule=False)
    desk.end(next(iter(desk.leases.leases.values())))  # overtaken once
    desk.now = 2.0
    desk.ask(1, schedule=False)
    desk.end(next(iter(desk.leases.leases.values())))
    desk.end(next(iter(desk.leases.leases.values())))
    assert desk.held() == [big]


def test_what_is_set_aside_comes_back_when_it_brings_nothing() -> None:
    desk = Desk(make(CPU=2))
    for _ in range(2):
        desk.ask(1)
    desk.ask(2, need={"CPU": 2})
    while desk.leases._reservation is None:
        desk.ask(1, schedule=False)
        desk.end(next(iter(desk.leases.leases.values())))
    assert len(desk.held()) == 1
    desk.now += RESERVE_S + 0.1
    desk.schedule()
    assert len(desk.held()) == 2


def test_nothing_is_set_aside_that_actors_hold() -> None:
    desk = Desk(make(CPU=2))
    desk.ask(0, actor=b"a")
    desk.ask(1)
    big = desk.ask(2, need={"CPU": 2})
    for _ in range(3 * PASSED_OVER_LIMIT):
        desk.ask(1, schedule=False)
        desk.end(next(one for one in desk.leases.leases.values() if not one.is_actor))
        assert len(desk.held()) == 2
    assert desk.lease(big) is None


def test_blocked_workers_lend_cpus_and_nothing_else() -> None:
    desk = Desk(make(CPU=1, GPU=1, custom=1))
    parent = desk.lease(desk.ask(1, need={"CPU": 1, "GPU": 1, "custom": 1}))
    assert parent is not None
    child, gpu_child, custom_child = desk.ask(2), desk.ask(2, need={"GPU": 1}), desk.ask(2, need={"custom": 1})
    desk.leases.worker_blocked(parent.lease_id)
    desk.leases.worker_blocked(parent.lease_id)
    desk.schedule()
    assert desk.lease(child) is not None
    assert desk.lease(gpu_child) is None
    assert desk.lease(custom_child) is None
    for _ in range(4):
        desk.leases.worker_unblocked(parent.lease_id)
    desk.leases.check()
    assert desk.leases.node.free["CPU"] == -10_000
    assert desk.leases.available()["CPU"] == 0


def test_recursion_on_one_cpu_goes_as_deep_as_it_likes() -> None:
    desk = Desk(make(CPU=1))
    for depth in range(1, 21):
        lease = desk.lease(desk.ask(depth))
        assert lease is not None
        desk.leases.worker_blocked(lease.lease_id)
    for lease in reversed(list(desk.leases.leases.values())):
        desk.leases.worker_unblocked(lease.lease_id)
        desk.end(lease)
    assert desk.leases.available() == desk.leases.node.total


def test_a_lost_owner_leaves_its_leases_to_be_ended_and_its_requests_nowhere() -> None:
    desk = Desk(make(CPU=1))
    held, _ = desk.ask(1), desk.ask(1)
    assert [one.request.rid for one in desk.leases.owner_lost(1)] == [held]
    assert len(desk.leases.waiting) == 0
    desk.leases.check()


def test_a_withdrawn_request_is_gone() -> None:
    desk = Desk(make(CPU=1))
    first, second = desk.ask(1), desk.ask(1)
    assert desk.leases.cancel(1, second)
    assert not desk.leases.cancel(1, second)
    assert not desk.leases.cancel(1, first)


def test_an_actor_needs_its_placement_and_holds_less() -> None:
    desk = Desk(make(CPU=1))
    task = desk.lease(desk.ask(1))
    actor = desk.ask(0, need={}, actor=b"a", placement_resources=(("CPU", 10_000),))
    assert task is not None
    assert desk.lease(actor) is None
    desk.end(task)
    assert desk.lease(actor) is not None
    assert desk.leases.available()["CPU"] == 10_000


def test_bundles_are_reserved_whole_and_used_by_index_or_at_large() -> None:
    desk = Desk(make(CPU=4))
    assert not desk.leases.prepare(b"big", {0: {"CPU": 30_000}, 1: {"CPU": 20_000}}, 0.0)
    desk.leases.release_group(b"big", removed=False)
    assert desk.leases.available()["CPU"] == 40_000
    assert desk.leases.prepare(b"g", {0: {"CPU": 10_000}, 1: {"CPU": 20_000}}, 0.0)
    assert desk.leases.prepare(b"g", {0: {"CPU": 10_000}}, 0.0)
    assert desk.leases.available()["CPU"] == 10_000
    early = desk.ask(1, placement_group=b"g")
    assert desk.lease(early) is None
    desk.leases.commit(b"g")
    two = desk.ask(2, need={"CPU": 2}, placement_group=b"g")
    exact = desk.ask(2, placement_group=b"g", bundle_index=0)
    desk.schedule()
    first = desk.lease(early)
    assert first is not None
    assert first.bundle_index == 0
    big = desk.lease(two)
    assert big is not None
    assert big.bundle_index == 1
    assert desk.lease(exact) is None
    desk.end(first)
    assert desk.lease(exact) is not None


def test_a_removed_group_refuses_what_waits_and_what_comes() -> None:
    desk = Desk(make(CPU=1))
    desk.leases.prepare(b"g", {0: {"CPU": 10_000}}, 0.0)
    desk.leases.commit(b"g")
    held, waiting = desk.ask(1, placement_group=b"g"), desk.ask(1, placement_group=b"g")
    refused, inside = desk.leases.release_group(b"g", removed=True)
    assert [(one.request.rid, one.kind) for one in refused if isinstance(one, Refuse)] == [(waiting, "TaskPlacementGroupRemoved")]
    assert [one.request.rid for one in inside] == [held]
    desk.end(inside[0])
    desk.leases.drop_group(b"g")
    assert desk.leases.available() == desk.leases.node.total
    desk.ask(0, placement_group=b"g", actor=b"a")
    assert [one.kind for one in desk.take(Refuse)] == ["ActorPlacementGroupRemoved"]


def test_a_bundle_that_was_committed_in_vain_may_be_placed_here_again() -> None:
    """The control store ended before it had written down that the bundle was committed: its successor gives it back, and places it anew."""
    desk = Desk(make(CPU=1))
    desk.leases.prepare(b"g", {0: {"CPU": 10_000}}, 0.0)
    desk.leases.commit(b"g")
    assert desk.leases.release_group(b"g", removed=False) == ([], [])
    waiting = desk.ask(1, placement_group=b"g")
    desk.leases.drop_group(b"g")
    assert desk.leases.available() == desk.leases.node.total
    desk.leases.prepare(b"g", {0: {"CPU": 10_000}}, 0.0)
    desk.leases.commit(b"g")
    desk.schedule()
    assert desk.lease(waiting) is not None
    assert desk.take(Refuse) == []


def test_a_group_that_does_not_fit_has_room_made_for_it() -> None:
    desk = Desk(make(CPU=2))
    leases = [desk.lease(desk.ask(1)) for _ in range(2)]
    assert not desk.leases.prepare(b"g", {0: {"CPU": 20_000}}, 0.0)
    desk.schedule()
    assert len(desk.take(Want)) == 2
    waiting = desk.ask(1)
    for lease in leases:
        assert lease is not None
        assert desk.leases.group_waits() == b""
        desk.end(lease)
    assert desk.lease(waiting) is None
    assert desk.leases.group_waits() == b"g"
    assert desk.leases.prepare(b"g", {0: {"CPU": 20_000}}, 0.0)


def test_devices_of_a_bundle_stay_its_own() -> None:
    desk = Desk(make(GPU=3))
    desk.leases.prepare(b"g", {0: {"GPU": 20_000}}, 0.0)
    desk.leases.commit(b"g")
    outside = desk.lease(desk.ask(1, need={"GPU": 1}))
    halves = [desk.lease(desk.ask(1, need={"GPU": 0.5}, placement_group=b"g")) for _ in range(4)]
    assert outside is not None
    assert outside.allocation.ids() == {"GPU": [2]}
    assert [one.allocation.ids()["GPU"] for one in halves if one] == [[0], [0], [1], [1]]
    assert desk.lease(desk.ask(1, need={"GPU": 0.5}, placement_group=b"g")) is None


def test_a_changed_cluster_makes_requests_feasible() -> None:
    resources = {"CPU": 10_000}
    records = [NodeRecord(NODE, "", "", "", resources, dict(resources), {})]
    leases = Leases(Capacity(resources), NODE, lambda: records)
    desk = Desk(leases)
    desk.ask(1, label_selector=(("zone", "a"),))
    assert len(desk.take(TellInfeasible)) == 1
    records[0].labels["zone"] = "a"
    leases.nodes_changed(0.0)
    desk.schedule()
    assert desk.held() == [1]


def test_statistics() -> None:
    desk = Desk(make(CPU=1))
    desk.ask(1)
    desk.ask(1)
    figures = desk.leases.statistics()
    assert (figures.leases, figures.queued, figures.granted_total, figures.blocked) == (1, 1, 1, 0)
