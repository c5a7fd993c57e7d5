"""A connection over a stream socket, after the handshake.

Backpressure: above the high-water mark of unsent bytes a connection is ``saturated``. The *accepting* end then stops reading, so a
client that does not read its replies cannot go on asking. The connecting end never stops reading: if both ends did, each would wait
for the other for ever (an owner pushes a gigabyte of arguments to a worker whose results fill the other direction).

``send_now`` writes from another thread than the loop's, on a socket of its own to the same peer. It may do so only while the loop has
nothing unsent, and the loop's writes wait for it: both hold ``_writing``. What did not fit goes first when the loop writes next.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable

from shoal._core.transport.connection import CLOSE_TIMEOUT_S, HIGH_WATER_BYTES, LOW_WATER_BYTES
from shoal._core.transport.framing import FramedConnection
from shoal._core.wire.codec import Buffer, encode
from shoal._core.wire.messages import Message

#: Queued messages that ``saturated`` turns into bytes before it judges.
_JUDGE_MESSAGES = 64


class SocketConnection(FramedConnection, asyncio.Protocol):
    """One end of a connected socket whose peer has proved the token.

    Not a BufferedProtocol: in uvloop that costs 1.5 us more per read, and saves only a copy that is cheap against the decoding.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, peer: str, accepted: bool) -> None:
        super().__init__(loop, peer, self._write_in_turn)
        self._transport = transport
        #: Held by the loop from taking messages out of the queue until they are written, and by ``send_now``.
        self._writing = threading.RLock()
        #: The peer as other threads reach it; a duplicate, so that no closed and reused descriptor is ever written to.
        self._direct: socket.socket | None = None
        #: The end of a message that ``send_now`` could not write whole.
        self._rest: Buffer | None = None
        self._accepted = accepted
        self._write_paused = False
        self._close_timer: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)

    def send_now(self, make: Callable[[], Message | None]) -> bool:
        if self._out or not self._writing.acquire(blocking=False):
            return False
        try:
            if self.closed or self._finishing or self._out or self._rest is not None or self._transport.get_write_buffer_size():
                return False
            message = make()
            if message is None:
                return False
            pieces = encode([message])
            if len(pieces) > 1:
                return False
            if self._direct is None:
                self._direct = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
            try:
                sent = self._direct.send(pieces[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:  # full, or broken: the loop finds out which
                return False
            if sent < len(pieces[0]):
                self._rest = memoryview(pieces[0])[sent:]
                self._loop.call_soon_threadsafe(self._write_rest)
            return True
        finally:
            self._writing.release()

    def _flush(self) -> None:
        if self._out:
            with self._writing:
                super()._flush()

    def _write_in_turn(self, piece: Buffer) -> None:
        with self._writing:
            rest, self._rest = self._rest, None
            if rest is not None:
                self._transport.write(rest)
            self._transport.write(piece)

    def _write_rest(self) -> None:
        if self._rest is not None:
            self._write_in_turn(b"")

    def saturated(self) -> bool:
        if len(self._out) > _JUDGE_MESSAGES:
            self._flush()
        return self._write_paused

    def close(self) -> None:
        if self.closed:
            return
        self._flush()
        self._write_rest()
        self._end_direct()
        self._reason = self._reason or "this process closed it"
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def abort(self) -> None:
        if not self._lost:
            self._end_direct()
            self._out = []
            self._reason = self._reason or "this process closed it"
            self._transport.abort()

    # --- called by the loop ---

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._accepted:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._accepted and not self._transport.is_closing():
            self._transport.resume_reading()
        self._wake_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        if not self._reason:
            self._reason = "the peer ended or closed it" if exc is None else f"{exc}"
            if self._decoder.pending_bytes:
                self._reason += f", in the middle of a frame ({self._decoder.pending_bytes} bytes of it had arrived)"
        self._end_direct()
        self._end()

    def _end_direct(self) -> None:
        """From now on no other thread writes."""
        with self._writing:
            self.closed = True
            direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()
