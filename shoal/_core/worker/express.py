"""Calls that the calling thread sends itself: one at a time, to a worker or an actor that has nothing to do.

    I/O thread    offer        the worker is idle: whoever comes first may send it one call
    user thread   send         takes the offer, writes to the connection, and leaves word of it in the inbox
    I/O thread    Offer.sent   the word; until it comes, the worker counts as busy
    I/O thread    withdraw     before it decides anything about an idle worker; False: the offer was taken

It saves the way over the I/O thread: a call at a time is a third faster (``benchmarks/core_tasks.py``, ``core_actors.py``). Only the first
call of a burst goes this way; those behind it travel together, which is cheaper for many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .inbox import Inbox
from .peers import Peer
from .records import PUSHED, WAITING, TaskRecord
from .tasks import wire_message

#: What became of a call: sent, not sent (its maker posts it, or was interrupted), or unknown, as its maker was interrupted (Ctrl-C).
Left = bool | None


class Offer:
    """The right to send one call to ``peer``. ``sent`` is told on the I/O thread what became of it."""

    __slots__ = ("key", "peer", "sent")

    def __init__(self, key: object, peer: Peer, sent: Callable[[TaskRecord, Left], None]) -> None:
        self.key = key
        self.peer = peer
        self.sent = sent


class Express:
    """All offers of this process: at most one for each shape of tasks and each actor."""

    def __init__(self) -> None:
        self._offers: dict[object, Offer] = {}
        #: Held by a user thread from its look at an offer until the call has left. Reentrant: a finalizer may make a call anywhere.
        self._lock = threading.RLock()

    # --- I/O thread ----------------------------------------------------------------------------------------

    def offer(self, key: object, peer: Peer, sent: Callable[[TaskRecord, Left], None]) -> Offer | None:
        """Let user threads send one call to an idle peer; None if there is an offer of that kind already."""
        if key in self._offers or peer.connection is None:
            return None
        offer = self._offers[key] = Offer(key, peer, sent)
        return offer

    def withdraw(self, offer: Offer) -> bool:
        """Take an offer back; False if a call was sent on it, whose word is in the inbox."""
        with self._lock:
            if self._offers.get(offer.key) is not offer:
                return False
            del self._offers[offer.key]
            return True

    def _told(self, word: list[Any]) -> None:
        offer, record, _left = word
        untouched = self.withdraw(offer)  # its maker, who held the lock until now, was interrupted before it took it
        offer.sent(record, False if untouched else word[2])

    # --- user threads --------------------------------------------------------------------------------------

    def send(self, key: object, record: TaskRecord, inbox: Inbox) -> bool:
        """Send a call without references from this thread; False if it has to be posted, as something is to go before it."""
        if key not in self._offers or not inbox.settled():
            return False
        with self._lock:
            offer = self._offers.get(key)
            if offer is None or not inbox.settled():
                return False
            peer = offer.peer
            connection = peer.connection
            if connection is None or peer.known_template(record.template) is None:
                return False

            def make() -> Any:
                index = peer.known_template(record.template)
                return None if index is None else wire_message(index, record)

            # The word goes first, since the reply may be fast. Up to the next line an interrupt leaves the offer as it was.
            word = [offer, record, None]
            record.state = PUSHED
            inbox.post_later(self._told, word)
            del self._offers[key]
            word[2] = left = connection.send_now(make)
            if not left:
                record.state = WAITING
            return left
