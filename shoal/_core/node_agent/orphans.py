"""Objects whose owners live on other nodes, and what becomes of them when such an owner dies.

    node of the object   ──WatchOwner(owner)──▶ agent of the owner's node         when the first object of that owner lies here
                         ◀──ListOwned(owner)──  the owner has ended: it adopts the objects where they lie (``adopted_objects.py``)
    the owner's node has died: nobody is left to ask, and the objects are adopted here

What an owner that leaves in good order has handed over is adopted already; what it did not hand over nobody holds, and the adoption ends
with its grace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Protocol

from shoal._base.ids import maker_of
from shoal._core.node_agent.adopted_objects import AdoptedObjects
from shoal._core.node_agent.neighbours import Neighbours
from shoal._core.node_agent.peers import Peer, Store
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import Ack, Address, ListOwned, Message, NodeRecord, OwnedList, PrimaryCopy, WatchOwner

log = logging.getLogger("shoal.node_agent")

#: Seconds until a node that could not be reached is asked again.
RETRY_S = 0.1


class OwnerStore(Store, Protocol):
    """The object store, which knows whose its objects are."""

    def owners(self) -> Iterable[tuple[Address, bytes]]:
        """(owner, one of its objects), for all owners of primary copies here."""


class Orphans:
    """One node's part in it, as the one where the objects lie, and as the owners'. Used on the loop.

    Args:
        me: the node agent's address.
        node: finds the record of a living node.
        connected: worker ids of the processes of this node that live.
        grace_s: how long a node may be unknown here until it counts as dead.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        me: Address,
        store: OwnerStore,
        adopted: AdoptedObjects,
        neighbours: Neighbours,
        node: Callable[[bytes], NodeRecord | None],
        connected: Callable[[], Collection[bytes]],
        grace_s: float,
    ) -> None:
        self._loop = loop
        self._me = me
        self._store = store
        self._adopted = adopted
        self._neighbours = neighbours
        self._node = node
        self._connected = connected
        self._grace_s = grace_s
        #: Owners of objects here whose agents know that, until none of their objects is here.
        self._told: set[bytes] = set()
        #: Those of them that have ended: of whatever they own from now on word is sent again.
        self._ended: set[bytes] = set()
        #: Owners on nodes that are not known here -> since when.
        self._unknown: dict[bytes, float] = {}
        #: Owners of this node -> where else objects of theirs lie.
        self._holders: dict[bytes, set[bytes]] = {}
        #: What the ids of their objects have in common -> the owner, until all of its objects are adopted.
        self._makers: dict[bytes, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def handlers(self) -> dict[type[Message], Callable[[Peer, Any], None]]:
        return {WatchOwner: self._on_watch, ListOwned: self._on_list}

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # --- where the objects lie -----------------------------------------------------------------------------

    def sealed(self, object_id: bytes) -> None:
        """An object is stored here."""
        stored = self._store.stored(object_id)
        if stored is not None:
            owner = stored[0].worker_id
            if owner not in self._told or owner in self._ended:
                self._notice(stored[0], object_id)

    def tick(self) -> None:
        """Look for owners that are new: objects come here by moves and promotions, too."""
        owners = {owner.worker_id: (owner, object_id) for owner, object_id in self._store.owners()}
        self._told &= owners.keys()
        self._ended &= owners.keys()
        self._unknown = {worker_id: since for worker_id, since in self._unknown.items() if worker_id in owners}
        for worker_id in owners.keys() - self._told:
            self._notice(*owners[worker_id])

    def nodes_died(self, node_ids: Collection[bytes]) -> None:
        for owner, _ in list(self._store.owners()):
            if owner.node_id in node_ids:
                self._bereaved(owner.worker_id)

    def _notice(self, owner: Address, object_id: bytes) -> None:
        if owner.node_id == self._me.node_id:
            return
        if self._node(owner.node_id) is None:  # dead, or so new that this node has not heard of it
            if self._loop.time() - self._unknown.setdefault(owner.worker_id, self._loop.time()) >= self._grace_s:
                self._bereaved(owner.worker_id)
        elif owner.worker_id != owner.node_id:  # an agent lives as long as its node
            self._told.add(owner.worker_id)
            self._spawn(self._tell(owner, maker_of(object_id)))

    def _bereaved(self, worker_id: bytes) -> None:
        self._told.add(worker_id)
        self._ended.add(worker_id)
        self._adopted.owner_killed(worker_id)

    async def _tell(self, owner: Address, maker: bytes) -> None:
        try:
            await self._neighbours.ask(owner.node_id, WatchOwner(0, owner.worker_id, self._me.node_id, maker))
        except (OSError, RequestFailed) as error:
            log.debug("Node %s does not know that objects of its are here: %s", owner.node_id.hex(), error)
            await asyncio.sleep(RETRY_S)
            self._told.discard(owner.worker_id)

    def _on_list(self, connection: Peer, message: ListOwned) -> None:
        self._ended.add(message.owner)
        objects = self._store.objects_of(message.owner)
        owner = Address(message.owner, b"", "")
        connection.send(OwnedList(message.rid, [PrimaryCopy(object_id, nbytes, owner, refs) for object_id, nbytes, refs in objects]))

    # --- where their owners lived --------------------------------------------------------------------------

    def _on_watch(self, connection: Peer, message: WatchOwner) -> None:
        connection.send(Ack(message.rid))
        self._makers[message.maker] = message.owner
        self._holders.setdefault(message.owner, set()).add(message.node_id)
        if message.owner not in self._connected():
            self.owner_ended(message.owner)

    def owner_ended(self, worker_id: bytes) -> None:
        """A process of this node has ended: take over what it owned on others."""
        node_ids = self._holders.pop(worker_id, ())
        if node_ids:
            self._spawn(self._take_over(worker_id, node_ids))

    def awaits(self, object_id: bytes) -> bool:
        """Whether the object may be one of those that are to be adopted."""
        return maker_of(object_id) in self._makers

    async def _take_over(self, worker_id: bytes, node_ids: Iterable[bytes]) -> None:
        await asyncio.gather(*(self._take_over_from(node_id, worker_id) for node_id in node_ids))
        if worker_id not in self._holders:
            for maker in [maker for maker, owner in self._makers.items() if owner == worker_id]:
                del self._makers[maker]

    async def _take_over_from(self, node_id: bytes, worker_id: bytes) -> None:
        while self._node(node_id) is not None:
            try:
                reply: OwnedList = await self._neighbours.ask(node_id, ListOwned(0, worker_id))
            except (OSError, RequestFailed) as error:
                log.debug("Node %s does not say what it has of a process that has ended: %s", node_id.hex(), error)
                await asyncio.sleep(RETRY_S)
            else:
                self._adopted.take_over(worker_id, node_id, [(copy.object_id, copy.nbytes, copy.refs) for copy in reply.objects])
                return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
