"""What nodes spill behind a URL: owners learn where it lies, so that it is restored when its node dies; and what nobody needs is deleted.

    store, file written ── ObjectsSpilled ──▶ agent of the owner's node ──▶ owner
    owner, node is dead ── PromoteCopy(spilled) ──▶ its own agent: the object is one of this node now, read when it is needed
    control store, a while after the death ── SweepSpilled ──▶ one agent ── ListHeldFiles ──▶ all others
                                                               └─ deletes the dead node's files but for those that somebody holds

No agent deletes a file that another node has written before it was asked to: a file may hold objects that different nodes have adopted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from shoal._core.node_agent.neighbours import Neighbours
from shoal._core.node_agent.peers import Peer
from shoal._core.object_store.remote import RemoteFiles
from shoal._core.object_store.store import ObjectStore
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import Address, HeldFiles, ListHeldFiles, NodeRecord, ObjectsSpilled, SweepSpilled

log = logging.getLogger("shoal.node_agent")


class SpilledObjects:
    """One node's part in it. Used on the loop.

    Args:
        remote: where this node spills; None: to its disk.
        process: finds the connection of a process of this node by its id.
        living: lists the living nodes, this one among them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node_id: bytes,
        store: ObjectStore,
        remote: RemoteFiles | None,
        neighbours: Neighbours,
        process: Callable[[bytes], Peer | None],
        living: Callable[[], Iterable[NodeRecord]],
    ) -> None:
        self._loop = loop
        self._node_id = node_id
        self._store = store
        self._remote = remote
        self._neighbours = neighbours
        self._process = process
        self._living = living
        self._under_way: set[asyncio.Task[None]] = set()
        store.on_spilled = self._spilled

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {ObjectsSpilled: self._on_spilled, ListHeldFiles: self._on_list_held, SweepSpilled: self._on_sweep}

    def close(self) -> None:
        for task in self._under_way:
            task.cancel()

    def _spilled(self, objects: Sequence[tuple[Address, bytes, str]]) -> None:
        by_owner: dict[Address, list[tuple[bytes, str]]] = {}
        for owner, object_id, location in objects:
            by_owner.setdefault(owner, []).append((object_id, location))
        for owner, places in by_owner.items():
            if owner.node_id != self._node_id:  # an owner on this node ends with it
                self._neighbours.tell(owner.node_id, ObjectsSpilled(owner, self._node_id, places))

    def _on_spilled(self, _connection: Peer, message: ObjectsSpilled) -> None:
        process = self._process(message.owner.worker_id)
        if process is not None:
            process.send(message)

    def _on_list_held(self, connection: Peer, message: ListHeldFiles) -> None:
        connection.send(HeldFiles(message.rid, self._store.held_files(message.directory)))

    def _on_sweep(self, connection: Peer, message: SweepSpilled) -> None:
        self._spawn(self._sweep(connection, message))

    async def _sweep(self, connection: Peer, message: SweepSpilled) -> None:
        assert self._remote is not None, "a node that spills to its disk was asked to sweep"
        try:
            keep = set(self._store.held_files(message.directory))
            for node in self._living():
                if node.node_id != self._node_id:
                    answer: HeldFiles = await self._neighbours.ask(node.node_id, ListHeldFiles(0, message.directory))
                    keep.update(answer.files)
            left = await self._remote.run(self._loop, self._remote.sweep, message.directory, keep)
        except Exception as error:  # a node that has died just now, or whatever the place behind the URL answers: asked again later
            level = logging.DEBUG if isinstance(error, OSError | RequestFailed) else logging.WARNING
            log.log(level, "What a dead node has spilled (%s) is not swept yet: %s", message.directory, error)
            connection.fail(message.rid, "RuntimeError", f"Not swept: {error}")
        else:
            connection.send(HeldFiles(message.rid, left))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
