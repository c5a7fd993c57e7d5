"""A million objects put and freed leave nothing: not in the tables, not in the arena, not on disk. And what a live reference costs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import shoal
from shoal.testing import wait_for
from tests.soak.measures import MIB, check_driver, owned_objects, sample, scaled

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

STORE_BYTES = 256 * MIB
#: What a reference and its entry may cost in the driver.
REFERENCE_BYTES = 2_000


@shoal.remote
def length(box):
    return len(shoal.get(box[0]))


def assert_store_is_empty(context):
    """The whole arena can be had in one piece again, without anything going to disk."""
    ref = shoal.put(bytes(STORE_BYTES * 9 // 10))
    assert [path for path in Path(context.address_info["session_dir"]).glob("spill/**/*") if path.is_file()] == []
    del ref
    wait_for(lambda: owned_objects() == 0, 30, "An empty ownership table")


@pytest.mark.parametrize(("amount", "nbytes"), [(1_000_000, 100), (100_000, 150_000)], ids=["small", "stored"])
def test_put_and_free(soak_session, progress, amount, nbytes):
    context = soak_session(object_store_memory=STORE_BYTES)
    amount, early, began = scaled(amount, 1000), None, time.monotonic()
    value = bytes(nbytes)
    for number in range(1, amount + 1):
        ref = shoal.put(value)
        if number % 1000 == 0:
            assert shoal.get(length.remote([ref])) == nbytes
            assert shoal.get(ref) == value
        if number % (amount // 10) == 0:
            del ref
            now = sample(context)
            progress(f"{number} objects, {number / (time.monotonic() - began):.0f}/s; {now}")
            early = early or now
    check_driver()
    assert now.grown(early) == []
    wait_for(lambda: owned_objects() == 0, 30, "An empty ownership table")
    assert_store_is_empty(context)


def test_many_live_references(soak_session, progress):
    """A hundred thousand objects held at once, half of them by references inside another object; then all let go."""
    context = soak_session(object_store_memory=STORE_BYTES)
    count = scaled(100_000, 1000)
    before = sample(context)
    refs = [shoal.put(number) for number in range(count)]
    held = sample(context)
    cost = (held.driver.anonymous_bytes - before.driver.anonymous_bytes) / count
    progress(f"{count} live references of put: {cost:.0f} B each")
    box = shoal.put(refs[: count // 2])
    del refs[: count // 2]
    assert owned_objects() == count + 1
    assert shoal.get(shoal.get(box)) == list(range(count // 2))
    assert shoal.get(refs) == list(range(count // 2, count))
    del refs, box
    wait_for(lambda: owned_objects() == 0, 30, "An empty ownership table")
    progress(f"all dropped: {sample(context)}")
    check_driver()
    assert cost < REFERENCE_BYTES
