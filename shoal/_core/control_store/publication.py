"""Channels of numbered changes that others follow: "nodes", "jobs", "actors".

A watcher says the last number it has seen and gets what came after. The backlog is bounded: a watcher that was away for too long sees a gap
between its number and the first it gets, and must list the table anew. Nothing is stored; a control store that was started again
counts on from far beyond what the one before it can have reached, so a watcher of both sees a gap, too.
"""

from __future__ import annotations

from collections import deque

import msgspec

from shoal._core.wire.messages import Published

CHANNELS = ("nodes", "jobs", "actors")
#: Messages kept per channel: a few seconds of a busy cluster.
BACKLOG = 1000
NUMBERS_PER_START = 1 << 40


class PublicationStatistics(msgspec.Struct, frozen=True):
    published: int
    kept: int


class _Channel(msgspec.Struct):
    sequence: int = 0
    backlog: deque[Published] = msgspec.field(default_factory=lambda: deque(maxlen=BACKLOG))


class Publication:
    def __init__(self) -> None:
        self._channels = {name: _Channel() for name in CHANNELS}

    def started(self, times: int) -> None:
        """The control store was started for the n-th time on its tables; before the first change."""
        for entry in self._channels.values():
            entry.sequence = times * NUMBERS_PER_START

    def publish(self, channel: str, key: bytes, payload: bytes) -> Published:
        """Number the change and keep it for those who come later."""
        entry = self._channels[channel]
        entry.sequence += 1
        message = Published(channel, entry.sequence, key, payload)
        entry.backlog.append(message)
        return message

    def after(self, channel: str, sequence: int) -> list[Published]:
        """Return what is still there from beyond ``sequence``. KeyError for an unknown channel."""
        entry = self._channels[channel]
        return [message for message in entry.backlog if message.sequence > sequence]

    def statistics(self) -> PublicationStatistics:
        entries = self._channels.values()
        return PublicationStatistics(
            sum(entry.sequence % NUMBERS_PER_START for entry in entries), sum(len(entry.backlog) for entry in entries)
        )

    def check(self) -> None:
        for entry in self._channels.values():
            numbers = [message.sequence for message in entry.backlog]
            assert numbers == list(range(entry.sequence - len(numbers) + 1, entry.sequence + 1))
