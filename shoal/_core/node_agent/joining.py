"""This node as a place where two others meet that cannot reach each other.

control store ── ExpectPair(ticket) ──▶ here
the one  ── preamble: ticket ──▶ OPEN, kept
the other ── preamble: ticket ──▶ OPEN, both ──▶ switchboard

What a ticket is good for is being joined to whoever has the same one. Who that is, and whether it is whom they meant, the two find out from
each other, as on any socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from shoal._core.node_agent.peers import Peer
from shoal._core.transport.preamble import Answer
from shoal._core.transport.switchboard import Switchboard
from shoal._core.wire.messages import Ack, ExpectPair

#: Seconds until both must have come.
PAIR_S = 10.0
#: Pairs at a time, those that are expected included: each has two descriptors.
MOST_PAIRS = 1024


class Joining:
    """One node's. Used on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, switchboard: Switchboard) -> None:
        self._loop = loop
        self._switchboard = switchboard
        #: Ticket -> who came first, and when the second one is too late.
        self._expected: dict[bytes, tuple[socket.socket | None, asyncio.TimerHandle]] = {}

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {ExpectPair: self._on_expect}

    def take(self, ticket: bytes, sock: socket.socket) -> bool:
        """Somebody has come with this ticket; False: nobody is expected with it."""
        expected = self._expected.get(ticket)
        if expected is None:
            return False
        first, timer = expected
        if first is None:
            self._expected[ticket] = sock, timer
        else:
            timer.cancel()
            del self._expected[ticket]
        open_to(sock)
        if first is not None:
            self._switchboard.join(first, sock)
        return True

    def close(self) -> None:
        """Hang up on all pairs, and on those that wait for the other."""
        for ticket in list(self._expected):
            self._give_up(ticket)
        self._switchboard.close()

    def _on_expect(self, connection: Peer, message: ExpectPair) -> None:
        if len(self._expected) + self._switchboard.pairs >= MOST_PAIRS:
            connection.fail(message.rid, "ConnectionError", f"This node joins {MOST_PAIRS} pairs of sockets already.")
            return
        if message.ticket not in self._expected:  # else the control store has asked before
            self._expected[message.ticket] = None, self._loop.call_later(PAIR_S, self._give_up, message.ticket)
        connection.send(Ack(message.rid))

    def _give_up(self, ticket: bytes) -> None:
        first, timer = self._expected.pop(ticket)
        timer.cancel()
        if first is not None:
            first.close()


def open_to(sock: socket.socket) -> None:
    """Say that who was meant is here."""
    with contextlib.suppress(OSError):  # it has hung up: who uses the socket finds out
        sock.send(bytes((Answer.OPEN,)), socket.MSG_NOSIGNAL)
