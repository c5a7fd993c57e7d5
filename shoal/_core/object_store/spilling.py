"""Where objects lie on disk: files, the slots in them, and when a file may go.

Many small objects share one file, so that a thousand of them cost one open and one sequential write. A file is written once, as a whole,
and deleted when its last object is freed; holes are not filled (no compaction: the disk is large, the code is not). Slots start at
page boundaries, so that a reader can map one straight from the file when memory has no room for it.

Behind a URL files outlive their node, and other nodes adopt the objects in them: such a file belongs to nobody, and is deleted when no node
holds an object in it (``node_agent/spilled_objects.py``).

Pure: paths are names here; ``disk.py`` and ``remote.py`` touch the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from shoal._core.object_store.allocation import round_up

SUFFIX = ".spill"


class Slot(NamedTuple):
    """An object's place on disk."""

    file: str
    offset: int
    nbytes: int


class _File(msgspec.Struct):
    objects: int
    live_bytes: int
    total_bytes: int
    #: Made by this store, which deletes it.
    ours: bool = True


class SpillStatistics(msgspec.Struct, frozen=True):
    files: int
    objects: int
    live_bytes: int
    file_bytes: int


class SpillFiles:
    """The files that one store writes, or holds objects in. ``name_of``: makes the name of a new file unique among all of them."""

    def __init__(self, name_of: Callable[[str], str] = str) -> None:
        self._name_of = name_of
        #: Only files that hold at least one object.
        self._files: dict[str, _File] = {}
        self._made = 0

    def new_file(self, sizes: Sequence[int]) -> list[Slot]:
        """Lay out objects of these sizes in one new file."""
        assert sizes
        self._made += 1
        name = self._name_of(f"{self._made:08d}{SUFFIX}")
        slots: list[Slot] = []
        end = 0
        for nbytes in sizes:
            slots.append(Slot(name, end, nbytes))
            end += round_up(nbytes)
        self._files[name] = _File(len(slots), sum(sizes), end)
        return slots

    def adopt(self, slot: Slot) -> None:
        """An object that a dead node has written is ours now."""
        file = self._files.setdefault(slot.file, _File(0, 0, 0, ours=False))
        file.objects += 1
        file.live_bytes += slot.nbytes
        file.total_bytes = max(file.total_bytes, slot.offset + round_up(slot.nbytes))

    def held(self, prefix: str) -> list[str]:
        """Return the files with objects of this store whose names begin so."""
        return [name for name in self._files if name.startswith(prefix)]

    def release(self, slot: Slot) -> str | None:
        """An object on disk is not needed any more. Returns the file to delete, if it was the last one there and this store made it."""
        file = self._files[slot.file]
        file.objects -= 1
        file.live_bytes -= slot.nbytes
        if file.objects:
            return None
        del self._files[slot.file]
        return slot.file if file.ours else None

    def statistics(self) -> SpillStatistics:
        files = self._files.values()
        return SpillStatistics(
            len(files), sum(f.objects for f in files), sum(f.live_bytes for f in files), sum(f.total_bytes for f in files)
        )

    def check(self) -> None:
        for file in self._files.values():
            assert file.objects > 0
            assert not file.ours or 0 <= file.live_bytes <= file.total_bytes


def format_location(path: str, offset: int) -> str:
    """Write ``ObjectsPinned.paths``: the path of the file, followed by ``@OFFSET`` when the object does not start at 0."""
    return f"{path}@{offset}" if offset else path


def parse_location(location: str) -> tuple[str, int]:
    path, at, offset = location.rpartition("@")
    # All our files end in ``.spill``, so an ``@`` of the directory's own name is not mistaken.
    return (path, int(offset)) if at and path.endswith(SUFFIX) else (location, 0)
