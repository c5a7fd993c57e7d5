"""The node agents that this process talks to: its own, and those of other nodes that lease it workers or keep its objects."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shoal._core.wire.messages import Address, RegisterProcess

from .peers import Peer

if TYPE_CHECKING:
    from .core import Core


class Agents:
    """I/O thread only."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._foreign: dict[bytes, Peer] = {}
        #: Nodes that have left, or are about to -> who answers for what their agents owned.
        self.heirs: dict[bytes, bytes] = {}

    def get(self, node_id: bytes) -> Any:
        """Return what can ``send`` and ``request`` to the node's agent; another node's is connected to, and registered with, first."""
        core = self._core
        if node_id == core.me.node_id:
            return core.agent
        peer = core.peers.get(Address(node_id, node_id, ""))
        if self._foreign.get(node_id) is not peer:
            self._foreign[node_id] = peer
            register = RegisterProcess(
                0, core.me.worker_id, os.getpid(), core.me.address, core.job_id, core.wants_logs, node_id=core.me.node_id
            )
            core.when_all([peer.request(register)], _nothing)  # a refusal shows at whatever is asked next
        return peer

    def address(self, node_id: bytes) -> Address:
        """Return the address of the node's agent, who answers for the node's processes when they have ended."""
        return self._core.agent_address if node_id == self._core.me.node_id else Address(node_id, node_id, "")

    def all(self) -> list[Any]:
        """Return those that this process is registered with, its own first."""
        return [self._core.agent, *self._foreign.values()]

    def lost(self, peer: Peer) -> bool:
        """A connection has ended; return whether it led to an agent."""
        node_id = peer.address.node_id
        if peer.address.worker_id != node_id:
            return False
        if self._foreign.get(node_id) is peer:
            del self._foreign[node_id]
        return True


def _nothing() -> None:
    """What follows does not wait for it."""
