"""The election among the control stores of a cluster, as one of them sees it: ``leadership`` decides, etcd keeps.

    PREFIX/leader              address of the leader; under its lease; the revision of its creation is the fencing number
    PREFIX/candidates/ADDRESS  leader and standbys, each under its own lease

Questions to etcd are asked in a thread, one at a time, and are begun by the loop: a control store whose loop stands still renews nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .leadership import LOOK_S, Campaign, Instruction, Leadership, Look, Register, Renew, Serve, StepDown
from .storage.etcd import Fence
from .storage.etcd_client import EtcdClient, EtcdRefused, created_at, end_of, fetch, put
from .storage.etcd_rows import Keys
from .storage.interface import StorageUnavailable

log = logging.getLogger("shoal.control_store")


def boot_time() -> float:
    """Return seconds since the machine was started, those included in which it slept: leases end meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Election:
    """
    Args:
        client: its time-out must be well below ``ttl_s``; belongs to the election from now on.
        address: where this control store serves when it leads.
        previous_lease: of a process that took our part before and has ended: given back, so that nobody waits for its end.
        on_lost: called once, on the loop, with the reason why this leader leads no more.
        on_candidates: called on the loop with the addresses of all control stores, when they change while this one leads.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: EtcdClient,
        prefix: str,
        address: str,
        ttl_s: float,
        previous_lease: int = 0,
        *,
        on_lost: Callable[[str], None],
        on_candidates: Callable[[list[str]], None] | None = None,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._loop = loop
        self._client = client
        self._keys = Keys(prefix)
        self._address = address.encode()
        self._ttl_s = math.ceil(ttl_s)
        self._on_lost = on_lost
        self._on_candidates = on_candidates
        self._clock = clock
        self._leadership = Leadership()
        self._thread = ThreadPoolExecutor(1, "shoal-election")
        self._previous_lease = previous_lease
        #: The one under which this candidate takes part; 0 before it does.
        self.lease = 0
        self._timer: asyncio.TimerHandle | None = None
        self._candidates: list[str] = []
        #: Address of the leader at the last look.
        self.leader = ""
        #: What is wrong with etcd, as long as it does not answer.
        self.problem = ""
        self._entered: asyncio.Future[None] = loop.create_future()
        self._won: asyncio.Future[Fence] = loop.create_future()

    async def enter(self) -> None:
        """Take part; return when etcd knows of this candidate."""
        self._tick()
        await self._entered

    async def win(self) -> Fence:
        """Return when this control store leads."""
        return await self._won

    def depose(self, why: str) -> None:
        """A write was refused: somebody else leads."""
        self._perform(self._leadership.refused(why))

    def close(self) -> None:
        """Leave: who stands by need not wait for the lease to end. Blocks for an answer of etcd, or its time-out."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._thread.shutdown()
        if self.lease:
            try:
                self._client.revoke(self.lease)
            except (EtcdRefused, StorageUnavailable) as error:
                log.warning("The lease of this control store ends by itself: %s", error)
        self._client.close()

    # --- the loop's side

    def _tick(self) -> None:
        self._timer = self._loop.call_later(LOOK_S, self._tick)
        self._perform(self._leadership.tick(self._clock()))

    def _perform(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Register():
                    self._ask(self._register, self._registered)
                case Renew(lease):
                    self._ask(lambda lease=lease: self._renew(lease), self._renewed)  # type: ignore[misc]
                case Look():
                    self._ask(self._look, self._looked)
                case Campaign(lease):
                    self._ask(lambda lease=lease: self._campaign(lease), self._campaigned)  # type: ignore[misc]
                case Serve(fencing):
                    holds = lambda: self._leadership.is_current(self._clock())  # noqa: E731
                    self._won.set_result(Fence(self._keys.leader, fencing, holds))
                case StepDown(why):
                    self._on_lost(why)

    def _ask(self, question: Callable[[], Any], answered: Callable[[Any, float], list[Instruction]]) -> None:
        asked_at = self._clock()

        def done(answer: asyncio.Future[Any]) -> None:
            if self._timer is None:
                return  # closed meanwhile
            error = answer.exception()
            if error is not None:
                self._unanswered(error)
                return
            self.problem = ""
            self._perform(answered(answer.result(), asked_at))

        self._loop.run_in_executor(self._thread, question).add_done_callback(done)

    def _unanswered(self, error: BaseException) -> None:
        if not isinstance(error, (EtcdRefused, StorageUnavailable)):
            log.error("A question to etcd failed here.", exc_info=error)
        elif str(error) != self.problem:
            log.warning("The election waits for etcd. %s", error)
        self.problem = str(error)
        self._perform(self._leadership.unanswered())

    def _registered(self, lease: tuple[int, int], asked_at: float) -> list[Instruction]:
        self.lease = lease[0]
        found = self._leadership.registered(*lease, asked_at)
        if not self._entered.done():
            self._entered.set_result(None)
        return found + self._leadership.tick(self._clock())

    def _renewed(self, answer: tuple[bool, list[str]], asked_at: float) -> list[Instruction]:
        is_there, candidates = answer
        if candidates != self._candidates and self._leadership.is_current(self._clock()):
            self._candidates = candidates
            if self._on_candidates is not None:
                self._on_candidates(candidates)
        return self._leadership.renewed(is_there, asked_at)

    def _looked(self, answer: tuple[list[Any], int], asked_at: float) -> list[Instruction]:
        leader, oldest = answer
        self.leader = leader[0].value.decode() if leader else ""
        return self._leadership.looked(leader[0].lease if leader else 0, oldest, self._clock())

    def _campaigned(self, fencing: int | None, asked_at: float) -> list[Instruction]:
        return self._leadership.campaigned(fencing) + self._leadership.tick(self._clock())

    # --- the thread's side

    def _register(self) -> tuple[int, int]:
        if self._previous_lease:
            self._client.revoke(self._previous_lease)
            self._previous_lease = 0
        lease = self._client.grant(self._ttl_s)
        self._client.txn([], [put(self._keys.candidates + self._address, b"", lease.ID)])
        return lease.ID, lease.TTL

    def _renew(self, lease: int) -> tuple[bool, list[str]]:
        is_there = self._client.keep_alive(lease)
        start = self._keys.candidates
        found = self._client.range(start, end_of(start)).kvs
        return is_there, [row.key[len(start) :].decode() for row in found]

    def _look(self) -> tuple[list[Any], int]:
        candidates = self._client.range(self._keys.candidates, end_of(self._keys.candidates)).kvs
        oldest = min(candidates, key=lambda row: row.create_revision, default=None)
        return self._client.range(self._keys.leader).kvs, oldest.lease if oldest is not None else 0

    def _campaign(self, lease: int) -> int | None:
        leader = self._keys.leader
        result = self._client.txn([created_at(leader, 0)], [put(leader, self._address, lease)], [fetch(leader)])
        if result.succeeded:
            return result.header.revision
        found = result.rows(0)
        # Ours: the answer to an earlier attempt was lost.
        return found[0].create_revision if found and found[0].lease == lease else None
