"""What dead nodes have spilled behind a URL is deleted when nobody needs it any more.

    node died ── grace, in which owners have what they need adopted by other nodes ──▶ SweepSpilled ──▶ an agent that spills there, too
              <── files that somebody still holds: again, after as long ── HeldFiles ──────────────────┘
              nothing left: forgotten

The dead nodes and their directories stand in the table of nodes, so a control store that was started again goes on. Those that are left
when the cluster ends go with its tables (``process/leftovers.py``).
"""

from __future__ import annotations

from functools import partial

from shoal._core.wire.messages import HeldFiles, NodeRecord, SweepSpilled

from .core import Core


class SweepService:
    """``grace_s``: from a node's death to the first sweep, and from each to the next."""

    def __init__(self, core: Core, grace_s: float) -> None:
        self._core = core
        self._grace_s = grace_s
        #: Dead node -> when it is looked at next.
        self._due: dict[bytes, float] = {}
        self._looking = False

    def look_later(self) -> None:
        """There may be something to sweep: a node has died, or the control store has read its tables."""
        if not self._looking and self._core.nodes.unswept():
            self._looking = True
            self._core.loop.call_later(self._grace_s / 4, self._look)

    def _look(self) -> None:
        self._looking = False
        now, unswept = self._core.loop.time(), self._core.nodes.unswept()
        self._due = {record.node_id: self._due.get(record.node_id, now + self._grace_s * 3 / 4) for record in unswept}
        for record in unswept:
            agent = self._agent_for(record)
            if self._due[record.node_id] <= now and agent:
                self._due[record.node_id] = now + self._grace_s
                self._core.tell_node(agent, SweepSpilled(0, record.spill_directory), partial(self._swept, record.node_id))
        self.look_later()

    def _agent_for(self, dead: NodeRecord) -> bytes:
        """Return a node that reaches what the dead one has spilled; b"" if there is none now."""
        nodes = (node.record for node in self._core.nodes.connected())
        return next((record.node_id for record in nodes if record.spill_url == dead.spill_url), b"")

    def _swept(self, node_id: bytes, reply: HeldFiles | None, _error: BaseException | None, /) -> None:
        if reply is not None and not reply.files:
            self._core.perform(self._core.nodes.swept(node_id))
