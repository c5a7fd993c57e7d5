"""What nodes have spilled behind a URL, and who deletes it at the end of their cluster: whoever removes the cluster's session.

A session of one node has one directory there. In a cluster of many a node that ends, however it ends, deletes nothing: others may
need what it has written, and delete it when they do not (``control_store/sweep_service.py``). What is left when the cluster ends
goes with its tables, which know all nodes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from shoal._core.control_store.rows import NODES, decode_node
from shoal._core.object_store.remote import remove_directories

#: Seconds that the place has for that.
_REMOTE_S = 10.0


def find_spilled(tables: Path) -> dict[str, list[str]]:
    """Return URL -> directories of the nodes in these tables of a control store; {} if there are no tables."""
    found: dict[str, list[str]] = {}
    if not tables.exists():
        return found
    with contextlib.closing(sqlite3.connect(tables)) as database:
        try:
            rows = database.execute(f'SELECT value FROM "{NODES}"').fetchall()
        except sqlite3.Error:  # never written, or damaged: nothing can be found in them
            rows = []
    for (value,) in rows:
        node = decode_node(value)
        if node.spill_url:
            found.setdefault(node.spill_url, []).append(node.spill_directory)
    return found


def remove_spilled(spilled: dict[str, list[str]]) -> None:
    """Delete these directories. Blocks 10 s at most for each URL; what is left is told in a warning."""
    for url, directories in spilled.items():
        remove_directories(url, directories, _REMOTE_S)
