"""Objects as the I/O thread sees them: completing, fetching, serving and counting them across processes.

Owns: nothing but the list of blocked operations; the table is ``ownership.Ownership``.
Runs: on the I/O thread only.

    borrower                                   owner
      GetObject  ------------------------------> value ready? register inner references for the borrower, then
      ObjectValue <-----------------------------
      AddBorrower / RemoveBorrower ------------> counts
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal import exceptions
from shoal._base.ids import maker_of
from shoal._core.serialization import error_named, serialize_system_error
from shoal._core.transport import ConnectionLost, RequestFailed
from shoal._core.wire.messages import (
    OWNER_LEFT,
    Ack,
    AddBorrower,
    Address,
    FreeObjects,
    GetObject,
    Message,
    ObjectRefInfo,
    ObjectsMoved,
    ObjectsSpilled,
    ObjectValue,
    PinForever,
    RemoveBorrower,
    ReportLost,
    Value,
    WatchProcess,
)

from .copies import Copies
from .entries import FAILED, PENDING, STORED, BorrowedEntry, Entry, Stored, data_of
from .ownership import Ownership
from .waiting import GetOperation, Operation, WaitOperation

if TYPE_CHECKING:
    from .core import Core

#: Values that a ``get`` of many makes readable with one request: half of the time of a request for each.
PINNED_TOGETHER = 64
#: Urgencies of PinObjects.
ARGUMENT, AHEAD = 1, 2
#: Seconds until the word that an object has moved is looked at again, which came before the object itself.
EARLY_S = 0.02
#: Seconds after the end of a borrower until its registrations are dropped, where there is one node agent only.
TAKE_OVER_S = 0.25


class Objects:
    """The shell around the ownership table."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.own = Ownership(core.me, self)
        self.copies = Copies()
        #: Stored values of other nodes that have been brought to this one (it may have given them up since), or that it has no room for;
        #: and where they lay then. Any thread may look.
        self.brought: dict[bytes, Stored] = {}
        #: Those that are under way.
        self._bringing: set[Entry] = set()
        #: Operations of blocked user threads.
        self.operations: list[Operation] = []
        self._completed: deque[Entry] = deque()
        self._notifying = False
        #: Node of the primary copy -> objects of ours that nobody needs any more.
        self._freed: dict[bytes, list[bytes]] = {}
        #: Nodes on which objects of ours lie, or lay.
        self._homes: set[bytes] = set()
        #: Node -> objects that lie there as if it had their primary copies.
        self._leftovers: dict[bytes, list[bytes]] = {}
        #: Foreign references that appeared while a task ran and are not registered yet. See ``settle_borrows``.
        self._unregistered: dict[bytes, BorrowedEntry] = {}
        #: This process leaves and the node agent gets its objects: what borrowers still say is passed on.
        self.handed_over = False
        #: Readers that came since; they are sent there as soon as it has them.
        self._turned_away: list[tuple[Any, int]] | None = []

    # --- effects of the ownership table --------------------------------------------------------------------

    def free_stored(self, object_id: bytes, node_id: bytes) -> None:
        self.copies.forget(object_id)
        self._freed.setdefault(node_id, []).append(object_id)

    def free_leftover(self, object_id: bytes, node_id: bytes) -> None:
        """What lies on this node as a primary copy is not the one that counts (any more). A copy of that one may stay."""
        self._leftovers.setdefault(node_id, []).append(object_id)

    def remove_borrower(self, object_id: bytes, owner: Address, count: int) -> None:
        self.core.owner_channel(owner).send(RemoveBorrower(object_id, self.core.me, count))

    def register(self, entry: BorrowedEntry) -> None:
        if self.core.runs_tasks:
            self._unregistered[entry.object_id] = entry
        else:
            self._register_now(entry)

    def released(self, entry: Entry) -> None:
        self._unregistered.pop(entry.object_id, None)
        self.brought.pop(entry.object_id, None)
        if entry.kind == FAILED and not entry.seen and not isinstance(entry, BorrowedEntry):
            self.core.unread_error(entry)
        self.core.entry_released(entry)

    def watch(self, borrower: Address) -> None:
        self.core.owner_channel(borrower)

    def flush(self) -> None:
        """Send what gathered during one turn of the loop."""
        if self.operations:
            self.operations = [one for one in self.operations if not one.fired]
        if self._freed:
            freed, self._freed = self._freed, {}
            for node_id, object_ids in freed.items():
                self.core.agents.get(node_id).send(FreeObjects(object_ids))
        if self._leftovers:
            leftovers, self._leftovers = self._leftovers, {}
            for node_id, object_ids in leftovers.items():
                self.core.agents.get(node_id).send(FreeObjects(object_ids, copies=False))

    # --- borrowing -----------------------------------------------------------------------------------------

    def _register_now(self, entry: BorrowedEntry) -> asyncio.Future[Any]:
        entry.registering = True
        future: asyncio.Future[Any] = self.core.owner_channel(entry.owner).request(AddBorrower(0, entry.object_id, self.core.me))
        future.add_done_callback(partial(self._registered, entry, entry.owner))
        return future

    def _registered(self, entry: BorrowedEntry, asked: Address, done: asyncio.Future[Any]) -> None:
        entry.registering = False
        error = done.exception() if not done.cancelled() else ConnectionLost("cancelled")
        if error is None:
            entry.grants += 1
        elif isinstance(error, ConnectionLost):
            self.owner_lost(asked)  # who may have a successor already
            if entry.count > 0 and not entry.grants and not self.core.lost:
                self._register_now(entry)
                return
        elif entry.kind == PENDING:
            self.complete(entry, FAILED, error_bytes(error, entry))
        if entry.count <= 0:
            self.own.settle(entry)
        self.core.flush()

    def has_unregistered(self) -> bool:
        """Whether a reply has to wait for ``settle_borrows``. Any thread."""
        return bool(self._unregistered)

    def settle_borrows(self) -> list[asyncio.Future[Any]]:
        """Register what the finished task still holds; the reply may leave when all returned futures are done."""
        if not self._unregistered:
            return []
        held, self._unregistered = self._unregistered, {}
        return [self._register_now(entry) for entry in held.values() if entry.count > 0 and not entry.grants and not entry.registering]

    def grant(self, inner: Iterable[Entry], receiver: Address) -> list[asyncio.Future[Any]]:
        """Register ``receiver`` for references inside a value that is about to be sent to it."""
        futures: list[asyncio.Future[Any]] = []
        for entry in inner:
            if isinstance(entry, BorrowedEntry):
                # Its owner itself gets it: counted under our name, so that the count ends with us if the value never arrives.
                futures.append(self._register_other(entry, self.core.me if entry.owner.worker_id == receiver.worker_id else receiver))
            else:
                self.own.add_borrower(entry, receiver)
        return futures

    def _register_other(self, entry: BorrowedEntry, holder: Address) -> asyncio.Future[Any]:
        """Register a third process with the owner, or with its successor: then told twice perhaps, which can leak, never too seldom."""
        result: asyncio.Future[Any] = self.core.loop.create_future()

        def settled(done: asyncio.Future[Any]) -> None:
            error = done.exception() if not done.cancelled() else ConnectionLost("cancelled")
            if isinstance(error, ConnectionLost) and not self.core.lost and not self.core.closing:
                again = self.core.agent.request(AddBorrower(0, entry.object_id, holder))
                self.core.when_all([again], lambda: result.set_result(None))
            else:
                result.set_result(None)

        self.core.owner_channel(entry.owner).request(AddBorrower(0, entry.object_id, holder)).add_done_callback(settled)
        return result

    def infos(self, inner: Iterable[Entry]) -> list[ObjectRefInfo]:
        me = self.core.me
        return [ObjectRefInfo(entry.object_id, entry.owner or me) for entry in inner]

    def peer_lost(self, address: Address, undelivered: Iterable[Message]) -> None:
        """A process ended: look for a new owner of what it owned, and drop what it borrowed.

        In this order: what it borrowed may have held references to what it owned, which must be given back to the new owner.
        """
        self.owner_lost(address)
        for message in undelivered:
            if isinstance(message, RemoveBorrower):
                self.core.owner_channel(self._successor(address)).send(message)
        # Not at once: if it was killed, its node agent takes over what it had stored, and registers for the references inside of that.
        # What it had stored on another node takes two trips between agents, which may be busy: a process alone needs milliseconds.
        delay_s = self.core.settings.adoption_grace_s if self.core.has_other_nodes else TAKE_OVER_S
        self.core.loop.call_later(delay_s, self._borrower_gone, address.worker_id)

    def _borrower_gone(self, worker_id: bytes) -> None:
        if not self.core.closing:
            self.own.borrower_lost(worker_id)
            self.core.flush()

    def owner_lost(self, owner: Address) -> None:
        """Turn to the owner's node agent, with our full counts."""
        for entry in self._turn_to_agent(owner):
            if entry.grants:
                adopter = self.core.owner_channel(entry.owner)
                future = adopter.request(AddBorrower(0, entry.object_id, self.core.me, entry.grants, full=True))
                future.add_done_callback(partial(self._readopted, entry, entry.owner))

    def owner_left(self, owner: Address) -> None:
        """Turn to the node agent, which has our counts: the owner has handed them over, and passes on what is still under way."""
        self._turn_to_agent(owner)

    def _successor(self, owner: Address) -> Address:
        """Return who answers for what it owned: its node agent; for that, when its node has left, its heir.

        An agent without one has died with its node: our own agent says that the owner has died.
        """
        agents = self.core.agents
        if owner.worker_id != owner.node_id:
            return agents.address(owner.node_id)
        heir = agents.heirs.get(owner.node_id)
        return self.core.agent_address if heir is None else agents.address(heir)

    def nodes_left(self, node_ids: Collection[bytes]) -> None:
        """These nodes have left, and each has an heir, who waits for all who hold something of it."""
        if node_ids:
            owners = {entry.owner.worker_id: entry.owner for entry in self.own.entries.values() if isinstance(entry, BorrowedEntry)}
            left = [owner for owner in owners.values() if owner.node_id in node_ids]
            for owner in sorted(left, key=lambda owner: owner.worker_id == owner.node_id):  # the agent, to whom the others turn, last
                self.owner_lost(owner)
            for node_id in node_ids:
                self.owner_lost(Address(node_id, node_id, ""))

    def _turn_to_agent(self, owner: Address) -> list[BorrowedEntry]:
        successor = self._successor(owner)
        if owner.worker_id == successor.worker_id:
            return []
        turned = []
        for entry in self.own.entries.values():
            if isinstance(entry, BorrowedEntry) and entry.owner.worker_id == owner.worker_id:
                entry.owner = successor
                turned.append(entry)
        return turned

    def _readopted(self, entry: BorrowedEntry, asked: Address, done: asyncio.Future[Any]) -> None:
        error = done.exception() if not done.cancelled() else None
        if isinstance(error, ConnectionLost) and entry.owner.worker_id != asked.worker_id:
            return  # that agent's node has left as well, and its heir has been asked since
        if error is not None:
            entry.grants = 0
            if entry.kind == PENDING and not entry.fetching:
                self.complete(entry, FAILED, error_bytes(error, entry))
            self.core.flush()

    # --- completing ----------------------------------------------------------------------------------------

    def complete(self, entry: Entry, kind: int, data: object, inner: list[Entry] | None = None) -> None:
        """Set an object's value and tell everybody who waits. Iterative: a chain of 10,000 tasks may fail in one go."""
        waiters, entry.waiters = entry.waiters, None
        if self.brought:
            self.brought.pop(entry.object_id, None)
        self.own.complete(entry, kind, data, inner)
        if entry.kind == STORED and entry.owner is None and entry.data.node_id not in self._homes:
            self._found_home(entry)
        if self.operations:
            for operation in self.operations:
                self._note(operation, entry)
        if waiters is None:
            return
        entry.waiters = waiters
        self._completed.append(entry)
        if self._notifying:
            return
        self._notifying = True
        try:
            while self._completed:
                done = self._completed.popleft()
                callbacks, done.waiters = done.waiters or (), None
                for callback, arg in callbacks:
                    callback(done, arg)
        finally:
            self._notifying = False

    def _found_home(self, entry: Entry) -> None:
        """An object of ours lies on a node where none did: should we die, our agent asks there. Before any other process hears of it."""
        self._homes.add(entry.data.node_id)
        if entry.data.node_id != self.core.me.node_id:
            word = WatchProcess(0, self.core.me.worker_id, entry.data.node_id, maker_of(entry.object_id))
            self.core.when_all([self.core.agent.request(word)], _nothing)

    def when_done(self, entry: Entry, callback: Callable[[Entry, Any], None], arg: Any) -> None:
        """Call ``callback(entry, arg)`` when the object is complete: at once if it is."""
        if entry.kind >= 0:
            callback(entry, arg)
            return
        if entry.waiters is None:
            entry.waiters = []
        entry.waiters.append((callback, arg))
        self.need(entry)

    def need(self, entry: Entry) -> None:
        """Somebody waits for the object: fetch it if it is foreign, compute it again if its value was given up."""
        if isinstance(entry, BorrowedEntry):
            if entry.kind == PENDING and not entry.fetching:
                self._fetch(entry)
        elif entry.kind < PENDING:
            self.core.recovery.recover(entry)

    def _fetch(self, entry: BorrowedEntry) -> None:
        if entry.owner.worker_id == self.core.me.worker_id:
            # It claims to be ours, and our table has let it go.
            text = f"The object {entry.object_id.hex()} was freed: no process held a counted reference to it any more."
            self.complete(entry, FAILED, serialize_system_error(exceptions.ObjectFreedError(entry.object_id.hex(), text)))
            return
        entry.fetching = True
        future = self.core.owner_channel(entry.owner).request(GetObject(0, entry.object_id, self.core.me))
        future.add_done_callback(partial(self._fetched, entry, entry.owner))

    def _fetched(self, entry: BorrowedEntry, asked: Address, done: asyncio.Future[Any]) -> None:
        entry.fetching = False
        error = done.exception() if not done.cancelled() else ConnectionLost("cancelled")
        if error is None:
            value: Value = done.result().value
            inner = self.own.receive(value.refs, asked.worker_id)
            if self.own.entries.get(entry.object_id) is entry and entry.kind == PENDING:
                self.complete(entry, value.kind, data_of(value), inner)
            else:
                for held in inner:
                    self.own.unpin(held)
        elif isinstance(error, ConnectionLost) and self.core.lost:
            if entry.kind == PENDING:
                self.complete(entry, FAILED, self.core.lost)
        elif isinstance(error, ConnectionLost) and not self.core.closing:
            self.owner_lost(asked)
            self._fetch(entry)
        elif isinstance(error, RequestFailed) and error.kind == OWNER_LEFT:
            if error.detail:  # an agent that leaves has handed on this object, and perhaps not all
                entry.owner = self.core.agents.address(error.detail)
            else:
                self.owner_left(asked)
            self._fetch(entry)
        else:
            self.complete(entry, FAILED, error_bytes(error, entry))
        self.core.flush()

    def moved(self, entry: Entry, stored: Stored) -> None:
        """The primary copy is another one of the same bytes from now on: its node leaves, or was found to have them."""
        if entry.data.node_id != stored.node_id:
            self.copies.forget(entry.object_id)
            self.free_leftover(entry.object_id, entry.data.node_id)
            entry.data = stored

    def replaced(self, entry: Entry, stored: Stored, inner: list[Entry] | None) -> list[Entry] | None:
        """The task was run again for the sake of another result, and this value was stored again: what is inside of it is the new run's.

        Return what is to be given back: what was inside before.
        """
        if entry.data.node_id != stored.node_id:  # else the first one was lost there, and nobody has missed it
            self.free_stored(entry.object_id, entry.data.node_id)
            entry.data = stored
        before, entry.inner = entry.inner, inner
        return before

    def on_moved(self, _agent: Any, message: ObjectsMoved) -> None:
        """Primary copies of ours have left a node that leaves the cluster."""
        if self.handed_over:
            self.core.agent.send(message)
            return
        early = []
        for object_id, nbytes in message.objects:
            entry = self.own.entries.get(object_id)
            if entry is None and self.core.streams.awaits(object_id):
                early.append((object_id, nbytes))
            elif entry is None or isinstance(entry, BorrowedEntry) or entry.kind < PENDING:
                self.free_stored(object_id, message.source)
                self.free_stored(object_id, message.node_id)
            else:  # the word that it is stored there may still be on its way
                self.when_done(entry, self._moved_from, (message.source, Stored(message.node_id, nbytes)))
        if early and not self.core.closing:  # items of streams are unknown until they are received
            again = ObjectsMoved(message.owner, message.source, message.node_id, early)
            self.core.loop.call_later(EARLY_S, self.on_moved, _agent, again)
        self.core.flush()

    def _moved_from(self, entry: Entry, move: tuple[bytes, Stored]) -> None:
        source, stored = move
        if entry.kind == STORED and entry.data.node_id == source:
            self.moved(entry, stored)
        elif entry.kind != STORED or entry.data.node_id != stored.node_id:  # it was made again elsewhere, or nobody needs it
            self.free_leftover(entry.object_id, stored.node_id)

    def on_spilled(self, _agent: Any, message: ObjectsSpilled) -> None:
        """Primary copies of ours have been written to where other nodes can read them."""
        for object_id, location in message.objects:
            entry = self.own.entries.get(object_id)
            if entry is not None and not isinstance(entry, BorrowedEntry) and entry.kind >= PENDING:
                # The word that it is stored there may still be on its way.
                self.when_done(entry, self._spilled_at, (message.node_id, location))

    def _spilled_at(self, entry: Entry, place: tuple[bytes, str]) -> None:
        node_id, location = place
        if entry.kind == STORED and entry.data.node_id == node_id:
            self.copies.spilled(entry.object_id, node_id, location)

    def lost(self, entry: Entry, node_id: bytes) -> None:
        """A node cannot produce the value. Old news if it is being computed again, or lies elsewhere by now."""
        if entry.kind != STORED or entry.data.node_id != node_id:
            return
        if isinstance(entry, BorrowedEntry):
            self.core.owner_channel(entry.owner).send(ReportLost(entry.object_id, node_id))
            self.own.reset(entry)
            self._fetch(entry)
        else:
            self.core.recovery.recover(entry)

    # --- blocked threads -----------------------------------------------------------------------------------

    def start_get(self, operation: GetOperation) -> None:
        self.operations.append(operation)
        entries = [self.own.lookup(object_id, None) for object_id in operation.object_ids]
        operation.pending = dict.fromkeys(entries)
        operation.unfinished = dict.fromkeys(entry for entry in operation.pending if entry.kind < 0)
        for entry in list(operation.unfinished):
            self.need(entry)
        for entry in list(operation.pending):
            if entry.kind >= 0 and entry.kind != STORED:
                operation.arrived(entry)
        if not operation.unfinished:
            self._pin_all(operation)
        if not operation.pending:
            operation.fire()
        self.core.flush()

    def start_wait(self, operation: WaitOperation) -> None:
        self.operations.append(operation)
        for object_id in operation.object_ids:
            entry = self.own.lookup(object_id, None)
            if entry.kind < 0:
                operation.pending.add(entry)
                self.need(entry)
            elif operation.fetch and self.is_elsewhere(entry):
                operation.pending.add(entry)
                self._bring(entry)
            else:
                operation.ready.add(object_id)
                operation.missing -= 1
        if operation.missing <= 0:
            operation.fire()
        self.core.flush()

    def end_operation(self, operation: Operation) -> None:
        """The thread goes on before its operation has fired; give back what it will not read."""
        if operation in self.operations:
            self.operations.remove(operation)
        operation.abandoned = True
        if isinstance(operation, GetOperation):
            for future in list(operation.pins):
                future.cancel()
            for object_id in operation.places:
                self.core.store.unpin(object_id)
            operation.places.clear()

    def _note(self, operation: Operation, entry: Entry) -> None:
        if isinstance(operation, WaitOperation):
            if operation.fetch and self.is_elsewhere(entry):
                if entry in operation.pending:
                    self._bring(entry)
            else:
                operation.note(entry)
        elif isinstance(operation, GetOperation) and entry in operation.pending:
            if entry.kind != STORED:
                operation.arrived(entry)
            if entry not in operation.unfinished:
                if entry.kind == STORED:  # lost, and computed again
                    self._pin_for(operation, [entry])
            else:
                operation.unfinished.pop(entry, None)
                if not operation.unfinished:
                    self._pin_all(operation)

    def _pin_all(self, operation: GetOperation) -> None:
        """Everything is computed: make it readable. Not before, because a pinned value cannot make room for one that is still to come."""
        if not operation.fired:
            stored = [entry for entry in operation.pending if entry.kind == STORED]
            for start in range(0, len(stored), PINNED_TOGETHER):
                self._pin_for(operation, stored[start : start + PINNED_TOGETHER])

    def _pin_for(self, operation: GetOperation, entries: list[Entry]) -> None:
        future = self.pin(entries, partial(self._pinned, operation), operation.refused)
        operation.pins.add(future)
        future.add_done_callback(operation.pins.discard)

    def _pinned(self, operation: GetOperation, entry: Entry, place: Any) -> None:
        if operation.fired or operation.abandoned:
            self.core.store.unpin(entry.object_id)
            return
        operation.places[entry.object_id] = place
        operation.arrived(entry)

    def pin(
        self,
        entries: list[Entry],
        then: Callable[[Entry, Any], None],
        refused: Callable[[bytes], None],
        lost: Callable[[Entry], None] | None = None,
        urgency: int = 0,
    ) -> asyncio.Future[Any]:
        """Make stored values readable here, then call ``then(entry, place)`` for each. Cancel the future to give up.

        Args:
            refused: gets a serialized error instead: this node has no room for a copy; the values are where they were.
            lost: called instead for a value that is gone: it is being recovered, and completes again, or has failed.
        """
        told: list[Stored] = [entry.data for entry in entries]

        def pinned(done: asyncio.Future[Any]) -> None:
            error = None if done.cancelled() else done.exception()
            if done.cancelled() or (error is not None and self.core.closing):
                return
            if isinstance(error, RequestFailed):
                refused(error_bytes(error, entries[0]))
                return
            again: list[Entry] = []
            for entry, stored, place in zip(entries, told, [None] * len(entries) if error else done.result(), strict=True):
                if place is not None:
                    self.told(entry, self.core.me.node_id)
                    then(entry, place)
                    continue
                if error is None and entry.kind == STORED and entry.data != stored:  # it lies elsewhere by now
                    again.append(entry)
                    continue
                if error is None:
                    self.lost(entry, stored.node_id)
                elif entry.kind == STORED:  # the head has ended, and the value with it
                    self.own.reset(entry)
                    self.complete(entry, FAILED, serialize_system_error(self.core.head_ended()))
                if lost is not None:
                    lost(entry)
            if again:
                self.pin(again, then, refused, lost, urgency)
            self.core.flush()

        future = self.core.store.pin([entry.object_id for entry in entries], told, urgency)
        future.add_done_callback(pinned)
        return future

    def told(self, entry: Entry, node_id: bytes) -> None:
        """A process of this node reads a stored value, or is about to."""
        if entry.kind == STORED and not isinstance(entry, BorrowedEntry):
            self.copies.told(entry.object_id, entry.data.node_id, node_id)

    def is_elsewhere(self, entry: Entry) -> bool:
        """Whether it is a stored value that has not been brought to this node yet. Any thread."""
        stored = entry.data
        return (
            isinstance(stored, Stored) and stored.node_id != self.core.me.node_id and self.brought.get(entry.object_id) != stored
        )  # fmt: skip

    def _bring(self, entry: Entry) -> None:
        """Have a stored value brought to this node, which keeps it for as long as it has room, and tell those who wait for that."""
        if entry in self._bringing:
            return
        self._bringing.add(entry)

        def ended() -> None:
            self._bringing.discard(entry)
            if entry.kind == STORED and self.own.entries.get(entry.object_id) is entry:
                self.brought[entry.object_id] = entry.data
            for operation in self.operations:
                if isinstance(operation, WaitOperation):
                    operation.note(entry)

        def arrived(entry: Entry, _place: Any) -> None:
            self.core.store.unpin(entry.object_id)
            ended()

        # Refused: it will not get here; whoever reads it hears why. Lost: it completes again, or has failed.
        self.pin([entry], arrived, lambda _error: ended(), self._bringing.discard, AHEAD)

    # --- serving borrowers ---------------------------------------------------------------------------------

    def _pass_on(self, channel: Any, message: AddBorrower) -> None:
        """A registration came after our objects went to the node agent."""

        def answered(done: asyncio.Future[Any]) -> None:
            error = done.exception() if not done.cancelled() else ConnectionLost("cancelled")
            if error is None:
                channel.send(Ack(message.rid))
            elif isinstance(error, RequestFailed):
                channel.fail(message.rid, error.kind, error.message)

        future = self.core.agent.request(AddBorrower(0, message.object_id, message.borrower, message.count, message.full))
        future.add_done_callback(answered)

    def turn_away(self) -> None:
        """The node agent has our objects: whoever wanted to read one shall ask there."""
        waiting, self._turned_away = self._turned_away or [], None
        for channel, rid in waiting:
            channel.fail(rid, OWNER_LEFT, "Ask the node agent.")

    def on_get_object(self, channel: Any, message: GetObject) -> None:
        if self.handed_over:
            if self._turned_away is not None:
                self._turned_away.append((channel, message.rid))
            else:
                channel.fail(message.rid, OWNER_LEFT, "Ask the node agent.")
            return
        entry = self.own.entries.get(message.object_id)
        if entry is None or isinstance(entry, BorrowedEntry):
            text = f"The object {message.object_id.hex()} was freed by its owner: no counted reference was left."
            channel.fail(message.rid, "ObjectFreedError", text)
            return
        self.when_done(entry, self._serve, (channel, message))

    def _serve(self, entry: Entry, request: tuple[Any, GetObject]) -> None:
        channel, message = request
        inner = entry.inner or []
        entry.seen = True
        value = Value(entry.kind)
        if entry.kind == STORED:
            value.node_id, value.nbytes = entry.data
            self.told(entry, message.borrower.node_id)
        else:
            value.data = entry.data

        def granted() -> None:
            value.refs = self.infos(inner)  # now: an owner may have left meanwhile
            channel.send(ObjectValue(message.rid, value))

        self.core.when_all(self.grant(inner, message.borrower), granted)

    def on_add_borrower(self, channel: Any, message: AddBorrower) -> None:
        if self.handed_over:
            self._pass_on(channel, message)
            return
        entry = self.own.entries.get(message.object_id)
        if entry is None or isinstance(entry, BorrowedEntry):
            text = f"The object {message.object_id.hex()} was freed by its owner before this process asked to hold it."
            channel.fail(message.rid, "ObjectFreedError", text)
            return
        self.own.add_borrower(entry, message.borrower, message.count)
        channel.send(Ack(message.rid))

    def on_remove_borrower(self, _channel: Any, message: RemoveBorrower) -> None:
        if self.handed_over:
            self.core.agent.send(message)
            return
        self.own.remove_borrower(message.object_id, message.borrower.worker_id, message.count)

    def on_report_lost(self, _channel: Any, message: ReportLost) -> None:
        if self.handed_over:
            self.core.agent.send(message)
            return
        entry = self.own.entries.get(message.object_id)
        if entry is not None and not isinstance(entry, BorrowedEntry):
            self.lost(entry, message.node_id)

    def on_pin_forever(self, _channel: Any, message: PinForever) -> None:
        if self.handed_over:
            self.core.agent.send(message)
            return
        entry = self.own.entries.get(message.object_id)
        if entry is not None:
            entry.count += 1


def _nothing() -> None:
    """What follows does not wait for it."""


def error_bytes(error: BaseException, entry: Entry) -> bytes:
    """Turn a failed request into the serialized error that ``get`` raises."""
    object_id = entry.object_id.hex()
    if isinstance(error, RequestFailed):
        if error.detail:
            return error.detail
        return serialize_system_error(error_named(error.kind, error.message, object_id))
    return serialize_system_error(
        exceptions.OwnerDiedError(object_id, f"The process that owned object {object_id} cannot be reached: {error}.")
    )
