"""Telling the control store what is free on this node, and what waits here: at most ten times a second, at once when it is waited for."""

from __future__ import annotations

import asyncio

from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.peers import Peer
from shoal._core.wire.messages import ClusterChanged, Demand, NodeList, NodeRecord, NodeResources, ReportResources

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
        self._sent_demands: list[Demand] = []
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
        connection.send(NodeList(message.rid, [self._node], self._leases.demands()))

    def registered(self) -> None:
        """The node's record is on its way to the control store."""
        self._node.available = self._sent = self._leases.available()
        self._sent_demands = []  # it is not in the record: told next

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _send(self) -> None:
        self._timer = None
        if self.control is None:
            return
        available, demands = self._leases.available(), self._leases.demands()
        if available == self._sent and demands == self._sent_demands:
            return
        more = any(amount > self._sent.get(name, 0) for name, amount in available.items())
        changed = None if available == self._sent else available
        self._last = self._loop.time()
        self._sent = self._node.available = available
        self.control.send(NodeResources(self._node.node_id, changed, demands=None if demands == self._sent_demands else demands))
        self._sent_demands = demands
        if more and self.wanted:
            self.wanted = False
            self.control.send(ClusterChanged(self._node.node_id))
