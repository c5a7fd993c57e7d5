"""Joins sockets, two and two: what comes in at one goes out at the other, byte for byte.

    join(one, other) ──▶ thread:  one ══ read, write ══▶ other      the end of one direction is passed on as such;
                                  one ◀══ read, write ══ other      the end of both, an error, or the silence of a machine ends the pair

For processes that cannot reach each other and can both reach this one. What passes is encrypted between them, and none of our business.

One thread for all pairs. Not the loop: a large object would keep it from its other work. Not a thread for each direction: most pairs are
idle connections for messages. A sink that is slow stops its own source, as nothing is read before what was read last is written.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque

from shoal._core.transport.acknowledging import LOOK_S, is_cut_off

#: Read at once of one socket, before it is the turn of the others.
_STEP_BYTES = 1 << 18
#: Seconds that ``close`` waits for the thread.
_JOIN_S = 1.0


class _Flow:
    """One direction of a pair."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        #: Read, and not written yet.
        self.held = b""
        self.ended = False

    def move(self, room: memoryview) -> None:
        """Pass on what can be passed on now. Raises OSError when either end is gone."""
        if self.held:
            self.held = self.held[self._write(self.held) :]
        if self.held or self.ended:
            return
        try:
            count = self.source.recv_into(room)
        except BlockingIOError:
            return
        if count:
            written = self._write(room[:count])
            self.held = bytes(room[written:count])
        else:
            self.ended = True
            self.sink.shutdown(socket.SHUT_WR)

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return self.sink.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0


class _Pair:
    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self.flows = (_Flow(one, other), _Flow(other, one))
        self.sockets = (one, other)

    @property
    def over(self) -> bool:
        return all(flow.ended for flow in self.flows)

    def interest(self, sock: socket.socket) -> int:
        """Return the events of a socket that are of use."""
        events = 0
        for flow in self.flows:
            if flow.source is sock and not flow.ended and not flow.held:
                events |= select.EPOLLIN
            if flow.sink is sock and flow.held:
                events |= select.EPOLLOUT
        return events


class Switchboard:
    """``join``, ``pairs`` and ``close`` from one thread, the loop's; ``close`` ends the thread."""

    def __init__(self) -> None:
        self._new: deque[_Pair] = deque()
        self._pairs = 0
        self._closed = False
        self._wake = -1
        self._thread: threading.Thread | None = None

    def join(self, one: socket.socket, other: socket.socket) -> None:
        """Take two connected sockets, and close them when either has ended."""
        for sock in (one, other):
            sock.setblocking(False)
        if self._thread is None:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._thread = threading.Thread(target=self._run, name="shoal-switchboard", daemon=True)
            self._thread.start()
        self._new.append(_Pair(one, other))
        os.eventfd_write(self._wake, 1)

    @property
    def pairs(self) -> int:
        """How many there are."""
        return self._pairs + len(self._new)

    def close(self) -> None:
        """Hang up on everybody. Idempotent."""
        self._closed = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join(_JOIN_S)
            if not self._thread.is_alive():  # which sees the flag perhaps before it is woken: only here can nobody write any more
                os.close(self._wake)
            self._thread = None

    # --- in the thread ---

    def _run(self) -> None:
        room = memoryview(bytearray(_STEP_BYTES))
        #: All and only pairs that live, by the descriptor of each of their sockets; and what epoll looks for there.
        pairs: dict[int, _Pair] = {}
        looked_for: dict[int, int] = {}
        look_at = 0.0
        with select.epoll() as epoll:
            epoll.register(self._wake, select.EPOLLIN)
            while not self._closed:
                now = time.monotonic()
                if now >= look_at:
                    look_at = now + LOOK_S
                    for pair in {id(pair): pair for pair in pairs.values()}.values():
                        if any(is_cut_off(sock) for sock in pair.sockets):
                            self._look(epoll, pair, looked_for, alive=False)
                            _end(pair, pairs)
                self._pairs = len(pairs) // 2
                for descriptor, _ in epoll.poll(LOOK_S if pairs else None):
                    if descriptor == self._wake:
                        os.eventfd_read(self._wake)
                        moved = [self._new.popleft() for _ in range(len(self._new))]
                        for pair in moved:
                            pairs.update({sock.fileno(): pair for sock in pair.sockets})
                    else:
                        moved = [pairs[descriptor]] if descriptor in pairs else []
                    for pair in moved:
                        alive = self._move(pair, room)
                        self._look(epoll, pair, looked_for, alive=alive)
                        if not alive:
                            _end(pair, pairs)
        for pair in [*pairs.values(), *self._new]:
            _end(pair, {})
        self._new.clear()
        self._pairs = 0

    def _move(self, pair: _Pair, room: memoryview) -> bool:
        try:
            for flow in pair.flows:
                flow.move(room)
        except OSError:  # either has hung up: so does this side
            return False
        return not pair.over

    def _look(self, epoll: select.epoll, pair: _Pair, looked_for: dict[int, int], *, alive: bool) -> None:
        """Look for what is of use now. A socket for which nothing is may not stay there: the end of it is an event that never passes."""
        for sock in pair.sockets:
            descriptor, events = sock.fileno(), pair.interest(sock) if alive else 0
            before = looked_for.get(descriptor, 0)
            if events == before:
                continue
            if events:
                (epoll.modify if before else epoll.register)(descriptor, events)
                looked_for[descriptor] = events
            else:
                epoll.unregister(descriptor)
                del looked_for[descriptor]


def _end(pair: _Pair, pairs: dict[int, _Pair]) -> None:
    for sock in pair.sockets:
        pairs.pop(sock.fileno(), None)
        with contextlib.suppress(OSError):  # it has ended
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
