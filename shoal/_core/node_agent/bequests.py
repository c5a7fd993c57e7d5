"""What a node agent owns in the place of processes that have ended goes to the agent of another node before its own node leaves.

    node that leaves                          its heir                       control store
    [what borrowers say of the objects waits]
    AddBorrower(heir) ──▶ owners of what is inside
    AdoptObjects(testator) ─────────────────▶ promised
    RemoveBorrower ──▶ owners of what is inside
    PromoteCopy(heir) ──▶ nodes of primary copies, which are the heir's from now on
    [what borrowers say is passed on] ──────▶
    NameHeir ───────────────────────────────────────────────────────────────▶ its record; spread: agents tell their processes
    its own primary copies move (``moving.py``), it leaves
                                              the promise holds              borrowers turn to the heir, with their full counts

It dies before: if the heir is named, what lay in its memory is handed on all the same; if not, the heir drops what was promised. The heir
dies: before it is named another one is looked for; later it is the death of an owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from shoal._core.node_agent.adopted_objects import AdoptedObjects
from shoal._core.node_agent.adoption import AdoptedObject
from shoal._core.node_agent.neighbours import Neighbours
from shoal._core.node_agent.peers import Peer, Store
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import (
    STORED,
    Ack,
    AddBorrower,
    Address,
    AdoptObjects,
    GetObject,
    Message,
    NodeRecord,
    ObjectValue,
    OwnedObject,
    PromoteCopy,
    RemoveBorrower,
)

log = logging.getLogger("shoal.node_agent")


class Bequests:
    """One node's part in it, as the one that leaves, as an heir, and as one that holds something. Used on the loop.

    Args:
        me: the node agent's address.
        node: finds the record of a living node.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        me: Address,
        store: Store,
        adopted: AdoptedObjects,
        neighbours: Neighbours,
        node: Callable[[bytes], NodeRecord | None],
    ) -> None:
        self._loop = loop
        self._me = me
        self._store = store
        self._adopted = adopted
        self._neighbours = neighbours
        self._node = node
        #: Objects that another agent owns by now, while this node is still here -> its node.
        self._passed_on: dict[bytes, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        adopted.relay = self._relay

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {AdoptObjects: self._on_adopt}

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # --- the node that leaves ---

    def count(self) -> int:
        """Return how many objects there are to hand on. O(adopted objects)."""
        return len(self._adopted.state.held())

    async def bequeath(self, heir: bytes) -> None:
        """Hand on to the agent of a node what others hold of this one. Raises OSError, RequestFailed: that agent may not have it."""
        going = [one for one in self._adopted.state.held() if not self._adopted.is_held_up(one.object_id)]
        address = Address(heir, heir, "")
        ids = {one.object_id for one in going}
        self._adopted.hold_up(ids)
        try:
            known = ids | self._passed_on.keys()
            inside = [(one, inner) for one in going for inner in one.value.refs if inner.object_id not in known]
            await asyncio.gather(*(self._adopted.register(inner, address) for _, inner in inside))
            objects = [OwnedObject(one.object_id, one.value, self._borrowers(one, address)) for one in going]
            await self._neighbours.ask(heir, AdoptObjects(0, objects, self._me.node_id))
            self._adopted.state.pass_on(going)
            self._passed_on |= dict.fromkeys(ids, heir)
            # One hold for one object: the owner of what is inside may leave next, and all that is this agent's counts as the heir's then.
            await asyncio.gather(*(self._adopted.unregister(inner) for one, inner in inside if one.registered))
            await asyncio.gather(*(self._change_owner(one, address) for one in going if one.value.kind == STORED))
        finally:
            self._adopted.go_on(ids)

    def _borrowers(self, adopted: AdoptedObject, heir: Address) -> list[tuple[Address, int]]:
        """Return who holds it; what this agent itself holds, inside of another object, its heir does."""
        unknown = {worker_id: Address(worker_id, b"", "") for worker_id in adopted.counts} | {self._me.worker_id: heir}
        return [((unknown | adopted.addresses)[worker_id], count) for worker_id, count in adopted.counts.items()]

    async def _change_owner(self, adopted: AdoptedObject, owner: Address) -> None:
        node_id, refs = adopted.value.node_id, adopted.value.refs
        if node_id == self._me.node_id:
            self._store.promote(adopted.object_id, owner, refs)
            return
        try:
            await self._neighbours.ask(node_id, PromoteCopy(0, adopted.object_id, owner, refs))
        except (OSError, RequestFailed) as error:  # it is lost: who reads it hears so
            log.warning("Node %s does not know the new owner of object %s: %s", node_id.hex(), adopted.object_id.hex(), error)

    def _relay(self, connection: Peer, message: Any) -> bool:
        """Pass on what is said of an object that another agent owns by now; False: it does not."""
        heir = self._passed_on.get(message.object_id)
        if heir is None:
            return False
        if isinstance(message, GetObject | AddBorrower):
            self._spawn(self._pass_on(connection, heir, message))
        else:
            self._neighbours.tell(heir, message)
        return True

    async def _pass_on(self, connection: Peer, heir: bytes, message: Message) -> None:
        rid: int = message.rid  # type: ignore[attr-defined]
        try:
            reply = await self._neighbours.ask(heir, msgspec.structs.replace(message))
        except RequestFailed as error:
            connection.fail(rid, error.kind, error.message, error.detail)
        except OSError as error:
            connection.fail(rid, "OwnerDiedError", f"Node {heir.hex()}, which had taken the object over, cannot be reached: {error}")
        else:
            await self._answer(connection, heir, message, msgspec.structs.replace(reply, rid=rid))

    async def _answer(self, connection: Peer, heir: bytes, message: Message, reply: Message) -> None:
        """What is inside and the reader's own was counted under the heir's name; the reader takes the name of this agent, who sends."""
        reader = message.borrower if isinstance(message, GetObject) else None
        inside = reply.value.refs if isinstance(reply, ObjectValue) else []
        own = [inner.object_id for inner in inside if reader is not None and inner.owner.worker_id == reader.worker_id]
        try:
            await asyncio.gather(*(connection.request(AddBorrower(0, object_id, self._me)) for object_id in own))
        except (OSError, RequestFailed) as error:  # its counts are gone with it
            log.debug("A reader of what another agent owns has ended: %s", error)
            return
        connection.send(reply)
        for object_id in own:
            connection.send(RemoveBorrower(object_id, Address(heir, heir, ""), 1))

    # --- its heir ---

    def _on_adopt(self, connection: Peer, message: AdoptObjects) -> None:
        if not message.testator:
            self._adopted.adopt(connection, message)
        elif self._node(message.testator) is None:
            connection.fail(message.rid, "RuntimeError", f"Node {message.testator.hex()} is dead, as far as this one knows.")
        else:
            self._adopted.inherit(message)
            connection.send(Ack(message.rid))

    # --- everybody ---

    def nodes_died(self, node_ids: Iterable[bytes], heirs: Mapping[bytes, bytes]) -> None:
        """Nodes have died or left; those with an heir (key, value) have left what they owned to that one."""
        for node_id in node_ids:
            heir = heirs.get(node_id, b"")
            self._adopted.testator_ended(node_id, is_heir=heir == self._me.node_id)
            if heir:
                self._turn_to(heir, node_id)

    def _turn_to(self, heir: bytes, node_id: bytes) -> None:
        """What is inside of objects here, and was owned by that node's agent, is its heir's."""
        owner = self._me if heir == self._me.node_id else Address(heir, heir, "")
        for adopted in self._adopted.state.objects.values():
            refs = [
                msgspec.structs.replace(inner, owner=owner) if inner.owner.node_id == node_id else inner for inner in adopted.value.refs
            ]
            turned = [inner for inner, before in zip(refs, adopted.value.refs, strict=True) if inner is not before]
            if turned:
                adopted.value = msgspec.structs.replace(adopted.value, refs=refs)
                if adopted.registered and owner is not self._me:
                    for inner in turned:
                        self._spawn(self._appear(heir, inner.object_id))

    async def _appear(self, heir: bytes, object_id: bytes) -> None:
        """Say to the heir that this agent, whose count it knows, is there."""
        try:
            await self._neighbours.ask(heir, AddBorrower(0, object_id, self._me, 1, full=True))
        except (OSError, RequestFailed) as error:  # whoever reads the reference hears it
            log.debug("Node %s does not answer for object %s: %s", heir.hex(), object_id.hex(), error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
