from __future__ import annotations

from shoal._core.object_store.allocation import PAGE_BYTES
from shoal._core.object_store.spilling import SpillFiles, format_location, parse_location


def test_many_objects_share_one_file_and_start_at_pages():
    files = SpillFiles()
    slots = files.new_file([100, PAGE_BYTES, PAGE_BYTES + 1, 5])
    assert len({slot.file for slot in slots}) == 1
    assert [slot.offset for slot in slots] == [0, PAGE_BYTES, 2 * PAGE_BYTES, 4 * PAGE_BYTES]
    figures = files.statistics()
    assert (figures.files, figures.objects, figures.live_bytes, figures.file_bytes) == (1, 4, 106 + 2 * PAGE_BYTES, 5 * PAGE_BYTES)
    files.check()


def test_a_file_goes_with_its_last_object():
    files = SpillFiles()
    first = files.new_file([1, 2])
    second = files.new_file([3])
    assert files.release(first[1]) is None
    files.check()
    assert files.release(second[0]) == second[0].file
    assert files.release(first[0]) == first[0].file
    assert files.statistics().files == 0


def test_a_location_names_the_file_and_where_in_it():
    for path, offset in (("/s/1.spill", 0), ("/s/1.spill", 8192), ("/a@12/1.spill", 0), ("/a@12/1.spill", 4096)):
        assert parse_location(format_location(path, offset)) == (path, offset)
