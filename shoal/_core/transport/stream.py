"""A connection over a stream socket, after the handshake.

Backpressure: above the high-water mark of unsent bytes a connection is ``saturated``. The *accepting* end then stops reading, so a
client that does not read its replies cannot go on asking. The connecting end never stops reading: if both ends did, each would wait
for the other for ever (an owner pushes a gigabyte of arguments to a worker whose results fill the other direction).
"""

from __future__ import annotations

import asyncio

from shoal._core.transport.connection import CLOSE_TIMEOUT_S, HIGH_WATER_BYTES, LOW_WATER_BYTES
from shoal._core.transport.framing import FramedConnection

#: Queued messages that ``saturated`` turns into bytes before it judges.
_JUDGE_MESSAGES = 64


class SocketConnection(FramedConnection, asyncio.Protocol):
    """One end of a connected socket whose peer has proved the token.

    Not a BufferedProtocol: in uvloop that costs 1.5 us more per read, and saves only a copy that is cheap against the decoding.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, peer: str, accepted: bool) -> None:
        super().__init__(loop, peer, transport.write)
        self._transport = transport
        self._accepted = accepted
        self._write_paused = False
        self._close_timer: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)

    def saturated(self) -> bool:
        if len(self._out) > _JUDGE_MESSAGES:
            self._flush()
        return self._write_paused

    def close(self) -> None:
        if self.closed:
            return
        self._flush()
        self.closed = True
        self._reason = self._reason or "this process closed it"
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def abort(self) -> None:
        if not self._lost:
            self.closed = True
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
        self._end()
