"""Where else there may be copies of what this process owns: on nodes to which its place was told, and behind a URL, where it was spilled.

The nodes are only a guess: copies come with the first reader and go when their room is needed. Both are used when the primary copy is lost,
before the value is computed again; values of ``put`` cannot be.

Pure. I/O thread only.
"""

from __future__ import annotations

from collections.abc import Collection


class Copies:
    """Only of objects that were read, or spilled, elsewhere than in the store of their primary copy."""

    def __init__(self) -> None:
        #: Object -> nodes, the last one told last.
        self._nodes: dict[bytes, dict[bytes, None]] = {}
        #: Object -> the node that has spilled it, and where.
        self._spilled: dict[bytes, tuple[bytes, str]] = {}

    def spilled(self, object_id: bytes, primary: bytes, location: str) -> None:
        """The primary copy can be read there, also when its node has died."""
        self._spilled[object_id] = (primary, location)

    def take_spilled(self, object_id: bytes, primary: bytes) -> str:
        """Return where this node has spilled the object; "" if it has not. It is forgotten."""
        node_id, location = self._spilled.pop(object_id, (b"", ""))
        return location if node_id == primary else ""

    def spilled_by(self, node_ids: Collection[bytes]) -> list[bytes]:
        """Return the objects that these nodes have spilled. O(spilled objects)."""
        return [object_id for object_id, (node_id, _) in self._spilled.items() if node_id in node_ids]

    def told(self, object_id: bytes, primary: bytes, node_id: bytes) -> None:
        """A process of this node learns where the object lies, to read it."""
        if node_id != primary:
            self._nodes.setdefault(object_id, {})[node_id] = None

    def take(self, object_id: bytes, without: bytes) -> list[bytes]:
        """Return the nodes that may have a copy, the likeliest first, but for ``without``; they are forgotten."""
        return [node_id for node_id in reversed(self._nodes.pop(object_id, {})) if node_id != without]

    def forget(self, object_id: bytes) -> None:
        self._nodes.pop(object_id, None)
        self._spilled.pop(object_id, None)

    def __len__(self) -> int:
        return len(self._nodes.keys() | self._spilled.keys())
