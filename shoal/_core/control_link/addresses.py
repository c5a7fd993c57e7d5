"""Where a cluster's control store may be: at one of several places, of which one serves at a time.

given (--address=A,B) ─┐
told by the leader ────┴─▶ all of them are dialled at once; standbys refuse, a machine that is gone keeps nobody waiting
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from shoal._core.transport import Connection
from shoal._core.transport.errors import NobodyListens


class ControlAddresses:
    """``text``: transport addresses with commas between them. Pure."""

    def __init__(self, text: str) -> None:
        self._given = split(text)
        self._told: list[str] = []

    def learn(self, addresses: Iterable[str]) -> None:
        """Take over the leader's word. What was given stays: the leader who does not list it may be the last to have seen it."""
        self._told = list(addresses)

    def all(self) -> list[str]:
        return list(dict.fromkeys([*self._told, *self._given]))

    def __str__(self) -> str:
        return ",".join(self.all())


def split(text: str) -> list[str]:
    """Return the addresses; a Unix socket's path may have commas, and is alone."""
    return [text] if text.startswith("unix:") else [address for address in text.split(",") if address]


async def dial(addresses: Sequence[str], connect: Callable[[str], Awaitable[Connection]]) -> Connection:
    """Return the first connection that stands; the others are dropped.

    Raises what ``connect`` has raised for one of the addresses: something other than that nobody is there, if any did.
    """
    if len(addresses) == 1:
        return await connect(addresses[0])
    dialling = {asyncio.ensure_future(connect(address)) for address in addresses}
    problems: list[BaseException] = []
    try:
        while dialling:
            done, dialling = await asyncio.wait(dialling, return_when=asyncio.FIRST_COMPLETED)
            connected = []
            for attempt in done:
                problem = attempt.exception()
                if problem is None:
                    connected.append(attempt.result())
                else:
                    problems.append(problem)
            for connection in connected[1:]:
                connection.abort()
            if connected:
                return connected[0]
    finally:
        for attempt in dialling:
            attempt.cancel()
            attempt.add_done_callback(_drop)
    raise next((problem for problem in problems if not isinstance(problem, NobodyListens)), problems[0])


def _drop(attempt: asyncio.Future[Connection]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().abort()
