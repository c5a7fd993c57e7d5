"""A rendezvous: tasks arrive with facts, whoever waits goes on when enough have."""

from __future__ import annotations

import asyncio

import shoal


@shoal.remote(num_cpus=0)
class Meeting:
    def __init__(self):
        self.facts, self.changed = [], asyncio.Condition()

    async def arrive(self, *facts):
        """Say that you are here."""
        async with self.changed:
            self.facts += facts
            self.changed.notify_all()

    async def wait(self, count):
        """Return all facts once there are ``count``."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.facts) >= count)
        return self.facts


def first_arrival(meeting, count=1):
    """Block until ``count`` facts have arrived; return the last of them."""
    return shoal.get(meeting.wait.remote(count), timeout=20)[count - 1]
