"""Who is at a port: what tells a process that has ended from one whose connection alone was lost, or that cannot be dialled at all.

And a word to whoever is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from shoal._core.wire.messages import Message

from .addresses import TcpAddress, parse_address
from .connection import Connection
from .errors import ConnectFailed, NobodyListens, NoSuchProcess
from .port import dial

log = logging.getLogger("shoal.transport")

#: A process that is being killed may still listen for a moment after its connections have ended.
TRIES, PAUSE_S = 5, 0.05
#: Seconds that it has to answer.
ANSWER_S = 1.0


async def is_there(loop: asyncio.AbstractEventLoop, endpoint: str, target: bytes) -> bool:
    """Return whether ``target`` answers at an endpoint now. Takes up to 1 s."""
    where = parse_address(endpoint)
    assert isinstance(where, TcpAddress)
    try:
        (await dial(loop, where, target, timeout_s=ANSWER_S)).close()
    except ConnectFailed:
        return False
    return True


async def has_ended(loop: asyncio.AbstractEventLoop, endpoint: str, target: bytes) -> bool:
    """Return whether ``target``, which was at an endpoint, is there no more: its machine refuses connections, or another one answers.

    False: it answers, or nobody can tell. Takes up to 5 s.
    """
    where = parse_address(endpoint)
    assert isinstance(where, TcpAddress)
    for _ in range(TRIES):
        try:
            sock = await dial(loop, where, target, timeout_s=ANSWER_S)
        except (NobodyListens, NoSuchProcess):
            return True
        except ConnectFailed:
            pass
        else:
            sock.close()
            return False
        await asyncio.sleep(PAUSE_S)
    return False


async def tell(connecting: Awaitable[Connection], message: Message) -> None:
    """Send a message over a connection that is being made, and close it; nothing happens if it cannot be made."""
    try:
        connection = await connecting
    except ConnectFailed as error:
        log.debug("Nobody hears a %s: %s", type(message).__name__, error)
        return
    connection.send(message)
    connection.close()
