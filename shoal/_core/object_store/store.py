"""The server side of the object store: creation, reading, freeing. Runs in the node agent's process, on its loop.

    writer                     store                                          reader
    CreateObject  ───────────▶ room? (may drop, spill, wait)
                  ◀─────────── ObjectCreated(offset | path)
    (writes into the arena)
    SealObject    ───────────▶ primary copy, stays until FreeObjects ◀─────── PinObjects
                               on disk? room, read back              ───────▶ ObjectsPinned(offset | path)
                                                                              (reads in place)
    FreeObjects   ───────────▶ range free once the last reader left  ◀─────── UnpinObjects

A creation that only readers stand in the way of waits ``store_full_timeout_s``; then it gets a file of its own on disk (Ray's fallback
allocation), unless the disk refuses too: ObjectStoreFullError. A restore never waits for readers: the object is then read from its file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from shoal._base.settings import Settings
from shoal._core.object_store.arena import Arena
from shoal._core.object_store.disk import Disk, DiskUsage, format_bytes
from shoal._core.object_store.entries import (
    Entry,
    Peer,
    PinWait,
    Session,
    StoredObject,
    StoreStatistics,
    describe_holders,
)  # fmt: skip
from shoal._core.object_store.remote import RemoteFiles
from shoal._core.object_store.residence import Residence, Restore
from shoal._core.object_store.spilling import Slot, format_location, parse_location
from shoal._core.object_store.warming import AHEAD_BYTES
from shoal._core.wire.messages import (
    AbortObject,
    Address,
    CancelRequest,
    CreateObject,
    FreeObjects,
    Message,
    ObjectCreated,
    ObjectRefInfo,
    ObjectsPinned,
    PinObjects,
    SealObject,
    UnpinObjects,
)  # fmt: skip

log = logging.getLogger("shoal.object_store")

#: Offsets in ``ObjectsPinned`` that are none.
LOST, ON_DISK = -1, -2


class Puller(Peer, Protocol):
    """Makes copies of objects of other nodes, as the creator of what it was told to ``want``."""

    def want(self, object_id: bytes, node_id: bytes, nbytes: int, urgency: int) -> None: ...
    def unwanted(self, object_id: bytes) -> None: ...


class ObjectStore:
    """The objects of one node.

    Args:
        loop: everything runs on it; disk work in threads that ``close`` joins.
        arena: stays the caller's; close it after the store.
        spill_dir: belongs to this store alone; made at first use, removed by ``close``.
        disk: instead of one made from ``spill_dir`` and ``usage``.
        remote: where objects are spilled, if not to the local disk.
        usage: figures of the file system (tests inject their own).
        overflow_to_disk: whether a creation that readers stand in the way of for too long gets a file, instead of ObjectStoreFullError.
        warm_ahead_bytes: how far pages are readied ahead of use; 0: never.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        arena: Arena,
        spill_dir: str,
        settings: Settings,
        disk: Disk | None = None,
        remote: RemoteFiles | None = None,
        *,
        usage: Callable[[str], DiskUsage] | None = None,
        overflow_to_disk: bool = True,
        warm_ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._overflow_to_disk = overflow_to_disk
        self._disk = disk or Disk(spill_dir, settings.disk_usage_threshold, usage)
        self._residence = Residence(
            loop, arena, self._disk, remote or self._disk, settings.spill_file_bytes, warm_ahead_bytes,
            self._on_room, self._on_restore, self._judge_waiting,
        )  # fmt: skip
        self._residence.on_spilled = self._tell_spilled
        self._sessions: dict[Any, Session] = {}
        #: None: there are no other nodes.
        self.puller: Puller | None = None
        #: Told which primary copies have been freed.
        self.on_freed: Callable[[list[bytes]], None] | None = None
        #: Told what lies behind a URL from now on: (owner, object, its place there).
        self.on_spilled: Callable[[list[tuple[Address, bytes, str]]], None] | None = None
        #: ``departures`` when a creation had waited for readers in vain: until one more goes, the next need not try.
        self._stuck_at = -1

    # --- messages ---

    def handle(self, conn: Peer, message: Message) -> bool:
        """Handle one message. False: it is none of the store's."""
        handler = _HANDLERS.get(type(message))
        if handler is None:
            return False
        handler(self, conn, message)
        self._residence.advance()
        if self._settings.debug:
            self.check()
        return True

    def disconnected(self, conn: Peer) -> None:
        """The process is gone: what it read is released, what it was writing is aborted."""
        session = self._sessions.pop(conn, None)
        if session is None:
            return
        for entry in list(session.creating.values()):
            self._abort(entry)
        for wait in list(session.waits.values()):
            self._give_up_waiting(wait)
        for entries in session.pins.values():
            for entry in entries:
                self._residence.unpin(entry)
        self._residence.advance()

    def _create(self, conn: Peer, message: CreateObject) -> None:
        old = self._residence.objects.get(message.object_id)
        if old is not None and old.sealed:
            if old.is_copy:
                self._residence.promote(old, message.owner, [])
            conn.fail(message.rid, "ObjectExists", f"Object {message.object_id.hex()} is sealed already.")
            return
        entry = Entry(message.object_id, message.nbytes, message.owner, creator=conn, rid=message.rid)
        if old is not None:
            # Another attempt of the same task. The old writer may still be writing into its range, which therefore stays until that writer
            # seals, aborts or dies.
            entry.waiters, old.waiters = old.waiters, []
            for wait, _ in entry.waiters:
                wait.waits_for[wait.waits_for.index(old)] = entry
            self._forget(old)
            if old.creator is conn:
                self._abort(old)
            self._residence.settle(old)
        self._residence.objects[message.object_id] = self._session(conn).creating[message.object_id] = entry
        self._ask_room(entry)

    def _ask_room(self, entry: Entry) -> None:
        if self._residence.admission.fits(entry.nbytes):
            self._residence.ask(entry, patient=True)
        else:
            self._create_on_disk(entry)

    def _seal(self, conn: Peer, message: SealObject) -> None:
        entry = self._session(conn).creating.pop(message.object_id, None)
        if entry is None:
            return
        entry.creator = None
        if not entry.gone:
            entry.refs = message.refs
            self._residence.seal(entry)
            waiters, entry.waiters = entry.waiters, []
            for wait, index in waiters:
                wait.waits_for.remove(entry)
                self._pin(wait, index, entry)
                self._one_less(wait)
        self._residence.settle(entry)

    def _abort_message(self, conn: Peer, message: AbortObject) -> None:
        entry = self._session(conn).creating.get(message.object_id)
        if entry is not None:
            self._abort(entry)

    def _pin_objects(self, conn: Peer, message: PinObjects) -> None:
        count = len(message.object_ids)
        wait = PinWait(conn, message.rid, [(LOST, 0)] * count, [], missing=1)
        self._session(conn).waits[message.rid] = wait
        objects, puller = self._residence.objects, self.puller
        for index, object_id in enumerate(message.object_ids):
            entry = objects.get(object_id)
            if puller is not None and message.sources and (entry is None or entry.creator is puller):
                node_id, nbytes = message.sources[index]
                puller.want(object_id, node_id, nbytes, message.urgency)
                entry = objects.get(object_id)
            if entry is None:
                continue
            if entry.sealed:
                self._pin(wait, index, entry)
            else:
                self._wait_for(wait, index, entry)
        self._one_less(wait)

    def _cancel(self, conn: Peer, message: CancelRequest) -> None:
        session = self._sessions.get(conn)
        wait = session.waits.get(message.request) if session is not None else None
        if wait is not None:
            self._give_up_waiting(wait)

    def _give_up_waiting(self, wait: PinWait) -> None:
        """Answer with what is there now; what only this one waited for is not fetched any more."""
        for entry in wait.waits_for:
            entry.waiters = [waiter for waiter in entry.waiters if waiter[0] is not wait]
            if entry.sealed:
                # Its restore goes on, for others or for none.
                if self._take_pin(wait.peer, entry):
                    self._residence.unpin(entry)
            elif not entry.waiters and self.puller is not None and entry.creator is self.puller:
                self.puller.unwanted(entry.object_id)
        wait.missing = 1
        self._one_less(wait)

    def _wait_for(self, wait: PinWait, index: int, entry: Entry) -> None:
        wait.missing += 1
        wait.waits_for.append(entry)
        entry.waiters.append((wait, index))

    def _unpin_objects(self, conn: Peer, message: UnpinObjects) -> None:
        pins = self._session(conn).pins
        for object_id in message.object_ids:
            if object_id in pins:
                entry = pins[object_id][0]
                self._take_pin(conn, entry)
                self._residence.unpin(entry)

    def _free_objects(self, _conn: Peer, message: FreeObjects) -> None:
        self.free(message.object_ids, copies=message.copies, primaries=message.primaries)

    # --- for the puller ---

    def expect(self, puller: Puller, rid: int, object_id: bytes, nbytes: int, owner: Address) -> None:
        """A copy of this object is going to be made: readers wait for it from now on, room is asked for by ``make_room``."""
        entry = Entry(object_id, nbytes, owner, creator=puller, rid=rid, is_copy=True)
        self._residence.objects[object_id] = self._session(puller).creating[object_id] = entry

    def is_expected(self, puller: Puller, object_id: bytes) -> bool:
        """Whether the copy that is being made has not been freed, or replaced by one that a worker makes."""
        entry = self._residence.objects.get(object_id)
        return entry is not None and entry.creator is puller

    def make_room(self, puller: Puller, object_id: bytes) -> bool:
        """Ask for the room of an expected copy; the puller gets ObjectCreated or a failure, as any creator. False: it is not expected."""
        if not self.is_expected(puller, object_id):
            entry = self._session(puller).creating.get(object_id)
            if entry is not None:
                self._abort(entry)
            return False
        self._ask_room(self._residence.objects[object_id])
        self._residence.advance()
        return True

    # --- for the node agent ---

    def free(self, object_ids: Iterable[bytes], *, copies: bool = True, primaries: bool = True) -> None:
        """Nobody will ask for these again, as copies or as primary copies. Readers keep what they have; the rest goes at once."""
        freed = []
        for object_id in object_ids:
            entry = self._residence.objects.get(object_id)
            if entry is not None and (copies if entry.is_copy else primaries):
                if not entry.is_copy:
                    freed.append(object_id)
                self._forget(entry)
                self._residence.settle(entry)
        self._residence.advance()
        if freed and self.on_freed is not None:
            self.on_freed(freed)

    def promote(self, object_id: bytes, owner: Address, refs: list[ObjectRefInfo]) -> bool:
        """Make the copy that is here the primary copy of this owner, which stays until it is freed. False: it is not here, or not whole."""
        entry = self._residence.objects.get(object_id)
        if entry is None or not entry.sealed:
            return False
        if entry.is_copy:
            self._residence.promote(entry, owner, refs)
        else:
            self._residence.change_owner(entry, owner)
        return True

    def adopt_spilled(self, object_id: bytes, nbytes: int, owner: Address, refs: list[ObjectRefInfo], location: str) -> bool:
        """Make what a dead node has spilled there an object of this node, its primary copy; it is read when it is needed.

        False: this node spills elsewhere, and does not reach it, or the object is being made here.
        """
        spilled = self._residence.spilled
        path, offset = parse_location(location)
        name = spilled.name_at(path) if isinstance(spilled, RemoteFiles) else ""
        old = self._residence.objects.get(object_id)
        if not name or (old is not None and (old.sealed or old.creator is not self.puller)):
            return False
        entry = Entry(object_id, nbytes, owner, refs=refs)
        waiters: list[tuple[PinWait, int]] = []
        if old is not None:  # it was being fetched from the node that has died
            waiters, old.waiters = old.waiters, []
            self._forget(old)
        self._residence.adopt(entry, Slot(name, offset, nbytes))
        for wait, index in waiters:
            wait.waits_for = [entry if one is old else one for one in wait.waits_for]
            wait.waits_for.remove(entry)
            self._pin(wait, index, entry)
            self._one_less(wait)
        self._residence.advance()
        return True

    def held_files(self, directory: str) -> list[str]:
        """Return the files of a dead node's directory in which objects of this node lie."""
        return self._residence.files.held(f"{directory}/")

    def _tell_spilled(self, entries: list[Entry]) -> None:
        if self.on_spilled is not None:
            found = self._residence.locations(entries)
            self.on_spilled([(entry.owner, entry.object_id, format_location(path, offset)) for entry, path, offset in found])

    def contains(self, object_id: bytes) -> bool:
        """Whether the object is sealed and can be read."""
        entry = self._residence.objects.get(object_id)
        return entry is not None and entry.sealed

    def stored(self, object_id: bytes) -> tuple[Address, int, list[ObjectRefInfo]] | None:
        """Return (owner, bytes, references inside) of a sealed object; None if there is none."""
        entry = self._residence.objects.get(object_id)
        return (entry.owner, entry.nbytes, entry.refs) if entry is not None and entry.sealed else None

    def primaries(self) -> list[tuple[bytes, Address]]:
        """Return the sealed objects whose primary copies are here, and their owners. O(objects)."""
        return [(object_id, entry.owner) for owned in self._residence.by_owner.values() for object_id, entry in owned.items()]

    def owners(self) -> list[tuple[Address, bytes]]:
        """Return (owner, one of its objects) for all owners of primary copies here. O(owners)."""
        return [(next(iter(owned.values())).owner, next(iter(owned))) for owned in self._residence.by_owner.values()]

    def objects_of(self, worker_id: bytes) -> list[StoredObject]:
        """Return the sealed objects whose owner is this process."""
        owned = self._residence.by_owner.get(worker_id, {}).values()
        return [StoredObject(entry.object_id, entry.nbytes, entry.refs) for entry in owned]

    async def read_bytes(self, object_id: bytes) -> bytes | None:
        """Copy an object's bytes out, wherever it is. None: unknown or lost."""
        return await self._residence.read_bytes(self._residence.objects[object_id]) if self.contains(object_id) else None

    def drop_copy(self, object_id: bytes) -> bool:
        """Fault injection: the copy in memory vanishes, as by eviction; without one on disk the object is lost. False: not there."""
        entry = self._residence.objects.get(object_id)
        if entry is None or not entry.sealed:
            return False
        return self._residence.drop_copy(entry) or self.lose(object_id)

    def lose(self, object_id: bytes) -> bool:
        """Fault injection: memory and disk have lost the object; whoever reads it keeps it. False: it was not there."""
        entry = self._residence.objects.get(object_id)
        if entry is not None:
            self._forget(entry)
            self._residence.settle(entry)
            self._residence.advance()
        return entry is not None

    def statistics(self) -> StoreStatistics:
        residence = self._residence
        memory, waiting, files = residence.admission.allocator, residence.admission.statistics(), residence.files.statistics()
        usage = self._disk.usage()
        sealed = [entry for entry in residence.objects.values() if entry.sealed]
        return StoreStatistics(
            capacity_bytes=memory.capacity_bytes, used_bytes=memory.used_bytes, pinned_bytes=residence.pinned_bytes,
            high_water_bytes=memory.high_water_bytes, warmed_bytes=residence.warmed_bytes,
            objects=len(sealed), objects_bytes=sum(entry.nbytes for entry in sealed),
            in_memory=sum(entry.in_memory for entry in sealed),
            on_disk=sum(not entry.in_memory and not entry.own_file for entry in sealed), own_files=residence.own_files,
            waiting=waiting.waiting, waiting_bytes=waiting.waiting_bytes,
            spill_files=files.files, spill_file_bytes=files.file_bytes,
            spilled_objects_total=residence.spilled_objects, spilled_bytes_total=residence.spilled_bytes,
            restored_objects_total=residence.restored_objects, restored_bytes_total=residence.restored_bytes,
            disk_usage=usage.used / usage.total if usage.total else 0.0,
        )  # fmt: skip

    def check(self) -> None:
        """Assert the invariants. O(objects)."""
        pins: dict[Entry, int] = {}
        for session in self._sessions.values():
            for entries in session.pins.values():
                for entry in entries:
                    pins[entry] = pins.get(entry, 0) + 1
        self._residence.check(pins)

    async def close(self) -> None:
        """End the threads and delete every file. Requests that still wait are not answered."""
        for session in self._sessions.values():
            for entry in session.creating.values():
                entry.stop_timer()
        await self._residence.close()

    # --- reading ---

    def _pin(self, wait: PinWait, index: int, entry: Entry) -> None:
        """Count a reader and note where it finds the object, or make the answer wait for its restore."""
        if wait.peer.closed:
            return
        self._session(wait.peer).pins.setdefault(entry.object_id, []).append(entry)
        if self._residence.pin(entry):
            wait.places[index] = (entry.offset, entry.nbytes)
        elif entry.own_file:
            self._point_to_file(wait, index, entry)
        else:
            self._wait_for(wait, index, entry)
            if entry.request is None and not entry.fetching:
                self._residence.ask(entry, patient=False)

    def _on_restore(self, entry: Entry, outcome: Restore, refusal: tuple[str, str] | None) -> None:
        waiters, entry.waiters = entry.waiters, []
        for wait, index in waiters:
            wait.waits_for.remove(entry)
            if outcome is Restore.IN_MEMORY:
                wait.places[index] = (entry.offset, entry.nbytes)
            elif outcome is Restore.STAYS_ON_DISK:
                self._point_to_file(wait, index, entry)
            else:
                if refusal is not None:
                    wait.refused.append((index, *refusal))
                if self._take_pin(wait.peer, entry):
                    entry.pins -= 1
            self._one_less(wait)

    def _point_to_file(self, wait: PinWait, index: int, entry: Entry) -> None:
        wait.paths = wait.paths or [""] * len(wait.places)
        name, offset = entry.file
        wait.paths[index] = format_location(self._disk.path_of(name), offset)
        wait.places[index] = (ON_DISK, entry.nbytes)

    def _one_less(self, wait: PinWait) -> None:
        wait.missing -= 1
        if wait.missing == 0:
            session = self._sessions.get(wait.peer)
            if session is not None:
                session.waits.pop(wait.rid, None)
            if not wait.peer.closed:
                wait.peer.send(ObjectsPinned(wait.rid, wait.places, wait.paths, wait.refused))

    def _take_pin(self, conn: Peer, entry: Entry) -> bool:
        """Forget that this connection reads the entry. False: it does not."""
        session = self._sessions.get(conn)
        entries = session.pins.get(entry.object_id, []) if session is not None else []
        if session is None or entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del session.pins[entry.object_id]
        return True

    # --- writing ---

    def _forget(self, entry: Entry, refusal: tuple[str, str] | None = None) -> None:
        """The id leads nowhere; whoever waits for the object's seal, or for room for it, learns so: it is lost, or why it was refused."""
        if entry.gone:
            return
        self._residence.forget(entry)
        if entry.sealed:
            return
        if self.puller is not None and entry.creator is self.puller:
            self.puller.unwanted(entry.object_id)
        waiters, entry.waiters = entry.waiters, []
        for wait, index in waiters:
            wait.waits_for.remove(entry)
            if refusal is not None:
                wait.refused.append((index, *refusal))
            self._one_less(wait)
        if entry.request is not None and entry.creator is not None:
            # Nobody needs the room any more; the writer goes on as if another attempt had stored the object.
            text = f"Object {entry.object_id.hex()} has been freed, or is being written by another process."
            entry.creator.fail(entry.rid, "ObjectExists", text)
            self._no_creator(entry)

    def _abort(self, entry: Entry, refusal: tuple[str, str] | None = None) -> None:
        """The writer gave up or died, or was refused."""
        self._no_creator(entry)
        self._forget(entry, refusal)
        self._residence.settle(entry)

    def _no_creator(self, entry: Entry) -> None:
        entry.stop_timer()
        session = self._sessions.get(entry.creator)
        if session is not None and session.creating.get(entry.object_id) is entry:
            del session.creating[entry.object_id]
        entry.creator = None

    def _on_room(self, entry: Entry) -> None:
        entry.stop_timer()
        if entry.creator is not None:
            entry.creator.send(ObjectCreated(entry.rid, entry.offset))

    def _create_on_disk(self, entry: Entry) -> None:
        """Give the object a file of its own."""
        refusal = self._disk.refusal(entry.nbytes, self._loop.time())
        if refusal:
            self._refuse(entry, "OutOfDiskError", refusal)
            return

        def reserved(error: BaseException | None) -> None:
            if error is not None:
                self._refuse(entry, "OutOfDiskError", self._disk.refusal(entry.nbytes, self._loop.time()) or str(error))
            elif entry.creator is not None:
                entry.creator.send(ObjectCreated(entry.rid, 0, self._disk.path_of(entry.own_file)))

        self._residence.reserve_file(entry, reserved)

    def _refuse(self, entry: Entry, kind: str, text: str) -> None:
        if entry.creator is not None:
            entry.creator.fail(entry.rid, kind, text)
        # The object of a refused copy is not lost: it is where it was.
        self._abort(entry, (kind, text) if entry.is_copy else None)

    def _judge_waiting(self) -> None:
        """Judge the creations that still wait: a full disk refuses them now, readers after a while."""
        admission = self._residence.admission
        if not admission.waiting():
            return
        for session in list(self._sessions.values()):
            for entry in [entry for entry in session.creating.values() if entry.request is not None]:
                if not admission.spillable and self._residence.spilled.refuses_at_once and admission.needs_disk(entry.nbytes):
                    self._residence.withdraw(entry)
                    self._refuse(entry, "OutOfDiskError", self._disk.refusal(0, self._loop.time()))
                elif entry.timer is None:
                    in_vain = self._stuck_at == self._residence.departures
                    entry.timer = self._loop.call_later(0.0 if in_vain else self._settings.store_full_timeout_s, self._waited, entry)

    def _waited(self, entry: Entry) -> None:
        """The time of a creation that waits for readers, or for a slow disk, is over."""
        entry.timer = None
        text = self._full_text(entry) + self._spill_problem()
        if not self._residence.withdraw(entry):
            return
        self._stuck_at = self._residence.departures
        if self._overflow_to_disk and not self._disk.refusal(entry.nbytes, self._loop.time()):
            log.warning("%s The object is written to disk instead.", text)
            self._create_on_disk(entry)
        else:
            self._refuse(entry, "ObjectStoreFullError", text)
        self._residence.advance()

    def _spill_problem(self) -> str:
        spilled = self._residence.spilled
        problem = "" if spilled is self._disk else spilled.refusal(0, self._loop.time())
        return f" {problem}" if problem else ""

    def _full_text(self, entry: Entry) -> str:
        residence = self._residence
        memory, files = residence.admission.allocator, residence.files.statistics()
        writing = sum(e.nbytes for session in self._sessions.values() for e in session.creating.values() if e.in_memory)
        return (
            f"The object store has no room for an object of {format_bytes(entry.nbytes)} ({entry.nbytes} bytes): of its "
            f"{format_bytes(memory.capacity_bytes)}, {format_bytes(residence.pinned_bytes)} are being read and cannot move "
            f"({describe_holders(self._sessions)}), {format_bytes(writing)} are being written, {format_bytes(memory.free_bytes)} are free "
            f"(largest range {format_bytes(memory.statistics().largest_free_bytes)}); {format_bytes(files.live_bytes)} are spilled. "
            f"Drop arrays and tables that came from get() when they are done with, copy the small part that is needed, "
            f"or give the store more memory (object_store_memory)."
        )

    def _session(self, conn: Peer) -> Session:
        session = self._sessions.get(conn)
        if session is None:
            session = self._sessions[conn] = Session()
        return session


_HANDLERS: dict[type[Message], Callable[[ObjectStore, Peer, Any], None]] = {
    CreateObject: ObjectStore._create,
    SealObject: ObjectStore._seal,
    AbortObject: ObjectStore._abort_message,
    PinObjects: ObjectStore._pin_objects,
    CancelRequest: ObjectStore._cancel,
    UnpinObjects: ObjectStore._unpin_objects,
    FreeObjects: ObjectStore._free_objects,
}
