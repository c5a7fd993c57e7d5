"""Telling the control store what is free on this node: at most ten times a second, at once when somebody there waits for it."""

from __future__ import annotations

import asyncio

from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.peers import Peer
from shoal._core.wire.messages import ClusterChanged, NodeList, NodeRecord, NodeResources, ReportResources

#: Seconds between two reports.
REPORT_S = 0.1


class ResourceReports:
    """Keeps ``node.available`` and the control store's copy of it up to date."""

    def __init__(self, loop: asyncio.AbstractEventLoop, node: NodeRecord, leases: Leases) -> None:
        self.control: Peer | None = None
        #: The control store was refused something for lack of room; tell it at once when there is more.
        self.wanted = False
        self._loop = loop
        self._node = node
        self._leases = leases
        self._sent = dict(node.available)
        self._last = -1.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Something was taken or given back."""
        if self.control is None:
            return
        now = self._loop.time()
        due = now if self.wanted else max(now, self._last + REPORT_S)
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(due - now, self._send)

    def on_report(self, connection: Peer, message: ReportResources) -> None:
        self._node.available = self._leases.available()
        connection.send(NodeList(message.rid, [self._node]))

    def registered(self) -> None:
        """The node's record is on its way to the control store."""
        self._node.available = self._sent = self._leases.available()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _send(self) -> None:
        self._timer = None
        if self.control is None:
            return
        available = self._leases.available()
        if available == self._sent:
            return
        more = any(amount > self._sent.get(name, 0) for name, amount in available.items())
        self._last = self._loop.time()
        self._sent = self._node.available = available
        self.control.send(NodeResources(self._node.node_id, available))
        if more and self.wanted:
            self.wanted = False
            self.control.send(ClusterChanged(self._node.node_id))
