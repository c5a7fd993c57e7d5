"""Nodes that have not come after a takeover: they are told where the control store is now.

The control store before this one tells nodes of those that stand by. It may have died before it told all of them, or any: such a node looks
for the control store where it is no more, and would be declared dead for its silence.

    tables read back --CALL_S--> who is not here? --ControlStores, to each one's own endpoint--> ... until all are here or dead
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shoal._core.wire.messages import ControlStores, Message, NodeRecord

from .core import Core

#: Seconds that nodes have to come by themselves, and between two words to those that have not. They come within a few tenths.
CALL_S = 1.0
#: Nodes that are dialled at the same time: a large cluster comes by itself meanwhile, and must not wait behind greetings that nobody needs.
AT_ONCE = 100

#: Sends a message to a node at its endpoint; does nothing if it cannot be reached.
Tell = Callable[[NodeRecord, Message], Awaitable[None]]


async def seek_missing_nodes(core: Core, tell: Tell, addresses: Callable[[], list[str]]) -> None:
    """Tell those that are missing where control stores are, until all are here or dead. ``addresses``: none if nobody stands by."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def tell_one(record: NodeRecord) -> None:
        async with turns:
            if record.node_id not in core.agents:
                await tell(record, ControlStores(addresses()))

    while _missing(core):
        await asyncio.sleep(CALL_S)
        if addresses():
            await asyncio.gather(*map(tell_one, _missing(core)))


def _missing(core: Core) -> list[NodeRecord]:
    return [node.record for node in core.nodes.living() if node.record.node_id not in core.agents and node.record.endpoint]
