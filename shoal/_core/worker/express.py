"""Calls that the calling thread sends itself: one at a time, to a worker or an actor that has nothing to do.

    I/O thread    offer        the worker is idle: whoever comes first may send it one call
    user thread   send         takes the offer, writes to the connection, and leaves word in the inbox
    I/O thread    Offer.told   the word; until it comes, the worker counts as busy
    I/O thread    withdraw     before it decides anything about an idle worker; False: the offer was taken

It saves the way over the I/O thread: a call at a time is a third faster (``benchmarks/core_tasks.py``, ``core_actors.py``). Only the first
call of a burst goes this way; those behind it travel together, which is cheaper for many.

Without locks, because the I/O thread must not wait for a user thread: that may be stopped anywhere by a signal's handler or a finalizer
which waits for the I/O thread. One atomic step decides who has an offer (``Offer.claim``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .inbox import Inbox
from .peers import Peer
from .records import PUSHED, TaskRecord
from .tasks import wire_message

#: What becomes of an offer: a call is on its way; it could not be sent after all; its maker was interrupted before that (Ctrl-C); nothing.
SENT, REFUSED, ABANDONED, UNUSED = "sent", "refused", "abandoned", "unused"

_WITHDRAWN = object()


class Offer:
    """The right to send one call to ``peer``.

    ``told(record, fate)`` is called on the I/O thread: UNUSED, or SENT, which may be followed by REFUSED or ABANDONED.
    """

    __slots__ = ("_claims", "key", "peer", "told")

    def __init__(self, key: object, peer: Peer, told: Callable[[TaskRecord, str], None]) -> None:
        self.key = key
        self.peer = peer
        self.told = told
        self._claims: dict[int, object] = {}

    def claim(self, claimant: object) -> bool:
        """Take it for ``claimant``, unless another has. Atomic."""
        return self._claims.setdefault(0, claimant) is claimant

    def is_claimed_by(self, claimant: object) -> bool:
        return self._claims.get(0) is claimant


class Express:
    """All offers of this process: at most one for each shape of tasks and each actor."""

    def __init__(self) -> None:
        self._offers: dict[object, Offer] = {}

    # --- I/O thread ----------------------------------------------------------------------------------------

    def offer(self, key: object, peer: Peer, told: Callable[[TaskRecord, str], None]) -> Offer | None:
        """Let user threads send one call to an idle peer; None if there is an offer of that kind already."""
        if key in self._offers or peer.connection is None:
            return None
        peer.connection.allow_send_now()
        offer = self._offers[key] = Offer(key, peer, told)
        return offer

    def withdraw(self, offer: Offer) -> bool:
        """Take an offer back; False if a user thread has taken it, whose word is in the inbox."""
        if not offer.claim(_WITHDRAWN):
            return False
        self._forget(offer)
        return True

    def _on_sending(self, word: tuple[Offer, TaskRecord]) -> None:
        """A user thread was about to send, and is doing so if the offer is its own: the reply may be here before it is done."""
        offer, record = word
        if offer.is_claimed_by(record):
            self._forget(offer)
            offer.told(record, SENT)
        elif self.withdraw(offer):  # it has not come to that yet, and will post its call, or was interrupted
            offer.told(record, UNUSED)

    def _on_refused(self, word: tuple[Offer, TaskRecord]) -> None:
        offer, record = word
        offer.told(record, REFUSED)

    def _on_interrupted(self, word: tuple[Offer, TaskRecord]) -> None:
        offer, record = word
        if offer.is_claimed_by(record):
            offer.told(record, ABANDONED)

    def _forget(self, offer: Offer) -> None:
        if self._offers.get(offer.key) is offer:
            del self._offers[offer.key]

    # --- user threads --------------------------------------------------------------------------------------

    def send(self, key: object, record: TaskRecord, inbox: Inbox) -> bool:
        """Send a call without references from this thread; False if it has to be posted, as something is to go before it."""
        # Each step may be the last one of this thread, or a finalizer may make a call of its own behind it.
        offer = self._offers.get(key)
        if offer is None or not inbox.settled():
            return False
        peer = offer.peer
        connection = peer.connection
        index = peer.known_template(record.template)
        if connection is None or index is None:
            return False
        message = wire_message(index, record)
        word = (offer, record)
        sent: list[bool] = []
        note = partial(sent.append, True)
        try:
            # Before the offer is taken, and before the reply can be here.
            inbox.post_later(self._on_sending, word)
            if not offer.claim(record):
                return False
            record.state = PUSHED
            if not connection.send_now(message, lambda: peer.takes_calls and peer.known_template(record.template) == index, note):
                inbox.post(self._on_refused, word)
            return True
        except BaseException:
            if not sent:
                inbox.post_later(self._on_interrupted, word)
            raise
