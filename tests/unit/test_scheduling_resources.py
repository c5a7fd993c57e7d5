from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._core.scheduling.resources import (
    UNIT,
    Allocation,
    Capacity,
    add,
    as_tuple,
    fits,
    lacking,
    parse_amount,
    parse_resources,
    subtract,
    to_floats,
)

AMOUNTS = st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "custom"]), st.integers(0, 50_000), max_size=4)


@pytest.mark.parametrize(("value", "units"), [(1, 10_000), (0.1, 1_000), (0.1 + 0.2, 3_000), (0.0001, 1), (0, 0), (2**40, 2**40 * UNIT)])
def test_amounts_become_fixed_point(value: float, units: int) -> None:
    assert parse_amount("CPU", value) == units


@pytest.mark.parametrize("value", [-1, 0.00005, 1.00001, float("nan"), float("inf")])
def test_amounts_that_cannot_be_are_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="num_cpus"):
        parse_amount("num_cpus", value)


@pytest.mark.parametrize("value", ["1", None, True, [1]])
def test_amounts_that_are_no_numbers_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="custom"):
        parse_amount("custom", value)


def test_several_devices_must_be_whole() -> None:
    assert parse_resources({"GPU": 0.5, "CPU": 1.5, "x": 0}) == {"GPU": 5_000, "CPU": 15_000}
    with pytest.raises(ValueError, match=r"More than one GPU .* got 1\.5\. Ask for 2"):
        parse_resources({"GPU": 1.5})


@given(AMOUNTS)
def test_user_figures_survive_the_round_trip(amounts: dict[str, int]) -> None:
    parsed = parse_resources({name: amount / UNIT for name, amount in amounts.items() if name != "GPU"})
    assert parsed == {name: amount for name, amount in amounts.items() if amount and name != "GPU"}
    assert parse_resources(to_floats(parsed)) == parsed


@given(AMOUNTS, AMOUNTS)
def test_addition_and_subtraction_are_inverse(left: dict[str, int], right: dict[str, int]) -> None:
    assert subtract(add(left, right), right) == dict(as_tuple(left))


@given(AMOUNTS, AMOUNTS)
def test_what_fits_lacks_nothing(need: dict[str, int], free: dict[str, int]) -> None:
    assert fits(need, free) == (not lacking(need, free))
    assert fits(need, add(free, lacking(need, free)))


def test_a_hundred_thousand_small_acquisitions_leave_no_drift() -> None:
    capacity = Capacity({"CPU": 10_000, "GPU": 10_000})
    held: list[Allocation] = []
    choose = random.Random(1)
    for _ in range(100_000):
        if held and choose.random() < 0.5:
            capacity.release(held.pop(choose.randrange(len(held))))
        elif (taken := capacity.acquire({"CPU": 1, "GPU": 1})) is not None:
            held.append(taken)
    for one in held:
        capacity.release(one)
    assert capacity.free == capacity.total
    capacity.check()


def test_ten_tenths_fit_and_not_eleven() -> None:
    capacity = Capacity({"CPU": 10_000})
    assert [capacity.acquire({"CPU": 1_000}) is not None for _ in range(11)] == [True] * 10 + [False]


def test_fractions_share_a_device_and_leave_others_whole() -> None:
    capacity = Capacity({"GPU": 30_000})
    taken = [capacity.acquire({"GPU": amount}) for amount in (5_000, 5_000, 20_000)]
    assert [one.ids() if one else None for one in taken] == [{"GPU": [0]}, {"GPU": [0]}, {"GPU": [1, 2]}]
    assert capacity.acquire({"GPU": 1}) is None


def test_two_halves_are_not_a_device() -> None:
    capacity = Capacity({"GPU": 20_000})
    first, second = capacity.acquire({"GPU": 7_000}), capacity.acquire({"GPU": 6_000})
    assert first is not None
    assert second is not None
    assert first.ids() != second.ids()
    assert fits({"GPU": 7_000}, capacity.free)
    assert not capacity.fits({"GPU": 7_000})


@given(st.lists(st.sampled_from([1_000, 2_500, 5_000, 10_000, 20_000]), max_size=30), st.randoms())
def test_devices_are_never_granted_twice(amounts: list[int], choose: random.Random) -> None:
    capacity = Capacity({"GPU": 40_000, "CPU": 5_000})
    held: list[Allocation] = []
    for amount in amounts:
        taken = capacity.acquire({"GPU": amount})
        if taken is not None:
            held.append(taken)
            assert sum(taken.devices["GPU"].values()) == amount
        elif held:
            capacity.release(held.pop(choose.randrange(len(held))))
        capacity.check()
    for one in held:
        capacity.release(one)
    assert capacity.free == capacity.total
    assert capacity.device_free == capacity.device_total


def test_lent_cpu_may_be_taken_back_into_the_negative() -> None:
    capacity = Capacity({"CPU": 10_000})
    capacity.acquire({"CPU": 10_000})
    capacity.lend("CPU", 10_000)
    capacity.acquire({"CPU": 10_000})
    capacity.take_back("CPU", 10_000)
    assert capacity.free["CPU"] == -10_000
    assert capacity.fits({})
    assert not capacity.fits({"CPU": 1})
