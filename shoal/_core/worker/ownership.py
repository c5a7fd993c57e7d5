"""Who holds which object: distributed reference counting.

Owns: the table of all objects this process knows, and their counts.
Must not know: sockets, threads, time. The shell (``core.py``) performs what ``Effects`` names.

    ref_added, ref_dropped, pin, unpin, complete, add_borrower, remove_borrower, borrower_lost
                                  -> Effects: free_stored, remove_borrower, register, released

The rules that make it safe stand in docs/design/core.md, "References: the rules". The one that is easy to get wrong: registrations are
**counted** per borrower, because a registration made on a borrower's behalf may cross its own removal on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shoal._core.wire.messages import FAILED, INLINE, STORED, Address, ObjectRefInfo

from .entries import PENDING, RELEASED, BorrowedEntry, Entry


class Effects(Protocol):
    """What the table asks of the process around it. None of these calls back into the table."""

    def free_stored(self, object_id: bytes, node_id: bytes) -> None:
        """Nobody needs the stored value any more."""

    def remove_borrower(self, object_id: bytes, owner: Address, count: int) -> None:
        """Tell the owner that this process gives back ``count`` registrations."""

    def register(self, entry: BorrowedEntry) -> None:
        """A foreign reference without a registration appeared: register now, or before the running task's reply."""

    def released(self, entry: Entry) -> None:
        """The entry left the table; called once, after its value was given up."""

    def watch(self, borrower: Address) -> None:
        """Report the end of this process through ``borrower_lost``."""


