"""A control store whose tables lie in etcd: one of several, of which one serves.

enter ─ etcd knows of it ─ win ─ nobody else leads ─ tables read ─▶ serve ─┬─ end in good order: the lease is given back
                                                                          └─ leads no more: the process starts anew, as a standby

The port is bound from the start, but nobody listens: whoever tries a standby is refused at once, and tries the next.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from shoal._base.storage_place import StoragePlace
from shoal._core.control_store.election import Election
from shoal._core.control_store.storage import StorageUnavailable
from shoal._core.control_store.storage.etcd import EtcdStorage
from shoal._core.control_store.storage.etcd_client import EtcdClient
from shoal._core.transport.addresses import TcpAddress, announced, parse_address

log = logging.getLogger("shoal.control_store")

#: Seconds that etcd has for its first answer.
ENTER_S = 10.0
#: Seconds beyond its lease that a leader which died just now may still be in the way.
GRACE_S = 2.0
#: Seconds until the tables are read again, if etcd did not answer.
RETRY_S = 0.25


class Candidate:
    """
    Args:
        listen: where to serve; a port of 0 is chosen here, so that everybody can be told.
        node_ip: what others connect to if that is all addresses of this machine.
        lease_s: seconds after which a leader that does not renew its lease has lost it.
        previous_lease: of an earlier process in our place, whose end is certain; 0 for none.
        on_lost: called once with the reason why this control store leads no more.
        on_candidates: called with the addresses of all control stores whenever they change, while this one leads.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        place: StoragePlace,
        listen: str,
        node_ip: str,
        lease_s: float,
        previous_lease: int,
        *,
        on_lost: Callable[[str], None],
        on_candidates: Callable[[list[str]], None],
    ) -> None:
        self._loop = loop
        self._place = place
        self._lease_s = lease_s
        self._reserved, self.bound = _reserve(listen)
        # A renewal must fail early enough for two more: at another member, or when this one has elected its leader.
        client = EtcdClient(place.endpoints, place.access, timeout_s=lease_s / 3)
        address = announced(self.bound, node_ip)
        self.election = Election(
            loop, client, place.prefix, address, lease_s, previous_lease, on_lost=on_lost, on_candidates=on_candidates
        )  # fmt: skip

    async def enter(self, *, patient: bool) -> None:
        """Return when etcd knows of this control store; ConnectionError if that takes too long and we are not ``patient``."""
        entering = asyncio.ensure_future(self.election.enter())
        await asyncio.wait([entering], timeout=None if patient else ENTER_S)
        if not entering.done():
            entering.cancel()
            raise ConnectionError(
                f"etcd could not be used within {ENTER_S:g} s at {', '.join(self._place.endpoints)}: {self.election.problem} See whether "
                "it runs there, and SHOAL_ETCD_USER, SHOAL_ETCD_PASSWORD and SHOAL_ETCD_CA."
            )
        await entering

    async def win(self, *, patient: bool) -> EtcdStorage:
        """Return the tables, all of them read, when this control store leads.

        Deposed if it has lost the lease meanwhile. RuntimeError if another one leads for longer than a lease, and we are not ``patient``.
        """
        winning = asyncio.ensure_future(self.election.win())
        if not patient:
            await asyncio.wait([winning], timeout=self._lease_s + GRACE_S)
            if not winning.done():
                raise RuntimeError(
                    f"Another control store leads the cluster with the tables in {self._place}: "
                    f"{self.election.leader.removeprefix('tcp:')}. Give --standby to take over when it is gone, or another prefix to "
                    "start a cluster of its own."
                )
        fence = await winning
        log.warning("This control store leads now; its fencing number is %d.", fence.revision)
        client = EtcdClient(self._place.endpoints, self._place.access)
        while True:
            try:
                # In a thread: it reads all tables, and the lease is renewed meanwhile.
                return await self._loop.run_in_executor(None, EtcdStorage, client, self._place.prefix, fence)
            except StorageUnavailable as error:
                log.warning("Reading the tables again in %g s. %s", RETRY_S, error)
                await asyncio.sleep(RETRY_S)

    def release_port(self) -> None:
        """Whoever listens there now holds it."""
        self._reserved.close()

    def close(self) -> None:
        """Give the lease back. Blocks as long as etcd takes to answer."""
        self._reserved.close()
        self.election.close()


def _reserve(listen: str) -> tuple[socket.socket, str]:
    """Bind without listening. A later socket may bind there, too, and listen; nobody else of the system gets the port."""
    where = parse_address(listen)
    if not isinstance(where, TcpAddress):
        raise ValueError(f"A control store with a standby needs a TCP address, got {listen!r}.")
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    reserved = socket.socket(family)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:  # as who listens there later
        reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        reserved.bind((where.host, where.port))
    except OSError:
        reserved.close()
        raise
    return reserved, str(TcpAddress(where.host, reserved.getsockname()[1]))
