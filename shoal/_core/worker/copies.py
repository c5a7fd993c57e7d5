"""Which nodes may have copies of what this process owns: those to which its place was told.

Only a guess: copies come with the first reader and go when their room is needed. It is used when the primary copy is lost, to ask for
another before the value is computed again; values of ``put`` cannot be.

Pure. I/O thread only.
"""

from __future__ import annotations


class Copies:
    """Only of objects that were read on other nodes than that of their primary copy."""

    def __init__(self) -> None:
        #: Object -> nodes, the last one told last.
        self._nodes: dict[bytes, dict[bytes, None]] = {}

    def told(self, object_id: bytes, primary: bytes, node_id: bytes) -> None:
        """A process of this node learns where the object lies, to read it."""
        if node_id != primary:
            self._nodes.setdefault(object_id, {})[node_id] = None

    def take(self, object_id: bytes, without: bytes) -> list[bytes]:
        """Return the nodes that may have a copy, the likeliest first, but for ``without``; they are forgotten."""
        return [node_id for node_id in reversed(self._nodes.pop(object_id, {})) if node_id != without]

    def forget(self, object_id: bytes) -> None:
        self._nodes.pop(object_id, None)

    def __len__(self) -> int:
        return len(self._nodes)
