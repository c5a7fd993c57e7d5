"""An actor's farewell to its callers before it moves to another node: no call may be lost on the way to it.

actor  --HandBack(moves)--> every caller: it sends no more
       <---AskHandBack----  behind everything that it had sent, all of which is handed back
when all have answered: the calls that run are finished, and the process leaves
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from shoal._core.transport import Connection
from shoal._core.wire.messages import HandBack


class Move:
    """I/O thread only.

    Args:
        patience_s: callers have to answer; one that hangs must not keep the actor.
        then: called once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callers: Iterable[Connection], patience_s: float, then: Callable[[], None]) -> None:
        self._then: Callable[[], None] | None = then
        self._awaited = {connection for connection in callers if not connection.closed}
        for connection in self._awaited:
            connection.send(HandBack([], moves=True))
        self._timer = loop.call_later(patience_s if self._awaited else 0.0, self._go)

    def heard(self, connection: Connection) -> None:
        """The caller has answered, or is gone."""
        self._awaited.discard(connection)
        if not self._awaited:
            self._go()

    def _go(self) -> None:
        self._timer.cancel()
        then, self._then = self._then, None
        if then is not None:
            then()