class Ownership:
    """The table. Every method runs on the I/O thread, except ``new_owned`` and reading ``entries``."""

    def __init__(self, me: Address, effects: Effects) -> None:
        self.me = me
        self.effects = effects
        self.entries: dict[bytes, Entry] = {}
        self._releasing: list[Entry] | None = None

    # --- appearing -----------------------------------------------------------------------------------------

    def new_owned(self, object_id: bytes, count: int = 1) -> Entry:
        """Add an object that this process makes. Any thread: a dict insertion is one step under the interpreter lock."""
        entry = self.entries[object_id] = Entry(object_id, count)
        return entry

    def lookup(self, object_id: bytes, owner: Address | None) -> Entry:
        """Return the entry of a reference that appeared here, making a borrowed one if it is new.

        An object that claims to be ours but is not in the table was freed: its entry is made failed by the caller.
        """
        entry = self.entries.get(object_id)
        if entry is None:
            entry = BorrowedEntry(object_id, owner if owner is not None else self.me)
            self.entries[object_id] = entry
        return entry

    def ref_added(self, object_id: bytes, owner: Address | None) -> None:
        """One more ObjectRef of this process; for a foreign object without a registration, ask for one."""
        entry = self.lookup(object_id, owner)
        entry.count += 1
        if isinstance(entry, BorrowedEntry) and not entry.grants and not entry.registering:
            self.effects.register(entry)

    def receive(self, refs: Iterable[ObjectRefInfo], sender: bytes) -> list[Entry]:
        """Take over the registrations that a sender made for us with a value: returns the pinned inner entries.

        Objects of our own were registered under the sender's worker id, so that nothing stays if it dies before it sends.
        """
        inner: list[Entry] = []
        for info in refs:
            entry = self.lookup(info.object_id, info.owner)
            entry.count += 1
            if isinstance(entry, BorrowedEntry):
                entry.grants += 1
            else:
                self.remove_borrower(info.object_id, sender, 1)
            inner.append(entry)
        return inner

    # --- counting ------------------------------------------------------------------------------------------

    def ref_dropped(self, object_id: bytes) -> None:
        entry = self.entries.get(object_id)
        if entry is not None:
            self.unpin(entry)

    def unpin(self, entry: Entry) -> None:
        """Give back one count; frees the object when nobody holds it."""
        entry.count -= 1
        if entry.count <= 0:
            self.settle(entry)

    def add_borrower(self, entry: Entry, borrower: Address, count: int = 1) -> None:
        """``borrower`` holds the object ``count`` times more."""
        if entry.borrowers is None:
            entry.borrowers = {}
        known = entry.borrowers.get(borrower.worker_id)
        if known is not None:
            known[1] += count
            return
        entry.borrowers[borrower.worker_id] = [borrower, count]
        if borrower.worker_id != self.me.worker_id:
            self.effects.watch(borrower)

    def remove_borrower(self, object_id: bytes, worker_id: bytes, count: int) -> None:
        entry = self.entries.get(object_id)
        if entry is None or entry.borrowers is None:
            return
        known = entry.borrowers.get(worker_id)
        if known is None:
            return
        known[1] -= count
        if known[1] <= 0:
            del entry.borrowers[worker_id]
            if not entry.borrowers:
                entry.borrowers = None
                self.settle(entry)

    def borrower_lost(self, worker_id: bytes) -> None:
        """The process ended: whatever it held is given back. O(objects that have borrowers)."""
        for entry in [e for e in self.entries.values() if e.borrowers and worker_id in e.borrowers]:
            assert entry.borrowers is not None
            self.remove_borrower(entry.object_id, worker_id, entry.borrowers[worker_id][1])

    def keep_lineage(self, entry: Entry) -> None:
        entry.lineage += 1

    def drop_lineage(self, entry: Entry) -> None:
        entry.lineage -= 1
        if entry.lineage <= 0:
            self.settle(entry)

    # --- completing ----------------------------------------------------------------------------------------

    def complete(self, entry: Entry, kind: int, data: object, inner: list[Entry] | None = None) -> None:
        """Set the value. If nobody holds the object any more, give it up at once."""
        entry.data = data
        entry.inner = inner or None
        entry.kind = kind
        if entry.count <= 0 and entry.borrowers is None:
            self.settle(entry)

    def reset(self, entry: Entry) -> None:
        """The value is lost and being computed again."""
        entry.kind = PENDING
        entry.data = None
        inner, entry.inner = entry.inner, None
        for held in inner or ():
            self.unpin(held)

    # --- releasing -----------------------------------------------------------------------------------------

    def settle(self, entry: Entry) -> None:
        """Free the object if nobody holds it. Iterative, because containers may nest ten thousand deep."""
        if self._releasing is not None:
            self._releasing.append(entry)
            return
        self._releasing = pending = [entry]
        try:
            while pending:
                self._settle_one(pending.pop())
        finally:
            self._releasing = None

    def _settle_one(self, entry: Entry) -> None:
        if entry.count > 0 or entry.borrowers is not None:
            return
        if isinstance(entry, BorrowedEntry):
            if not entry.registering and self.entries.get(entry.object_id) is entry:
                del self.entries[entry.object_id]
                if entry.grants:
                    self.effects.remove_borrower(entry.object_id, entry.owner, entry.grants)
                    entry.grants = 0
                self._give_up_inner(entry)
                self.effects.released(entry)
            return
        if entry.kind == PENDING:
            # The task runs on; its record holds the entry and complete() comes back here.
            if not entry.lineage:
                self.entries.pop(entry.object_id, None)
            return
        if entry.kind == STORED:
            self.effects.free_stored(entry.object_id, entry.data.node_id)
            entry.kind = RELEASED
            self._give_up_inner(entry)
        if entry.lineage > 0:
            return
        if entry.kind != RELEASED:
            self._give_up_inner(entry)
        self.entries.pop(entry.object_id, None)
        self.effects.released(entry)

    def _give_up_inner(self, entry: Entry) -> None:
        inner, entry.inner = entry.inner, None
        for held in inner or ():
            self.unpin(held)

    # --- looking -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants. O(objects)."""
        for object_id, entry in list(self.entries.items()):
            assert entry.object_id == object_id
            assert entry.count >= 0, entry
            assert entry.lineage >= 0, entry
            assert entry.kind in (PENDING, RELEASED, INLINE, STORED, FAILED), entry
            if entry.borrowers is not None:
                assert entry.borrowers, entry
                assert all(known[1] > 0 for known in entry.borrowers.values()), entry
            if isinstance(entry, BorrowedEntry):
                assert entry.count > 0 or entry.registering, entry
            elif entry.kind not in (PENDING, RELEASED) and entry.data != b"":  # b"": an actor whose first handle is on its way here
                assert entry.count > 0 or entry.borrowers or entry.lineage, entry
