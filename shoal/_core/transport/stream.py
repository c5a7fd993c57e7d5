"""A connection over a stream socket, after the handshake.

Backpressure: above the high-water mark of unsent bytes a connection is ``saturated``. The *accepting* end then stops reading, so a
client that does not read its replies cannot go on asking. The connecting end never stops reading: if both ends did, each would wait
for the other for ever (an owner pushes a gigabyte of arguments to a worker whose results fill the other direction).

``send_now`` writes from another thread than the loop's, on a socket of its own to the same peer. It may do so only while the loop has
nothing unsent, and the loop's writes wait for it: both hold ``_writing``. What did not fit goes first when the loop writes next.

SocketConnection is plain, SealedConnection encrypts (``sealing.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from shoal._core.transport.acknowledging import CUT_OFF_S, is_cut_off
from shoal._core.transport.connection import CLOSE_TIMEOUT_S, HIGH_WATER_BYTES, LOW_WATER_BYTES
from shoal._core.transport.framing import FramedConnection
from shoal._core.transport.sealing import Seal
from shoal._core.wire.codec import Buffer, encode
from shoal._core.wire.messages import Message

#: Queued messages that ``saturated`` turns into bytes before it judges.
_JUDGE_MESSAGES = 64
#: Seconds that the loop waits for a thread inside ``send_now``, which is there for microseconds.
HANDLER_S = 0.02
#: Read at once of what a peer left.
_REST_BYTES = 1 << 18
_DIRECT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
#: Does nothing, in C: a function of ours would let signals' handlers run.
_nothing = int
_call: Callable[[Any], Any] = operator.call


class SocketConnection(FramedConnection, asyncio.Protocol):
    """One end of a connected socket whose peer has proved the token.

    Not a BufferedProtocol: in uvloop that costs 1.5 us more per read, and saves only a copy that is cheap against the decoding.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, peer: str, accepted: bool) -> None:
        super().__init__(loop, peer, self._write_in_turn)
        self._transport = transport
        there = transport.get_extra_info("peername")
        self.host = there[0] if isinstance(there, tuple) else ""
        #: Held by the loop from taking messages out of the queue until they are written, and by ``send_now``.
        self._writing = threading.RLock()
        #: The peer as other threads reach it; a duplicate, so that no closed and reused descriptor is ever written to.
        self._direct: socket.socket | None = None
        #: What ``send_now`` wrote last, and first in a list how many bytes of it it could write; until the loop's next write.
        self._last: tuple[Buffer, list[Any]] | None = None
        #: Counts the loop's writes: it does not wait for ever for the lock.
        self._turn = 0
        self._accepted = accepted
        self._write_paused = False
        self._close_timer: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)

    def allow_send_now(self) -> None:
        if self._direct is None and not self.closed:
            self._direct = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))

    def send_now(self, message: Message, is_valid: Callable[[], bool] | None = None, sent: Callable[[], object] | None = None) -> bool:
        writing = self._writing
        if self._out or writing._is_owned():  # type: ignore[attr-defined]  # this thread is inside already: we run in a signal's handler
            return False
        pieces = encode([message])
        if len(pieces) > 1:
            return False
        piece = pieces[0]
        try:
            writing.acquire()
            direct, turn = self._direct, self._turn
            if direct is None or self.closed or self._finishing:
                return False
            if self._out or self._rest() or self._transport.get_write_buffer_size():
                return False
            if is_valid is not None and not is_valid():
                return False
            progress: list[Any] = []
            steps = map(_call, (partial(direct.send, piece, _DIRECT), writing.release, sent or _nothing))
            try:
                # Signals' handlers, interrupts and other threads come behind calls only: not between these lines, and not into
                # ``extend``, which notes what was written before it lets go of the lock.
                self._last = piece, progress
                if self._turn != turn:
                    self._last = None
                    return False
                progress.extend(steps)
            except OSError:  # full, or broken: the loop finds out which
                self._last = None
                return False
            if self._rest():
                self._loop.call_soon_threadsafe(self._write_rest)
            return True
        finally:
            try:  # no call may stand before release: an interrupt behind it would leave the lock taken for ever
                writing.release()
            except RuntimeError:
                pass  # it is free already, or this thread was interrupted while it waited

    def _flush(self) -> None:
        if self._out:
            held = self._keep_others_out()
            try:
                super()._flush()
            finally:
                if held:
                    self._writing.release()

    def _keep_others_out(self) -> bool:
        """Take the lock, for the loop. False: a thread inside ``send_now`` stands in a signal's handler, which may wait for the loop."""
        while not self._writing.acquire(timeout=HANDLER_S):
            last = self._last
            if last is None or last[1]:
                return False
            # It is at its system call, where no handler runs, and only waits for a processor.
        return True

    def _write_in_turn(self, piece: Buffer) -> None:
        held = self._keep_others_out()
        try:
            self._turn += 1
            rest, self._last = self._rest(), None
            if rest:
                self._transport.write(rest)
            self._transport.write(piece)
        finally:
            if held:
                self._writing.release()

    def _rest(self) -> Buffer:
        """Return the end of a message that ``send_now`` could not write whole."""
        if self._last is None:
            return b""
        piece, progress = self._last
        return memoryview(piece)[progress[0] :] if progress else b""

    def _write_rest(self) -> None:
        if self._rest():
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

    def look_for_peer(self) -> bool:
        """End a connection between machines of which the other one acknowledges nothing; return whether it goes on."""
        if not self._lost and is_cut_off(self._transport.get_extra_info("socket")):
            self._reason = self._reason or f"its machine has acknowledged nothing for {CUT_OFF_S:g} s"
            self.abort()
        return not self._lost

    # --- called by the loop ---

    data_received = FramedConnection.deliver

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
        if exc is not None and not self.closed:
            self._read_rest()
        if self._close_timer is not None:
            self._close_timer.cancel()
        if not self._reason:
            self._reason = "the peer ended or closed it" if exc is None else f"{exc}"
            if self._decoder.pending_bytes:
                self._reason += f", in the middle of a frame ({self._decoder.pending_bytes} bytes of it had arrived)"
        self._end_direct()
        self._end()

    def _read_rest(self) -> None:
        """A write that fails ends the transport at once. What the peer sent before it ended, its last replies, lies in the socket still."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as rest:
            while not self.closed and (data := rest.recv(_REST_BYTES, socket.MSG_DONTWAIT)):
                self.data_received(data)

    def _end_direct(self) -> None:
        """From now on no other thread writes."""
        held = self._keep_others_out()
        self.closed = True
        direct, self._direct = self._direct, None
        if held:
            self._writing.release()
        if direct is not None:
            direct.close()


class SealedConnection(SocketConnection):
    """One end of an encrypted socket.

    Every message goes over the loop: a TLS connection cannot be used by two threads at once, and what was encrypted must be sent, which
    ``send_now`` could not promise under an interrupt.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, peer: str, accepted: bool, seal: Seal) -> None:
        super().__init__(loop, transport, peer, accepted)
        self._seal = seal

    def allow_send_now(self) -> None:
        """There is no such thing here."""

    def send_now(self, message: Message, is_valid: Callable[[], bool] | None = None, sent: Callable[[], object] | None = None) -> bool:
        return False

    def _write_in_turn(self, piece: Buffer) -> None:
        for encrypted in self._seal.encrypt(piece):
            self._transport.write(encrypted)

    def data_received(self, data: bytes) -> None:
        try:
            plain = self._seal.decrypt(data)
        except ssl.SSLError as error:
            self._corrupt(error)
            return
        if answer := self._seal.pending:
            self._transport.write(answer)
        if plain:
            self.deliver(plain)
