"""Ranges against a slow model: a list of pages, each with its owner."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal._core.object_store.allocation import PAGE_BYTES, Allocator, round_up

PAGES = 24


class AllocatorMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.allocator = Allocator(PAGES * PAGE_BYTES + 17)
        self.pages: list[int | None] = [None] * PAGES
        self.live: list[int] = []

    @rule(nbytes=st.integers(0, 10 * PAGE_BYTES))
    def allocate(self, nbytes):
        need = round_up(nbytes) // PAGE_BYTES
        fits = any(all(page is None for page in self.pages[i : i + need]) for i in range(PAGES - need + 1))
        offset = self.allocator.allocate(nbytes)
        assert (offset is not None) == fits
        if offset is not None:
            start = offset // PAGE_BYTES
            assert offset % PAGE_BYTES == 0
            assert self.pages[start : start + need] == [None] * need
            self.pages[start : start + need] = [offset] * need
            self.live.append(offset)

    @rule(data=st.data())
    def free(self, data):
        if self.live:
            offset = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
            self.allocator.free(offset)
            self.pages = [None if page == offset else page for page in self.pages]

    @invariant()
    def agrees(self):
        self.allocator.check()
        free = self.pages.count(None) * PAGE_BYTES
        assert self.allocator.free_bytes == free
        assert self.allocator.statistics().used_ranges == len(self.live)


TestAllocator = AllocatorMachine.TestCase


def test_used_pages_are_used_again_before_fresh_ones():
    allocator = Allocator(100 * PAGE_BYTES)
    ranges = [allocator.allocate(10 * PAGE_BYTES) for _ in range(4)]
    allocator.free(ranges[1])
    assert allocator.allocate(3 * PAGE_BYTES) == ranges[1]
    assert allocator.allocate(7 * PAGE_BYTES) == ranges[1] + 3 * PAGE_BYTES
    assert allocator.high_water_bytes == 40 * PAGE_BYTES


def test_neighbours_merge_on_both_sides():
    allocator = Allocator(3 * PAGE_BYTES)
    a, b, c = (allocator.allocate(1) for _ in range(3))
    for offset in (a, c, b):
        allocator.free(offset)
        allocator.check()
    assert allocator.allocate(3 * PAGE_BYTES) == 0


def test_an_empty_object_has_a_place_of_its_own():
    allocator = Allocator(2 * PAGE_BYTES)
    assert {allocator.allocate(0), allocator.allocate(0)} == {0, PAGE_BYTES}
    assert allocator.allocate(0) is None
