"""Nodes that have not come after a takeover: they are told where the control store is now.

The control store before this one tells nodes of those that stand by. It may have died before it told all of them, or any: such a node looks
for the control store where it is no more, and would be declared dead for its silence.

    tables read back --CALL_S--> who is not here? --ControlStores, to each one's own endpoint--> ... until all are here or dead
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from shoal._core.wire.messages import ControlStores, Message, NodeRecord

from .core import Core

#: Seconds that nodes have to come by themselves, and between two words to those that have not. They come within a few tenths.
CALL_S = 1.0

#: Sends a message to a node at its endpoint; does nothing if it cannot be reached.
Tell = Callable[[NodeRecord, Message], Awaitable[None]]


class MissingNodes:
    """``begin`` runs a coroutine until the control store ends."""

    def __init__(self, core: Core, tell: Tell, begin: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._core = core
        self._tell = tell
        self._begin = begin

    def seek(self, addresses: Callable[[], list[str]]) -> None:
        """Tell those that are missing where control stores are, as long as there are any. ``addresses``: none if nobody stands by."""
        if self._missing():
            self._begin(self._seek(addresses))

    async def _seek(self, addresses: Callable[[], list[str]]) -> None:
        while True:
            await asyncio.sleep(CALL_S)
            missing = self._missing()
            if not missing:
                return
            if addresses():
                await asyncio.gather(*(self._tell(record, ControlStores(addresses())) for record in missing))

    def _missing(self) -> list[NodeRecord]:
        core = self._core
        return [node.record for node in core.nodes.living() if node.record.node_id not in core.agents and node.record.endpoint]
