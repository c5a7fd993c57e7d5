"""Whether anybody listens at a port: what tells a process that has ended from one whose connection alone was lost."""

from __future__ import annotations

import asyncio

from .addresses import TcpAddress, parse_address
from .errors import ConnectFailed, NobodyListens
from .port import dial

#: A process that is being killed may still listen for a moment after its connections have ended.
TRIES, PAUSE_S = 5, 0.05
#: Seconds that it has to answer.
ANSWER_S = 1.0


async def nobody_listens(loop: asyncio.AbstractEventLoop, endpoint: str) -> bool:
    """Return whether its machine refuses connections to the port. False: it answers, or nobody can tell. Takes up to 5 s."""
    where = parse_address(endpoint)
    assert isinstance(where, TcpAddress)
    for _ in range(TRIES):
        try:
            sock = await dial(loop, where, timeout_s=ANSWER_S)
        except NobodyListens:
            return True
        except ConnectFailed:
            pass
        else:
            sock.close()
            return False
        await asyncio.sleep(PAUSE_S)
    return False
