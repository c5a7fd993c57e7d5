"""Who gets an object from here, who is sent on to another node, and which nodes have copies.

              primary            Two pulls of a large object are served at a time. Whoever comes then is sent to the oldest of those
              /     \\            before it that has fewer than two after it, and gets from there what is there and what comes.
             A       B           So a broadcast takes the time of a few transfers, not of as many as there are nodes: each machine
            / \\     /            sends at most two streams.
           C   D   E

A node that comes back because its relay was of no use is sent elsewhere, never to one that is below it. Small objects are always served.

Pure. One node's; it knows only of objects that others have asked of this node.
"""

from __future__ import annotations

import msgspec

#: Streams of one object from one node at a time.
FAN_OUT = 2
#: Smaller objects are served at once: a detour over another node would take longer than the bytes.
RELAYED_BYTES = 8 << 20


class _Upload(msgspec.Struct):
    #: Being served from here.
    active: set[bytes] = msgspec.field(default_factory=set)
    #: Everybody who has asked, the first first -> from whom it gets the object; b"": from here.
    above: dict[bytes, bytes] = msgspec.field(default_factory=dict)
    #: How many were sent there.
    below: dict[bytes, int] = msgspec.field(default_factory=dict)
    #: Of no use as relays.
    useless: set[bytes] = msgspec.field(default_factory=set)


class Uploads:
    """The table. Objects and nodes are named by their ids."""

    def __init__(self) -> None:
        self._uploads: dict[bytes, _Upload] = {}
        #: Node -> objects in whose ``active`` it is.
        self._served: dict[bytes, set[bytes]] = {}

    def ask(self, object_id: bytes, nbytes: int, node_id: bytes, avoid: bytes = b"") -> bytes:
        """A node asks for an object. Return b"" to serve it, or the node from which it shall get the object."""
        upload = self._uploads.setdefault(object_id, _Upload())
        if nbytes < RELAYED_BYTES:
            upload.above[node_id] = b""
            return b""
        if avoid:
            upload.useless.add(avoid)
        if node_id in upload.active:
            return b""
        known = upload.above.get(node_id, b"")
        if known and known not in upload.useless:
            return known
        self._leave(upload, node_id)
        relay = b"" if len(upload.active) < FAN_OUT else self._relay_for(upload, node_id)
        upload.above[node_id] = relay
        if relay:
            upload.below[relay] = upload.below.get(relay, 0) + 1
        else:
            upload.active.add(node_id)
            self._served.setdefault(node_id, set()).add(object_id)
        return relay

    def sent(self, object_id: bytes, node_id: bytes) -> None:
        """The last byte has left for that node."""
        upload = self._uploads.get(object_id)
        if upload is not None and node_id in upload.active:
            upload.active.discard(node_id)
            upload.useless.discard(node_id)
            self._unserved(object_id, node_id)

    def hung_up(self, node_id: bytes) -> None:
        """The node's connection has ended: nothing is being sent to it."""
        for object_id in self._served.pop(node_id, ()):
            self._uploads[object_id].active.discard(node_id)

    def forget(self, object_id: bytes) -> list[bytes]:
        """The object is gone. Return the nodes that may have copies."""
        upload = self._uploads.pop(object_id, None)
        if upload is None:
            return []
        for node_id in upload.active:
            self._unserved(object_id, node_id)
        return list(upload.above)

    def copies(self, object_id: bytes) -> int:
        """Return how many nodes may have copies."""
        upload = self._uploads.get(object_id)
        return 0 if upload is None else len(upload.above)

    def check(self) -> None:
        """Assert the invariants. O(everything)."""
        for object_id, upload in self._uploads.items():
            assert upload.active <= upload.above.keys()
            assert all(not upload.above[node_id] for node_id in upload.active)
            for node_id in upload.above:
                assert not self._is_below(upload, node_id, node_id), "a circle"
            for node_id in upload.active:
                assert object_id in self._served[node_id]
            relays = [relay for relay in upload.above.values() if relay]
            assert {relay: relays.count(relay) for relay in relays} == {relay: n for relay, n in upload.below.items() if n}
            assert all(count <= FAN_OUT for count in upload.below.values())

    # --- inside ---

    def _relay_for(self, upload: _Upload, node_id: bytes) -> bytes:
        for relay in upload.above:
            free = upload.below.get(relay, 0) < FAN_OUT
            if free and relay not in upload.useless and relay != node_id and not self._is_below(upload, relay, node_id):
                return relay
        return b""

    def _is_below(self, upload: _Upload, node_id: bytes, above: bytes) -> bool:
        while node_id := upload.above.get(node_id, b""):
            if node_id == above:
                return True
        return False

    def _leave(self, upload: _Upload, node_id: bytes) -> None:
        """It stands in a new place from now on; those below it stay below it."""
        relay = upload.above.get(node_id, b"")
        if relay:
            upload.below[relay] -= 1

    def _unserved(self, object_id: bytes, node_id: bytes) -> None:
        served = self._served[node_id]
        served.discard(object_id)
        if not served:
            del self._served[node_id]
