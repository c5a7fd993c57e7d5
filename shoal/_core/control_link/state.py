"""What is under way on a link, and what of it is sent again over the next connection.

    request ──▶ kept ── answered, withdrawn, given up ──▶ gone
    send    ──▶ kept ── a later request was answered ───▶ gone       (the other side handles in order, and answers what is durable)
    SubscribeActor, Watch ──▶ renewed over each connection, until UnsubscribeActor or the actor's death
    WatchGroup ─────────────▶ the same, until the group's removal
    NodeResources, ClusterChanged: of now only, never sent again

Numbers grow with the order of sending, which is the same over every connection. A request that must not take effect twice is marked with
its number (``Once``). What is sent without being answered is followed by a Ping, so that it does not stay here for long; the same Ping
tells a connection that is dead without a word.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import msgspec

from shoal._core.transport.silence import Silence
from shoal._core.wire.messages import (
    ACTOR_DEAD,
    ActorUpdate,
    ClusterChanged,
    GroupChanged,
    KillActor,
    KvDelete,
    KvPut,
    Message,
    NodeResources,
    Once,
    Ping,
    Published,
    SubscribeActor,
    UnsubscribeActor,
    Watch,
    WatchGroup,
)

#: Requests that must not take effect twice, and are not so by nature.
MARKED = (KvPut, KvDelete, KillActor)
#: Of no interest to a connection other than the one they were meant for.
_OF_NOW = (NodeResources, ClusterChanged)
_PEER = b""


class Send(msgspec.Struct, frozen=True):
    """Put on the connection: as a request if it has a number, whose answer goes to ``answered``."""

    message: Any
    number: int = 0


class GiveUp(msgspec.Struct, frozen=True):
    """The request has waited for too long for a connection: tell who waits."""

    number: int


class HangUp(msgspec.Struct, frozen=True):
    """The other side is silent: end the connection, and ask for another."""


Instruction = Send | GiveUp | HangUp


class _Kept(msgspec.Struct):
    message: Any
    is_request: bool
    since: float


class LinkState:
    """One link's. Pure: each method returns what to do; ``now`` is a monotonic clock's.

    Args:
        client: stands for this process in marks of requests.
        silence_s: seconds without a word after which a connection counts as lost.
        beat_s: seconds between two looks, and two Pings.
        give_up_s: seconds that a request waits without a connection.
        always: beat also when nothing is under way, so that the other side hears from us.
    """

    def __init__(self, client: bytes, *, silence_s: float, beat_s: float, give_up_s: float = math.inf, always: bool = False) -> None:
        self._client = client
        self._give_up_s = give_up_s
        self._always = always
        self.silence_s = silence_s
        self._silence = Silence(silence_s, beat_s)
        self.is_up = False
        self._down_since = 0.0
        self._last = 0
        #: Number -> what must not get lost, in the order of sending.
        self._kept: dict[int, _Kept] = {}
        #: Numbers of those that are no requests.
        self._unconfirmed: deque[int] = deque()
        self._subscribed: dict[bytes, None] = {}
        self._groups: dict[bytes, None] = {}
        #: Channel -> the last number that came.
        self._watched: dict[str, int] = {}
        self._ping = 0

    # --- what this process wants

    def send(self, message: Message, now: float) -> list[Instruction]:
        kind = type(message)
        if kind is SubscribeActor:
            self._subscribed[message.actor_id] = None  # type: ignore[attr-defined]
        elif kind is UnsubscribeActor:
            self._subscribed.pop(message.actor_id, None)  # type: ignore[attr-defined]
        elif kind is WatchGroup:
            self._groups[message.placement_group_id] = None  # type: ignore[attr-defined]
        elif kind not in _OF_NOW:
            self._unconfirmed.append(self._keep(message, False, now))
        return [Send(message)] if self.is_up else []

    def request(self, message: Any, now: float) -> tuple[int, list[Instruction]]:
        """Return the request's number, too."""
        if type(message) is Watch:
            self._watched[message.channel] = message.after
        number = self._keep(message, True, now)
        return number, [self._sending(number)] if self.is_up else []

    def withdraw(self, number: int) -> None:
        """Nobody waits for the answer any more."""
        self._kept.pop(number, None)

    # --- what happens

    def connected(self, now: float) -> list[Instruction]:
        """A connection stands: everything that is not known to have arrived goes over it."""
        self.is_up = True
        self._silence.hear(_PEER, now)
        asked = {kept.message.channel for kept in self._kept.values() if type(kept.message) is Watch}
        again: list[Instruction] = [self._sending(number) for number in self._kept]
        again += [Send(SubscribeActor(actor_id)) for actor_id in self._subscribed]
        again += [Send(WatchGroup(group)) for group in self._groups]
        for channel, after in self._watched.items():
            if channel not in asked:
                again.append(Send(Watch(0, channel, after), self._next()))
        return again

    def lost(self, now: float) -> None:
        """The connection has ended."""
        self.is_up, self._down_since, self._ping = False, now, 0
        self._silence.forget(_PEER)

    def heard(self, message: Message | None, now: float) -> None:
        """Something came, unasked or as an answer (None)."""
        self._silence.hear(_PEER, now)
        if type(message) is ActorUpdate:
            if message.state == ACTOR_DEAD:
                self._subscribed.pop(message.actor_id, None)
        elif type(message) is GroupChanged:
            if message.state == "REMOVED":
                self._groups.pop(message.placement_group_id, None)
        elif type(message) is Published:
            self._watched[message.channel] = message.sequence

    def answered(self, number: int, now: float) -> None:
        """The request has its answer, which also says that all before it is durable."""
        self.refused(number, now)
        while self._unconfirmed and self._unconfirmed[0] < number:
            self._kept.pop(self._unconfirmed.popleft(), None)

    def refused(self, number: int, now: float) -> None:
        """The answer is no, which says nothing of what was sent before: the disk may be full."""
        self.heard(None, now)
        self._kept.pop(number, None)
        if number == self._ping:
            self._ping = 0

    def tick(self, now: float) -> list[Instruction]:
        """Every ``beat_s``, while ``must_beat``."""
        if not self.is_up:
            late = [number for number, kept in self._kept.items() if kept.is_request and self._waited(kept, now) >= self._give_up_s]
            for number in late:
                del self._kept[number]
            return [GiveUp(number) for number in late]
        if self._silence.look(now):
            return [HangUp()]
        if self._ping or not self.must_beat:
            return []
        self._ping = self._next()
        return [Send(Ping(0), self._ping)]

    @property
    def must_beat(self) -> bool:
        """Whether the silence of the other side would hide something from this process, or this process's from it."""
        if not self.is_up:
            return self._give_up_s < math.inf and bool(self._kept)
        return self._always or bool(self._kept or self._subscribed or self._watched or self._ping)

    def check(self) -> None:
        assert list(self._kept) == sorted(self._kept)
        assert list(self._unconfirmed) == [number for number, kept in self._kept.items() if not kept.is_request]
        assert self.is_up or not self._ping

    # --- private

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _keep(self, message: Any, is_request: bool, now: float) -> int:
        number = self._next()
        self._kept[number] = _Kept(message, is_request, now)
        return number

    def _sending(self, number: int) -> Send:
        kept = self._kept[number]
        if not kept.is_request:
            return Send(kept.message)
        if isinstance(kept.message, MARKED):
            kept.message.once = Once(self._client, number, next(iter(self._kept)))
        elif type(kept.message) is Watch:
            kept.message.after = self._watched[kept.message.channel]
        return Send(kept.message, number)

    def _waited(self, kept: _Kept, now: float) -> float:
        return now - max(kept.since, self._down_since)
