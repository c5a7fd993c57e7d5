"""Ids of nodes as users write them."""

from __future__ import annotations

from shoal._base.ids import NODE_BYTES


def check_node_id(node_id: object) -> None:
    """Raise ValueError unless it is the hexadecimal id that a node can have."""
    if not isinstance(node_id, str):
        raise ValueError(f"node_id must be a hexadecimal string or a NodeID, got {type(node_id).__name__}: {node_id!r}.")
    try:
        binary = bytes.fromhex(node_id)
    except ValueError:
        binary = b""
    if len(binary) != NODE_BYTES or binary == b"\xff" * NODE_BYTES:
        raise ValueError(
            f"Invalid node_id {node_id!r}: it has {2 * NODE_BYTES} hexadecimal digits. shoal.nodes() lists the ids of all nodes."
        )
