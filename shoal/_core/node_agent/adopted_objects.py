"""The node agent as owner: serves adopted objects to their borrowers (the shell around ``adoption.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

import msgspec

from shoal._core.node_agent.adoption import AdoptedObject, Adoption
from shoal._core.node_agent.peers import Connect, Peer, Store
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import (
    STORED,
    Ack,
    AddBorrower,
    Address,
    AdoptObjects,
    GetObject,
    ObjectRefInfo,
    ObjectValue,
    PinForever,
    PromoteCopy,
    RemoveBorrower,
    ReportLost,
    Value,
)

log = logging.getLogger("shoal.node_agent")

#: Seconds between two looks for the adoption of an object that lies in the store while its owner's death is not noticed yet.
LOOK_S = 0.05

Request = GetObject | AddBorrower


class AdoptedObjects:
    """Answers GetObject, AddBorrower, RemoveBorrower, ReportLost and PinForever for objects whose owner is gone.

    Args:
        me: address of the node agent, under which it borrows what is inside adopted objects.
        connect: opens connections to the owners of those; None: references inside are not kept alive.
        connected: worker ids of the processes that are connected now.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        me: Address,
        store: Store,
        grace_s: float,
        connect: Connect | None,
        connected: Callable[[], Collection[bytes]],
    ) -> None:
        self.state = Adoption(grace_s)
        self._loop = loop
        self._me = me
        self._store = store
        self._grace_s = grace_s
        self._connect = connect
        self._connected = connected
        #: Object -> what borrowers said of it, in order, while its owner's end is not noticed yet.
        self._late: dict[bytes, list[tuple[Peer, Any]]] = {}
        #: Frees objects whose primary copy is on another node.
        self.free_elsewhere: Callable[[bytes, list[bytes]], None] = _nowhere
        #: Processes of other nodes: calls ``borrower_ended`` when one has ended; those of which it will.
        self.watch: Callable[[Address], None] = _unwatched
        self.watched: Callable[[], Collection[bytes]] = tuple
        #: Has another node make its copy the primary one; False if it has none.
        self.promote_elsewhere: Callable[[bytes, PromoteCopy], Awaitable[bool]] = _nobody
        #: Whether an object may be one that lies on another node, whose owner of this node has just ended.
        self.awaits: Callable[[bytes], bool] = _never
        #: Passes on what is said of an object that another agent owns by now; False: none does.
        self.relay: Callable[[Peer, Any], bool] = _not_passed_on
        #: Requests in progress; joined (cancelled) by ``close``.
        self._tasks: set[asyncio.Task[None]] = set()

    def adopt(self, connection: Peer, message: AdoptObjects) -> None:
        self.state.adopt(message.objects, self._borrowers_of(message), self._loop.time())
        connection.send(Ack(message.rid))

    def inherit(self, message: AdoptObjects) -> None:
        """Take over from the agent of a node that leaves, for the time when it has."""
        self.state.inherit(message.objects, message.testator, self._borrowers_of(message), self._loop.time())

    def _borrowers_of(self, message: AdoptObjects) -> set[bytes]:
        """Hear of the ends of all who hold these; return all who live."""
        for one in message.objects:
            for borrower, _ in one.borrowers:
                self.watch(borrower)
        return self._living()

    def owner_killed(self, worker_id: bytes) -> None:
        """Keep what the dead process owned in the store until its holders have had time to ask."""
        self.take_over(worker_id, self._me.node_id, self._store.objects_of(worker_id))

    def take_over(self, worker_id: bytes, node_id: bytes, objects: Iterable[tuple[bytes, int, list[ObjectRefInfo]]]) -> None:
        """The same for what it owned in the store of ``node_id``: (object id, bytes, references inside)."""
        now = self._loop.time()
        for object_id, nbytes, refs in objects:
            if object_id not in self.state:
                adopted = self.state.adopt_stored(object_id, Value(STORED, b"", nbytes, refs, node_id), now)
                if refs and self._connect is not None:
                    self._spawn(self._register_inside(adopted, worker_id))

    def sealed(self, object_id: bytes) -> None:
        """A process has stored an object; its owner may have ended while the task ran."""
        stored = self._store.stored(object_id)
        if stored is not None and stored[0].node_id == self._me.node_id and stored[0].worker_id not in self._connected():
            self.state.adopt_stored(object_id, Value(STORED, b"", stored[1], stored[2], self._me.node_id), self._loop.time())

    def handle(self, connection: Peer, message: Any) -> None:
        """Serve one message of a borrower."""
        late = self._late.get(message.object_id)
        kind = type(message)
        if late is not None:
            late.append((connection, message))
        elif (kind is GetObject or kind is AddBorrower) and self._may_be_adopted(message.object_id):
            # Its owner's end has not been noticed here yet; the borrower saw it first.
            self._late[message.object_id] = [(connection, message)]
            self._spawn(self._serve_late(message.object_id))
        else:
            self._serve(connection, message)

    def _may_be_adopted(self, object_id: bytes) -> bool:
        """Whether it is one of those whose owner's end is not noticed here yet, or that are being adopted from other nodes."""
        return object_id not in self.state and (self._store.contains(object_id) or self.awaits(object_id))

    def is_held_up(self, object_id: bytes) -> bool:
        """Whether what borrowers say of it waits."""
        return object_id in self._late

    def hold_up(self, object_ids: Iterable[bytes]) -> None:
        """Let what borrowers say of these wait until ``go_on``."""
        self._late |= {object_id: [] for object_id in object_ids}

    def go_on(self, object_ids: Iterable[bytes]) -> None:
        for object_id in object_ids:
            self._serve_all(self._late.pop(object_id))

    def testator_ended(self, node_id: bytes, *, is_heir: bool) -> None:
        """The node, which may have promised something to this one, has left or died."""
        self._free(self.state.testator_ended(node_id, self._loop.time(), is_heir=is_heir))

    def _serve(self, connection: Peer, message: Any) -> None:
        kind = type(message)
        if self.relay(connection, message):
            return
        if kind is GetObject or kind is AddBorrower:
            self._answer(connection, message)
        elif kind is RemoveBorrower:
            self._free(self.state.remove_borrower(message.object_id, message.borrower.worker_id, message.count))
        elif kind is ReportLost:
            adopted = self.state.lost(message.object_id, message.node_id)
            if adopted is not None:
                self._look_for_copy(adopted)
        elif kind is PinForever:
            self.state.pin_forever(message.object_id)
        else:
            raise TypeError(f"not a borrower's message: {kind.__name__}")

    def nodes_died(self, node_ids: Collection[bytes]) -> None:
        """Primary copies that were there are lost; others may have copies."""
        for adopted in self.state.lying_on(node_ids):
            self._look_for_copy(adopted)

    def borrower_ended(self, worker_id: bytes) -> None:
        """Drop what the process had borrowed; not before that of its objects which held it is adopted, here or elsewhere."""
        self._loop.call_later(self._grace_s, self.borrower_lost, worker_id)

    def borrower_lost(self, worker_id: bytes) -> None:
        self._free(self.state.borrower_lost(worker_id))

    def tick(self) -> None:
        self._free(self.state.tick(self._loop.time(), self._living()))

    def _living(self) -> set[bytes]:
        return {*self._connected(), *self.watched()}

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _answer(self, connection: Peer, message: Request) -> None:
        adopted = self.state.get(message.object_id, self._loop.time())
        if adopted is None:
            connection.fail(
                message.rid,
                "OwnerDiedError",
                f"The process that owned object {message.object_id.hex()} has died, and the object lived in its memory only or nobody "
                "held it any more. Compute it again, or keep its owner alive.",
            )
        elif isinstance(message, AddBorrower):
            if not self._is_gone(message.borrower):
                self.watch(message.borrower)
                self.state.add_borrower(message.object_id, message.borrower.worker_id, message.count, full=message.full)
                adopted.addresses[message.borrower.worker_id] = message.borrower
            connection.send(Ack(message.rid))
        elif adopted.lost:
            connection.fail(
                message.rid,
                "ObjectLostError",
                f"Object {message.object_id.hex()} is lost from the object store, and its owner, who could compute it again, has died.",
            )
        elif adopted.value.refs:
            self._spawn(self._hand_out(connection, message, adopted))
        else:
            connection.send(ObjectValue(message.rid, adopted.value))

    def _is_gone(self, borrower: Address) -> bool:
        """Whether the process was here and has ended: somebody registers it without knowing that, and nobody would unregister it."""
        return borrower.node_id == self._me.node_id and borrower != self._me and borrower.worker_id not in self._connected()

    def _look_for_copy(self, adopted: AdoptedObject) -> None:
        """Its primary copy is lost. What borrowers say of it waits until another one is found, or none."""
        if adopted.object_id not in self._late:
            self._late[adopted.object_id] = []
            self._spawn(self._promote(adopted))

    async def _promote(self, adopted: AdoptedObject) -> None:
        """Ask the nodes of its readers one after the other whether they have a complete copy, this one first."""
        object_id, refs, lost = adopted.object_id, adopted.value.refs, adopted.value.node_id
        found = b""
        for node_id in dict.fromkeys((self._me.node_id, *(reader.node_id for reader in reversed(adopted.addresses.values())))):
            if node_id in (lost, b""):
                continue
            if node_id == self._me.node_id:
                is_there = self._store.promote(object_id, self._me, refs)
            else:
                is_there = await self.promote_elsewhere(node_id, PromoteCopy(0, object_id, self._me, refs))
            if is_there:
                found = node_id
                break
        if not self.state.found(adopted, found) and found:  # freed meanwhile
            self._free_stored(found, [object_id])
        self._serve_all(self._late.pop(object_id))

    async def _serve_late(self, object_id: bytes) -> None:
        for _ in range(max(1, round(self._grace_s / LOOK_S))):
            await asyncio.sleep(LOOK_S)
            if not self._may_be_adopted(object_id):
                break
        self._serve_all(self._late.pop(object_id))

    def _serve_all(self, messages: list[tuple[Peer, Any]]) -> None:
        for connection, message in messages:
            if not connection.closed:  # or what it registers would never be given back
                self._serve(connection, message)

    async def _hand_out(self, connection: Peer, message: GetObject, adopted: AdoptedObject) -> None:
        """Register the reader with every reference inside, then send the value (rule 3 of docs/design/core.md)."""
        me, reader = self._me, message.borrower
        # The owner of what is inside counts it under the name of the sender, when it is the reader itself.
        # What is adopted too was registered here: a reader that looked for its dead owner first would register again.
        owners = await asyncio.gather(
            *(self.register(inner, me if inner.owner.worker_id == reader.worker_id else reader) for inner in adopted.value.refs)
        )
        refs = [ObjectRefInfo(inner.object_id, owner) for inner, owner in zip(adopted.value.refs, owners, strict=True)]
        connection.send(ObjectValue(message.rid, msgspec.structs.replace(adopted.value, refs=refs)))

    async def _register_inside(self, adopted: AdoptedObject, dead: bytes) -> None:
        """Hold the references inside at their owners; the dead process itself answers for nothing any more."""
        inside = [inner for inner in adopted.value.refs if inner.owner.worker_id != dead and inner.object_id not in self.state]
        await asyncio.gather(*(self.register(inner, self._me) for inner in inside))
        adopted.registered = True
        if adopted.object_id not in self.state:  # freed meanwhile
            self._free(self._unregister_inside(adopted))

    async def register(self, inner: ObjectRefInfo, borrower: Address) -> Address:
        """Return who has counted it: its owner, or the agent of its owner's node, if the owner has left."""
        for owner in (inner.owner, _agent_of(inner.owner)):
            if self._add_borrower(inner.object_id, borrower):
                return self._me
            if self._connect is None or owner.worker_id == self._me.worker_id:
                break
            try:
                connection = await self._connect(owner)
                await connection.request(AddBorrower(0, inner.object_id, borrower))
            except OSError as error:
                log.debug("The owner of %s cannot be reached: %s", inner.object_id.hex(), error)
            except RequestFailed:  # it is gone; the reader will hear that when it reads the inner reference
                break
            else:
                return owner
        return self._me if self._add_borrower(inner.object_id, borrower) else inner.owner

    def _add_borrower(self, object_id: bytes, borrower: Address) -> bool:
        if not self.state.add_borrower(object_id, borrower.worker_id, 1, full=False):
            return False
        self.watch(borrower)
        self.state.objects[object_id].addresses[borrower.worker_id] = borrower
        return True

    def _free(self, freed: Iterable[AdoptedObject]) -> None:
        stored: dict[bytes, list[bytes]] = {}
        work = list(freed)
        while work:  # a loop: containers may be nested deeper than the stack
            adopted = work.pop()
            if adopted.value.kind == STORED:
                stored.setdefault(adopted.value.node_id, []).append(adopted.object_id)
            if adopted.registered:
                work += self._unregister_inside(adopted)
        for node_id, object_ids in stored.items():
            self._free_stored(node_id, object_ids)

    def _free_stored(self, node_id: bytes, object_ids: list[bytes]) -> None:
        if node_id == self._me.node_id:
            self._store.free(object_ids)
        else:
            self.free_elsewhere(node_id, object_ids)

    def _unregister_inside(self, adopted: AdoptedObject) -> list[AdoptedObject]:
        """Give back what was registered for the references inside; return what is free now."""
        me = self._me.worker_id
        freed: list[AdoptedObject] = []
        for inner in adopted.value.refs:
            if inner.object_id in self.state:  # its owner has ended too, and what was registered there is counted here
                freed += self.state.remove_borrower(inner.object_id, me, 1)
            elif inner.owner.worker_id != me and self._connect is not None:
                self._spawn(self.unregister(inner))
        return freed

    async def unregister(self, inner: ObjectRefInfo) -> None:
        """Give back what this agent has registered for a reference inside."""
        assert self._connect is not None
        for owner in (inner.owner, _agent_of(inner.owner)):
            if inner.object_id in self.state:
                self._free(self.state.remove_borrower(inner.object_id, self._me.worker_id, 1))
                return
            if owner.worker_id == self._me.worker_id:
                return
            with contextlib.suppress(OSError):  # that owner is gone, and its counts with it, unless it has left and handed the object over
                connection = await self._connect(owner)
                if inner.object_id not in self.state:
                    connection.send(RemoveBorrower(inner.object_id, self._me, 1))
                    return

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _agent_of(process: Address) -> Address:
    """Return who answers for what a process owned that has left."""
    return Address(process.node_id, process.node_id, "")


def _unwatched(process: Address) -> None:
    """There are no other nodes."""


async def _nobody(node_id: bytes, message: PromoteCopy) -> bool:
    """There are no other nodes."""
    return False


def _never(object_id: bytes) -> bool:
    """There are no other nodes."""
    return False


def _not_passed_on(connection: Peer, message: Any) -> bool:
    """This node does not leave."""
    return False


def _nowhere(node_id: bytes, object_ids: list[bytes]) -> None:
    """There are no other nodes."""
