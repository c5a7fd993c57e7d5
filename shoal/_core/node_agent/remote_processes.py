"""Processes of other nodes on which something here depends: owners of objects that lie here, borrowers of objects that were adopted here.

    this node   ──WatchProcess──▶ agent of its node      at the first such object
                ◀──ListOwned────  it has ended           its agent adopts what it owned, where it lies; what it borrowed is given back
    its node has died: nobody is left to ask, and what it owned is adopted here

What an owner that leaves in good order has handed over is adopted already; what it did not hand over nobody holds, and the adoption ends
with its grace. A process whose connection is lost has not ended for that.
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
from shoal._core.wire.messages import Ack, Address, ListOwned, Message, NodeRecord, OwnedList, PrimaryCopy, WatchProcess

log = logging.getLogger("shoal.node_agent")

#: Seconds until a node that could not be reached is asked again.
RETRY_S = 0.1


class OwnerStore(Store, Protocol):
    """The object store, which knows whose its objects are."""

    def owners(self) -> Iterable[tuple[Address, bytes]]:
        """(owner, one of its objects), for all owners of primary copies here."""


class RemoteProcesses:
    """One node's part in it, as the one that depends on them, and as the one where they live. Used on the loop.

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
        #: Those whose end will be told, and agents of other nodes, by their ids; and those of them of whose objects their agents know.
        self._watched: dict[bytes, Address] = {}
        self._known_owners: set[bytes] = set()
        #: Those that have ended, as long as objects of theirs are here.
        self._ended: set[bytes] = set()
        #: Processes of this node -> the nodes that depend on them.
        self._watchers: dict[bytes, list[bytes]] = {}
        #: What the ids of their objects have in common -> the owner, until all of its objects are adopted.
        self._makers: dict[bytes, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def handlers(self) -> dict[type[Message], Callable[[Peer, Any], None]]:
        return {WatchProcess: self._on_watch, ListOwned: self._on_list}

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # --- where something depends on them -------------------------------------------------------------------

    def watched(self) -> Collection[bytes]:
        """Return those that have not ended, as far as is known here."""
        return self._watched.keys()

    def watch(self, process: Address, object_id: bytes = b"") -> None:
        """Hear of the end of a process of another node. ``object_id``: it owns this, which lies here."""
        worker_id = process.worker_id
        if process.node_id != self._me.node_id and (worker_id not in self._watched or (object_id and worker_id not in self._known_owners)):
            self._watched[worker_id] = process
            if object_id:
                self._known_owners.add(worker_id)
            self._spawn(self._tell(process, maker_of(object_id)))

    def sealed(self, object_id: bytes) -> None:
        """An object is stored here."""
        stored = self._store.stored(object_id)
        if stored is not None:
            self.watch(stored[0], object_id)

    def tick(self) -> None:
        """Look for owners that are new: objects come here by moves and promotions, too."""
        owners = {owner.worker_id: (owner, object_id) for owner, object_id in self._store.owners()}
        self._ended &= owners.keys()
        for worker_id, (owner, object_id) in owners.items():
            if worker_id not in self._ended:
                self.watch(owner, object_id)
            elif self._node(owner.node_id) is None:  # and the agent that had adopted them has died, too
                self._adopted.owner_killed(worker_id)

    def nodes_died(self, node_ids: Collection[bytes]) -> None:
        for process in [process for process in self._watched.values() if process.node_id in node_ids]:
            self._bereaved(process.worker_id)

    def _bereaved(self, worker_id: bytes) -> None:
        self._adopted.owner_killed(worker_id)
        self._is_over(worker_id)

    def _is_over(self, worker_id: bytes) -> None:
        self._watched.pop(worker_id, None)
        self._known_owners.discard(worker_id)
        self._ended.add(worker_id)
        self._adopted.borrower_ended(worker_id)

    async def _tell(self, process: Address, maker: bytes) -> None:
        message = WatchProcess(0, process.worker_id, self._me.node_id, maker)
        unknown_since = self._loop.time()
        while process.worker_id in self._watched:
            if self._node(process.node_id) is not None:
                if process.worker_id == process.node_id:
                    return  # an agent lives as long as its node
                unknown_since = self._loop.time()
                try:
                    await self._neighbours.ask(process.node_id, message)
                    return
                except (OSError, RequestFailed) as error:
                    log.debug("Node %s does not know that something here depends on it: %s", process.node_id.hex(), error)
            elif self._loop.time() - unknown_since >= self._grace_s:  # not only so new that this node has not heard of it
                self._bereaved(process.worker_id)
                return
            await asyncio.sleep(RETRY_S)

    def _on_list(self, connection: Peer, message: ListOwned) -> None:
        owner = Address(message.owner, b"", "")
        objects = self._store.objects_of(message.owner)
        connection.send(OwnedList(message.rid, [PrimaryCopy(object_id, nbytes, owner, refs) for object_id, nbytes, refs in objects]))
        self._is_over(message.owner)

    # --- where they live -----------------------------------------------------------------------------------

    def _on_watch(self, connection: Peer, message: WatchProcess) -> None:
        connection.send(Ack(message.rid))
        if message.maker:
            self._makers[message.maker] = message.process
        watchers = self._watchers.setdefault(message.process, [])
        if message.node_id not in watchers:
            watchers.append(message.node_id)
        if message.process not in self._connected():
            self.ended(message.process)

    def ended(self, worker_id: bytes) -> None:
        """A process of this node has ended: take over what it owned on others."""
        node_ids = self._watchers.pop(worker_id, ())
        if node_ids:
            self._spawn(self._take_over(worker_id, node_ids))

    def awaits(self, object_id: bytes) -> bool:
        """Whether the object may be one of those that are to be adopted."""
        return maker_of(object_id) in self._makers

    async def _take_over(self, worker_id: bytes, node_ids: Iterable[bytes]) -> None:
        await asyncio.gather(*(self._take_over_from(node_id, worker_id) for node_id in node_ids))
        if worker_id not in self._watchers:
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
