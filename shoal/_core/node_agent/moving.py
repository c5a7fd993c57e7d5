"""Primary copies move from a node that leaves to one that stays.

    leaving node      --TakeOver(copies)--> another node, the owner's if it has room
                                              pulls a copy of each, which is the primary copy from now on
                      <-----TakenOver------   --ObjectsMoved--> agent of the owner's node --> owner
                      <------------------------------FreeObjects------------------------------'
                      (readers that have the object pinned keep it, later ones hear the new place from the owner)

An owner that has no use for the object any more frees it in both places. One that does not know yet that it is stored (the word of the
task's end is on its way) remembers the move until it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from shoal._core.node_agent.adopted_objects import AdoptedObjects
from shoal._core.node_agent.neighbours import Neighbours
from shoal._core.node_agent.peers import Peer, Process
from shoal._core.object_store.client import StoreClient
from shoal._core.object_store.pulls import Urgency
from shoal._core.object_store.store import ObjectStore
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import Address, FreeObjects, ObjectsMoved, PrimaryCopy, TakenOver, TakeOver

log = logging.getLogger("shoal.node_agent")


class Moving:
    """One node's part in it, as the one that leaves, the one that takes over, and the owner's. Used on the loop.

    Args:
        client: of the store, from inside.
        process: finds the connection of a process of this node by its id.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node_id: bytes,
        store: ObjectStore,
        client: StoreClient,
        adopted: AdoptedObjects,
        neighbours: Neighbours,
        process: Callable[[bytes], Peer | None],
    ) -> None:
        self._loop = loop
        self._node_id = node_id
        self._store = store
        self._client = client
        self._adopted = adopted
        self._neighbours = neighbours
        self._process = process
        self._under_way: set[asyncio.Task[None]] = set()

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {TakeOver: self._on_take_over, ObjectsMoved: self._on_moved}

    def close(self) -> None:
        for task in self._under_way:
            task.cancel()

    async def copy_off(self, node_id: bytes, object_ids: Sequence[bytes]) -> list[bytes]:
        """Have another node take over these primary copies; return those that it has now. Raises OSError, RequestFailed."""
        copies = []
        for object_id in object_ids:
            stored = self._store.stored(object_id)
            if stored is not None:
                owner, nbytes, refs = stored
                copies.append(PrimaryCopy(object_id, nbytes, owner, refs))
        reply: TakenOver = await self._neighbours.ask(node_id, TakeOver(0, self._node_id, copies))
        return reply.object_ids

    # --- the node that takes over ---

    def _on_take_over(self, connection: Peer, message: TakeOver) -> None:
        self._spawn(self._take_over(connection, message))

    async def _take_over(self, connection: Peer, message: TakeOver) -> None:
        here = await asyncio.gather(*(self._take(message.source, copy) for copy in message.copies))
        taken = [copy for copy, is_here in zip(message.copies, here, strict=True) if is_here]
        connection.send(TakenOver(message.rid, [copy.object_id for copy in taken]))
        by_owner: dict[Address, list[tuple[bytes, int]]] = {}
        for copy in taken:
            by_owner.setdefault(copy.owner, []).append((copy.object_id, copy.nbytes))
        for owner, objects in by_owner.items():
            news = ObjectsMoved(owner, message.source, self._node_id, objects)
            if owner.node_id == self._node_id:
                self._tell_owner(news, is_back=False)
            else:
                self._neighbours.tell(owner.node_id, news)

    async def _take(self, source: bytes, copy: PrimaryCopy) -> bool:
        object_id = copy.object_id
        try:
            (place,) = await self._client.pin([object_id], [(source, copy.nbytes)], Urgency.AHEAD)
        except RequestFailed as error:
            log.warning("This node has no room for object %s of a node that leaves: %s", object_id.hex(), error)
            return False
        if place is None:
            return False
        taken = self._store.promote(object_id, copy.owner, copy.refs)
        self._client.unpin(object_id)
        return taken

    # --- the owner's node ---

    def _on_moved(self, connection: Peer, message: ObjectsMoved) -> None:
        tag = connection.tag
        self._tell_owner(message, is_back=isinstance(tag, Process) and tag.address == message.owner)

    def _tell_owner(self, news: ObjectsMoved, *, is_back: bool) -> None:
        """Pass the news on to whoever owns the objects now. ``is_back``: their owner leaves, and has passed it on itself."""
        unknown = []
        for one in news.objects:
            if self._adopted.state.moved(one[0], news.source, news.node_id):
                self._neighbours.tell(news.source, FreeObjects([one[0]]))
            else:
                unknown.append(one)
        process = None if is_back else self._process(news.owner.worker_id)
        if not unknown:
            return
        if process is not None:
            process.send(ObjectsMoved(news.owner, news.source, news.node_id, unknown))
            return
        # Its owner has ended. What lies here may have holders that say so soon; what lies elsewhere nobody can find.
        object_ids = [object_id for object_id, _ in unknown]
        self._neighbours.tell(news.source, FreeObjects(object_ids))
        if news.node_id != self._node_id:
            self._neighbours.tell(news.node_id, FreeObjects(object_ids))
            return
        for object_id in object_ids:
            self._adopted.sealed(object_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
