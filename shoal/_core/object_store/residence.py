"""What is where: which object has which range, file, readers and jobs, and what becomes of it after a change.

An object is in memory, on disk, or both. What is read, being written, or under a disk job is never moved, and its range is never reused.
``settle`` is the one place that decides: evictable, to be kept, or to be forgotten together with its range and its files.

Must not know: connections and messages. ``store.py`` calls it and is called back when a creation has room or a restore has ended.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Iterable

from shoal._core.object_store.admission import Admission, Blocked, Dropped, Granted, RoomRequest, Spill
from shoal._core.object_store.allocation import round_up
from shoal._core.object_store.arena import Arena
from shoal._core.object_store.disk import PAUSE_S, Disk, Piece, format_bytes
from shoal._core.object_store.entries import Entry
from shoal._core.object_store.remote import RemoteFiles, RemoteUnreachable
from shoal._core.object_store.spilling import SUFFIX, Slot, SpillFiles
from shoal._core.object_store.warming import Warmer
from shoal._core.wire.messages import Address, ObjectRefInfo

log = logging.getLogger("shoal.object_store")


class Restore(enum.Enum):
    """How the restore of an object ended."""

    IN_MEMORY = enum.auto()
    #: Readers hold the memory that it needs; read its disk file.
    STAYS_ON_DISK = enum.auto()
    LOST = enum.auto()
    #: It cannot be had now, for want of disk or of an answer; it is where it was.
    REFUSED = enum.auto()


class Residence:
    """The objects of one store and their places.

    Args:
        disk: where objects have files of their own, which processes map.
        spilled: where objects are written to make room: the same disk, or behind a URL.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        arena: Arena,
        disk: Disk,
        spilled: Disk | RemoteFiles,
        batch_bytes: int,
        warm_ahead_bytes: int,
        on_room: Callable[[Entry], None],
        on_restore: Callable[[Entry, Restore, tuple[str, str] | None], None],
        on_advanced: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._arena = arena
        self._on_room = on_room
        self._on_restore = on_restore
        self._on_advanced = on_advanced
        self._warmer = Warmer(arena, warm_ahead_bytes)
        self._own_files_made = 0
        self._closed = False
        self.disk = disk
        self.spilled = spilled
        self.files = SpillFiles(spilled.name_of)
        #: Told what has been written where other nodes can read it.
        self.on_spilled: Callable[[list[Entry]], None] | None = None
        self.admission: Admission[Entry] = Admission(arena.nbytes, batch_bytes)
        #: What an id leads to: unsealed or sealed, never gone.
        self.objects: dict[bytes, Entry] = {}
        #: Owner -> its sealed objects.
        self.by_owner: dict[bytes, dict[bytes, Entry]] = {}
        #: Bytes of sealed objects in memory that somebody reads.
        self.pinned_bytes = 0
        #: Counts every time that a range or a reader has gone: while it stands still, waiting is in vain.
        self.departures = 0
        self.own_files = 0
        self.spilled_objects = self.spilled_bytes = self.restored_objects = self.restored_bytes = 0

    @property
    def warmed_bytes(self) -> int:
        return self._warmer.warmed_bytes

    # --- ids ---

    def seal(self, entry: Entry) -> None:
        entry.sealed = True
        if not entry.is_copy:
            self.by_owner.setdefault(entry.owner.worker_id, {})[entry.object_id] = entry

    def promote(self, entry: Entry, owner: Address, refs: list[ObjectRefInfo]) -> None:
        """A sealed copy is the primary copy from now on."""
        was_evictable = self.admission.policy.remove(entry)
        entry.is_copy, entry.owner, entry.refs = False, owner, refs
        self.by_owner.setdefault(owner.worker_id, {})[entry.object_id] = entry
        if was_evictable:
            self.settle(entry)

    def change_owner(self, entry: Entry, owner: Address) -> None:
        """The primary copy has another owner from now on."""
        self._disown(entry)
        entry.owner = owner
        self.by_owner.setdefault(owner.worker_id, {})[entry.object_id] = entry

    def forget(self, entry: Entry) -> None:
        """The id leads nowhere from now on. The bytes go when ``settle`` finds that nobody needs them."""
        entry.gone = True
        if self.objects.get(entry.object_id) is entry:
            del self.objects[entry.object_id]
        self._disown(entry)

    def _disown(self, entry: Entry) -> None:
        owned = self.by_owner.get(entry.owner.worker_id)
        if owned is not None and owned.get(entry.object_id) is entry:
            del owned[entry.object_id]
            if not owned:
                del self.by_owner[entry.owner.worker_id]

    # --- readers ---

    def pin(self, entry: Entry) -> bool:
        """One reader more. True: it is in memory and stays there. False: ask for its restore, or read its file."""
        entry.pins += 1
        if not entry.in_memory:
            return False
        if entry.pins == 1:
            self.pinned_bytes += entry.nbytes
            self.admission.policy.remove(entry)
        return True

    def unpin(self, entry: Entry) -> None:
        entry.pins -= 1
        if entry.pins == 0 and entry.in_memory:
            self.pinned_bytes -= entry.nbytes
            self.departures += 1
        self.settle(entry)

    # --- room ---

    def ask(self, entry: Entry, *, patient: bool) -> None:
        """Ask for a range, for a creation (patient: it waits for readers) or a restore. Then call ``advance``."""
        entry.request = RoomRequest(entry, entry.nbytes, patient)
        self.admission.ask(entry.request)

    def withdraw(self, entry: Entry) -> bool:
        """Ask no more. False: it was not waiting."""
        request, entry.request = entry.request, None
        return request is not None and self.admission.withdraw(request)

    def advance(self) -> None:
        """Give room to whoever can have it now, and start the disk work that this takes."""
        if self._closed:
            return
        # Not for every creation: three system calls, of 49 us of this thread for an object that came from another node 9.
        if self.admission.waiting() and not self.admission.needs_no_disk():
            self.admission.spillable = not self.spilled.refusal(0, self._loop.time())
        while actions := self.admission.advance():
            for action in actions:
                if isinstance(action, Granted):
                    self._granted(action.request.key, action.offset)
                elif isinstance(action, Dropped):
                    action.key.offset = -1
                    if action.key.slot is None:
                        self.forget(action.key)
                elif isinstance(action, Spill):
                    self._spill(action.keys)
                elif isinstance(action, Blocked):
                    action.request.key.request = None
                    self._blocked(action.request.key)
        self._on_advanced()
        self._warmer.used_until(self.admission.allocator.high_water_bytes)

    def settle(self, entry: Entry) -> None:
        """Decide what becomes of an object after any change."""
        policy = self.admission.policy
        if not entry.gone:
            if entry.sealed and not entry.pins and entry.in_memory and policy.state_of(entry) is None:
                # What its range has, which is what would come free: with fewer, a request for all of the memory waits in vain.
                clean = entry.slot is not None or entry.is_copy
                policy.add(entry, round_up(entry.nbytes), "cleaning" if entry.spilling else "clean" if clean else "dirty")
            if entry.slot is not None and entry.own_file and not entry.pins and not entry.jobs:
                self._drop_own_file(entry)
            return
        policy.remove(entry)
        if entry.pins or entry.jobs or entry.creator is not None:
            return
        self.withdraw(entry)
        self.departures += 1
        self.admission.release(entry)
        entry.offset = -1
        if entry.own_file:
            self._drop_own_file(entry)
        if entry.slot is not None:
            self._remove_spilled(self.files.release(entry.slot))
            entry.slot = None

    def _drop_own_file(self, entry: Entry) -> None:
        self.own_files -= 1
        name, entry.own_file = entry.own_file, ""
        if not self._closed:
            self.disk.run(self._loop, self.disk.remove, name)

    def _granted(self, entry: Entry, offset: int) -> None:
        entry.offset = offset
        if not entry.sealed:
            entry.request = None
            self._on_room(entry)
            return
        assert entry.slot is not None
        entry.jobs += 1
        piece = Piece(offset, entry.slot.offset, entry.nbytes)
        job = self.spilled.run(self._loop, self.spilled.read, self._arena, entry.slot.file, piece)
        job.add_done_callback(lambda done: self._restored(entry, _error_of(done)))

    def _blocked(self, entry: Entry) -> None:
        """Readers hold the memory that a restore needs: it is read from disk, to which it is brought if it lies elsewhere."""
        spilled, slot = self.spilled, entry.slot
        assert slot is not None
        if not isinstance(spilled, RemoteFiles):
            self._on_restore(entry, Restore.STAYS_ON_DISK, None)
            return
        refusal = self.disk.refusal(entry.nbytes, self._loop.time())
        if refusal:
            self._on_restore(entry, Restore.REFUSED, ("OutOfDiskError", refusal))
            self.settle(entry)
            return
        name = self._new_own_file()
        entry.fetching = True
        entry.jobs += 1

        def fetch() -> None:
            self.disk.reserve(name, entry.nbytes)
            try:
                spilled.fetch(slot.file, slot.offset, entry.nbytes, self.disk.path_of(name))
            except BaseException:
                self.disk.remove(name)
                raise

        def fetched(done: asyncio.Future[None]) -> None:
            error = _error_of(done)
            entry.fetching = False
            entry.jobs -= 1
            if error is None:
                entry.own_file = name
                self.own_files += 1
                self._on_restore(entry, Restore.STAYS_ON_DISK, None)
            else:
                self._not_restored(entry, error)
            self.settle(entry)

        spilled.run(self._loop, fetch).add_done_callback(fetched)

    # --- disk ---

    def _restored(self, entry: Entry, error: BaseException | None) -> None:
        entry.jobs -= 1
        entry.request = None
        if error is None:
            self.restored_objects += 1
            self.restored_bytes += entry.nbytes
            if entry.pins:
                self.pinned_bytes += entry.nbytes
            self._on_restore(entry, Restore.IN_MEMORY, None)
        else:
            self.admission.release(entry)
            entry.offset = -1
            self._not_restored(entry, error)
        self.settle(entry)
        self.advance()

    def _not_restored(self, entry: Entry, error: BaseException) -> None:
        if not self._closed:
            log.error("object %s (%s) cannot be read back: %s", entry.object_id.hex(), format_bytes(entry.nbytes), error)
        if self.spilled.is_lost(error):
            self._on_restore(entry, Restore.LOST, None)
            self.forget(entry)
        else:
            kind = "ObjectFetchTimedOutError" if isinstance(error, RemoteUnreachable) else "OutOfDiskError"
            self._on_restore(entry, Restore.REFUSED, (kind, str(error)))

    def _spill(self, entries: list[Entry]) -> None:
        slots = self.files.new_file([entry.nbytes for entry in entries])
        for entry in entries:
            entry.jobs += 1
            entry.spilling = True
        pieces = [Piece(entry.offset, slot.offset, entry.nbytes) for entry, slot in zip(entries, slots, strict=True)]

        def written(done: asyncio.Future[None]) -> None:
            error = _error_of(done)
            for entry, slot in zip(entries, slots, strict=True):
                entry.jobs -= 1
                entry.spilling = False
                if error is None and not entry.gone:
                    entry.slot = slot
                else:
                    self._remove_spilled(self.files.release(slot))
            if error is None:
                self.spilled_objects += len(entries)
                self.spilled_bytes += sum(entry.nbytes for entry in entries)
                self.admission.spilled(entries)
                if self.spilled.is_remote and self.on_spilled is not None:
                    self.on_spilled([entry for entry in entries if not entry.gone])
            else:
                self._note_error(self.spilled, error)
                self.admission.not_spilled(entries)
            for entry in entries:
                self.settle(entry)
            self.advance()

        self.spilled.run(self._loop, self.spilled.write, self._arena, slots[0].file, pieces).add_done_callback(written)

    def adopt(self, entry: Entry, slot: Slot) -> None:
        """An object that a dead node has written is ours from now on; it is read when it is needed."""
        entry.slot = slot
        self.files.adopt(slot)
        self.objects[entry.object_id] = entry
        self.seal(entry)

    def locations(self, entries: Iterable[Entry]) -> list[tuple[Entry, str, int]]:
        """Return the file and offset, as other nodes find it, of those that are spilled where they can."""
        return [(e, self.spilled.location(e.slot.file), e.slot.offset) for e in entries if e.slot is not None]

    def reserve_file(self, entry: Entry, then: Callable[[BaseException | None], None]) -> None:
        """Make a file of its own for an object, then call back with the error or None."""
        entry.own_file = self._new_own_file()
        self.own_files += 1
        entry.jobs += 1

        def reserved(done: asyncio.Future[None]) -> None:
            error = _error_of(done)
            entry.jobs -= 1
            if error is not None:
                self._note_error(self.disk, error)
                self.own_files -= 1
                entry.own_file = ""
            then(error)
            self.settle(entry)

        self.disk.run(self._loop, self.disk.reserve, entry.own_file, entry.nbytes).add_done_callback(reserved)

    def _new_own_file(self) -> str:
        self._own_files_made += 1
        return f"object-{self._own_files_made:08d}{SUFFIX}"

    async def read_bytes(self, entry: Entry) -> bytes | None:
        """Copy an object's bytes out, wherever it is. None: the disk has lost it."""
        if entry.in_memory:
            return bytes(self._arena.view(entry.offset, entry.nbytes))
        place: Disk | RemoteFiles = self.disk if entry.own_file else self.spilled
        name, offset = entry.file
        entry.jobs += 1
        try:
            return await place.run(self._loop, place.read_bytes, name, offset, entry.nbytes)
        except OSError as error:
            log.warning("object %s cannot be read back: %s", entry.object_id.hex(), error)
            return None
        finally:
            entry.jobs -= 1
            self.settle(entry)

    def drop_copy(self, entry: Entry) -> bool:
        """Take the memory of an object that has a copy on disk. False: it has none, or is in use."""
        if not entry.in_memory or entry.slot is None or entry.jobs or entry.pins:
            return False
        self.admission.release(entry)
        entry.offset = -1
        return True

    def _note_error(self, place: Disk | RemoteFiles, error: BaseException) -> None:
        if not self._closed:
            place.note_error(error, self._loop.time())
            self._loop.call_later(PAUSE_S * 1.01, self.advance)

    def _remove_spilled(self, name: str | None) -> None:
        if name is not None and not self._closed:
            self.spilled.run(self._loop, self.spilled.remove, name)

    # --- the whole ---

    def check(self, pins: dict[Entry, int]) -> None:
        """Assert the invariants, given who is known to read what. O(objects)."""
        self.admission.check()
        self.files.check()
        for entry in set(self.objects.values()) | pins.keys():
            assert entry.pins == pins.get(entry, 0), entry
            assert entry.gone != (self.objects.get(entry.object_id) is entry), entry
            state = self.admission.policy.state_of(entry)
            if state is not None:
                assert entry.sealed, entry
                assert entry.in_memory, entry
                assert not entry.gone, entry
                assert not entry.pins, entry
                assert (state == "clean") == (entry.slot is not None or entry.is_copy), entry
            elif entry.sealed and not entry.gone and entry.in_memory:
                assert entry.pins, entry
            if entry.sealed and not entry.gone:
                assert entry.in_memory or entry.file[0], entry
        assert self.pinned_bytes == sum(entry.nbytes for entry in pins if entry.in_memory)

    async def close(self) -> None:
        """End the threads and delete every file on the local disk. What lies behind a URL goes with the cluster, or its last holder."""
        self._closed = True
        self._warmer.close()
        await self.disk.close()
        if self.spilled is not self.disk:
            await self.spilled.close()


def _error_of(done: asyncio.Future[None]) -> BaseException | None:
    return asyncio.CancelledError() if done.cancelled() else done.exception()
