"""Who leads a cluster whose tables lie in etcd, seen from one control store. Pure: times and answers are passed in.

                                        ┌── lease ended ──┐
    outside ── Register: registered ──▶ standby ◀─────────┘         (looks every ``LOOK_S`` whether somebody leads)
                                          │ nobody does, no candidate is older: Campaign, won
                                          ▼
                                        leading ── lease ended, or not renewed for its whole time, or a write was refused ──▶ over

The lease counts from the moment in which its renewal was *asked* for, so that it ends here no later than in etcd. A leader whose lease may
have ended tells nobody anything (``is_current``), and steps down for good: its process starts anew, as a standby.
"""

from __future__ import annotations

from typing import Literal

import msgspec

#: Seconds between two looks of a standby, and of everybody at its own lease.
LOOK_S = 0.25

State = Literal["outside", "standby", "leading", "over"]


class Register(msgspec.Struct, frozen=True):
    """Get a lease, and write down under it that there is this candidate."""


class Renew(msgspec.Struct, frozen=True):
    lease: int


class Look(msgspec.Struct, frozen=True):
    """Read who leads, and who has been a candidate for the longest time."""


class Campaign(msgspec.Struct, frozen=True):
    """Become the leader under this lease, if there is none."""

    lease: int


class Serve(msgspec.Struct, frozen=True):
    """This control store leads. ``fencing``: higher than of all leaders before."""

    fencing: int


class StepDown(msgspec.Struct, frozen=True):
    why: str


Instruction = Register | Renew | Look | Campaign | Serve | StepDown
#: Instructions that are questions to etcd. One is under way at a time; its outcome comes as a call of the method beside it.
QUESTIONS = (Register, Renew, Look, Campaign)  # registered, renewed, looked, campaigned; or ``unanswered``


class Leadership:
    """``now``: seconds of a clock that runs on while the machine sleeps."""

    def __init__(self) -> None:
        self.state: State = "outside"
        self._lease = 0
        self._ttl_s = 0.0
        #: Until when the lease is there for certain, and when it is renewed.
        self._until = self._renew_at = 0.0
        self._is_asking = False

    def is_current(self, now: float) -> bool:
        """Whether this is the leader, and nobody else can be."""
        return self.state == "leading" and now < self._until

    def tick(self, now: float) -> list[Instruction]:
        """Every ``LOOK_S``."""
        if self.state == "leading" and now >= self._until:
            return self.refused(f"its lease could not be renewed for {self._ttl_s:g} s: it, or etcd, stood still")
        if self._is_asking or self.state == "over":
            return []
        self._is_asking = True
        if self.state == "outside":
            return [Register()]
        if now >= self._renew_at:
            return [Renew(self._lease)]
        if self.state == "standby":
            return [Look()]
        self._is_asking = False
        return []

    def registered(self, lease: int, ttl_s: float, asked_at: float) -> list[Instruction]:
        self._is_asking = False
        self.state, self._lease, self._ttl_s = "standby", lease, ttl_s
        self._extend(asked_at)
        return []

    def renewed(self, is_there: bool, asked_at: float) -> list[Instruction]:
        self._is_asking = False
        if is_there:
            self._extend(asked_at)
        elif self.state == "leading":
            return self.refused("its lease has ended")
        elif self.state == "standby":
            self.state = "outside"
        return []

    def looked(self, leader: int, oldest: int, now: float) -> list[Instruction]:
        """``leader``: the lease of who leads, 0 if nobody does. Ours, if the answer to a campaign was lost: that is asked again.

        ``oldest``: the lease of the control store that has been a candidate for the longest time. Only that one campaigns: the others may
        have started when nobody led, and nodes and drivers have not been told where they are.
        """
        self._is_asking = False
        if leader not in (0, self._lease) or oldest != self._lease or self.state != "standby" or now >= self._until:
            return []
        self._is_asking = True
        return [Campaign(self._lease)]

    def campaigned(self, fencing: int | None) -> list[Instruction]:
        """``fencing``: None if another one was faster."""
        self._is_asking = False
        if fencing is None or self.state != "standby":
            return []
        self.state, self._renew_at = "leading", 0.0  # renewed at once: the tables are read next
        return [Serve(fencing)]

    def unanswered(self) -> list[Instruction]:
        """etcd did not answer the question under way; what was asked may have been done."""
        self._is_asking = False
        return []

    def refused(self, why: str) -> list[Instruction]:
        """Somebody else leads now."""
        if self.state == "over":
            return []
        self.state = "over"
        return [StepDown(why)]

    def check(self) -> None:
        assert (self.state == "outside") <= (not self.is_current(0.0))
        assert self._renew_at <= self._until
        assert self.state == "outside" or self._lease

    def _extend(self, asked_at: float) -> None:
        self._until = max(self._until, asked_at + self._ttl_s)
        self._renew_at = asked_at + self._ttl_s / 3
