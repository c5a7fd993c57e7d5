"""Group commit: what one loop iteration changed is written in one transaction, and only then are its messages sent.

    handlers --write--> changes --+
             --send---> letters --+--(once per iteration)--> storage.apply --> send all, in order

So whoever is told something can rely on it being on disk, and a burst of 10,000 creations costs a few commits. All messages of the control
store leave through here, also those that no row stands behind: a reader must not see what a crash could undo, and order is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from shoal._core.transport.connection import Connection
from shoal._core.wire.messages import Failed, Message

from .storage.interface import Change, Storage

log = logging.getLogger("shoal.control_store")

#: Deletions after which free pages are given back.
COMPACT_AFTER = 5000
#: Seconds until a failed commit (full disk) is tried again; nobody is answered meanwhile.
RETRY_COMMIT_S = 0.5

#: Called with the reply, or with the error (RequestFailed, ConnectionLost).
OnReply = Callable[[Any, BaseException | None], None]


class Outbox:
    def __init__(self, loop: asyncio.AbstractEventLoop, storage: Storage, before_commit: Callable[[], None] | None = None) -> None:
        self._loop = loop
        self._storage = storage
        self._before_commit = before_commit
        self._changes: list[Change] = []
        self._letters: list[tuple[Connection, Message, OnReply | None]] = []
        self._handle: asyncio.Handle | None = None
        self._deleted = 0
        self._stuck = False
        self.commits = 0

    @property
    def is_stuck(self) -> bool:
        """Whether the last commit failed: nobody is answered before one succeeds."""
        return self._stuck

    def write(self, change: Change) -> None:
        self._changes.append(change)
        if self._handle is None:
            self._handle = self._loop.call_soon(self._flush)

    def send(self, connection: Connection, message: Message) -> None:
        self._post(connection, message, None)

    def fail(self, connection: Connection, rid: int, kind: str, message: str) -> None:
        self._post(connection, Failed(rid, kind, message), None)

    def request(self, connection: Connection, message: Message, on_reply: OnReply) -> None:
        """Send a request after the commit; ``on_reply`` is called from the loop."""
        self._post(connection, message, on_reply)

    def close(self) -> None:
        """Write what is left and send what waits for it."""
        self._flush()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _post(self, connection: Connection, message: Message, on_reply: OnReply | None) -> None:
        self._letters.append((connection, message, on_reply))
        if self._handle is None:
            self._handle = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._handle = None
        if self._before_commit is not None:
            self._before_commit()
        if self._changes and not self._commit():
            self._handle = self._loop.call_later(RETRY_COMMIT_S, self._flush)
            return
        letters, self._letters = self._letters, []
        for connection, message, on_reply in letters:
            if on_reply is None:
                connection.send(message)
            else:
                connection.request(message).add_done_callback(_Answer(on_reply))

    def _commit(self) -> bool:
        try:
            self._storage.apply(self._changes)
        except Exception:  # server loop: a full disk must not end the cluster; it stalls until there is room
            log.exception("Writing %d changes failed; trying again in %g s. Is the disk full?", len(self._changes), RETRY_COMMIT_S)
            self._stuck = True
            return False
        self._stuck = False
        self.commits += 1
        self._deleted += sum(change.value is None for change in self._changes)
        self._changes = []
        if self._deleted >= COMPACT_AFTER:
            self._deleted = 0
            self._storage.compact()
        return True


class _Answer:
    """Turns a finished future into a call of ``on_reply``."""

    __slots__ = ("_on_reply",)

    def __init__(self, on_reply: OnReply) -> None:
        self._on_reply = on_reply

    def __call__(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        self._on_reply(None if error is not None else future.result(), error)
