"""Connections that carry frames: from queued messages to pieces of bytes, and back.

Between ``connection.py``, which knows messages only, and what carries the bytes (``stream.py``: a socket, ``memory.py``: a queue).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from shoal._core.transport.connection import Connection
from shoal._core.wire.codec import BATCH_LIMIT, Attached, Buffer, FrameDecoder, ProtocolError, encode
from shoal._core.wire.messages import REPLY_TYPES, Message

log = logging.getLogger("shoal.transport")


class FramedConnection(Connection):
    """A connection that writes bytes with ``write`` and is given those that arrive by ``deliver``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str, write: Callable[[Buffer], object]) -> None:
        super().__init__(loop, peer)
        self._write = write
        self._decoder = FrameDecoder()
        #: The queue contains messages with raw buffers, which need frames of their own.
        self._attached = False

    def send_attached(self, message: Message, buffers: Sequence[Buffer]) -> None:
        self._attached = True
        super().send_attached(message, buffers)

    def deliver(self, data: bytes) -> None:
        """Take bytes of the peer and deliver the messages that they complete."""
        try:
            batch = self._decoder.feed(data)
        except ProtocolError as error:
            self._corrupt(error)
            return
        if batch:
            self._dispatch(batch)

    def _corrupt(self, error: Exception) -> None:
        log.error("Closing the connection to %s: %s", self.peer, error)
        self._reason = f"{error}"
        self.abort()

    def _transmit(self, messages: list[Message | Attached]) -> None:
        if self._attached:
            self._attached = False
            self._transmit_attached(messages)
        elif len(messages) > BATCH_LIMIT:
            for start in range(0, len(messages), BATCH_LIMIT):
                self._transmit(messages[start : start + BATCH_LIMIT])
        else:
            try:
                pieces = encode(messages)  # type: ignore[arg-type]
            except Exception as error:  # a message of ours that cannot be encoded: find it, the others must not suffer
                self._transmit_singly(messages, error)
                return
            for piece in pieces:
                self._write(piece)

    def _transmit_attached(self, messages: list[Message | Attached]) -> None:
        """Send the runs of plain messages batched, and those with buffers one by one, in order."""
        plain: list[Message | Attached] = []
        for message in messages:
            if not isinstance(message, Attached):
                plain.append(message)
                continue
            if plain:
                self._transmit(plain)
                plain = []
            try:
                pieces = encode([message.message], message.buffers)
            except Exception as error:  # a message of ours that cannot be encoded
                self._refuse(message.message, error)
            else:
                for piece in pieces:
                    self._write(piece)
        if plain:
            self._transmit(plain)

    def _transmit_singly(self, messages: list[Message | Attached], error: Exception) -> None:
        if len(messages) == 1:
            assert not isinstance(messages[0], Attached)
            self._refuse(messages[0], error)
            return
        for message in messages:
            self._transmit([message])

    def _refuse(self, message: Message, error: Exception) -> None:
        """Tell whoever waits for a message that cannot be sent; if nobody does, the peer would miss it: close."""
        if self._fail_request(message, error):
            return
        log.error("Cannot send %s to %s.", type(message).__name__, self.peer, exc_info=error)
        if type(message) in REPLY_TYPES and type(message).__name__ != "Failed":
            self.fail(message.rid, type(error).__name__, f"The reply cannot be sent: {error}")  # type: ignore[attr-defined]
        else:
            self._reason = f"a {type(message).__name__} could not be sent: {error}"
            self.close()
