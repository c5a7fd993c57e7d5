"""Records of the store: one object, one client, what others may know of them."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, Protocol

import msgspec

from shoal._core.object_store.admission import RoomRequest
from shoal._core.object_store.disk import format_bytes
from shoal._core.object_store.spilling import Slot
from shoal._core.wire.messages import Address, Message, ObjectRefInfo


class Peer(Protocol):
    """What the store needs of a transport connection."""

    peer: str
    closed: bool

    def send(self, message: Message) -> None: ...
    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None: ...


class Entry(msgspec.Struct, eq=False):
    """One object. Compared by identity: a task that is run again makes another entry with the same id."""

    object_id: bytes
    nbytes: int
    owner: Address
    #: Who writes it, until it is sealed, aborted, or the writer is gone.
    creator: Peer | None = None
    sealed: bool = False
    #: The primary copy is on another node: this one is dropped when its room is needed, and has no say when its owner ends.
    is_copy: bool = False
    #: Offset in the arena; -1 while it is not in memory.
    offset: int = -1
    #: Place on disk; kept when the object is restored, for then its memory copy can be dropped at no cost.
    slot: Slot | None = None
    #: Name of a file of its own on the local disk: the object is larger than the store, or came when only readers held memory; or its slot
    #: lies where it cannot be read in place.
    own_file: str = ""
    refs: list[ObjectRefInfo] = msgspec.field(default_factory=list)
    #: Readers, in all connections together.
    pins: int = 0
    #: Disk jobs that read or write its memory or its files.
    jobs: int = 0
    spilling: bool = False
    #: It is being brought to a file of its own.
    fetching: bool = False
    #: No id leads here any more; bookkeeping ends with the last pin, job and writer.
    gone: bool = False
    #: Asked for room, as a creation (answered to ``creator``) or as a restore.
    request: RoomRequest[Entry] | None = None
    rid: int = 0
    timer: asyncio.TimerHandle | None = None
    #: Pin requests that wait for the seal, or for the restore.
    waiters: list[tuple[PinWait, int]] = msgspec.field(default_factory=list)

    @property
    def in_memory(self) -> bool:
        """Whether its bytes, or those being written, are in the arena: not while it is read back from disk."""
        return self.offset >= 0 and self.request is None

    @property
    def file(self) -> tuple[str, int]:
        """The file that holds a copy, and where in it; ("", 0) if none does. The one that can be read in place comes first."""
        if self.slot is not None and not self.own_file:
            return self.slot.file, self.slot.offset
        return self.own_file, 0

    def stop_timer(self) -> None:
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    def __repr__(self) -> str:
        return f"<{'Copy' if self.is_copy else 'Entry'} {self.object_id.hex()[:16]} {self.nbytes} bytes pins={self.pins} jobs={self.jobs}>"


class PinWait(msgspec.Struct, eq=False):
    """A ``PinObjects`` that cannot be answered yet."""

    peer: Peer
    rid: int
    places: list[tuple[int, int]]
    paths: list[str]
    missing: int = 0
    #: Entries among whose ``waiters`` it is, once for each time.
    waits_for: list[Entry] = msgspec.field(default_factory=list)
    #: (index, kind, message): see ObjectsPinned.
    refused: list[tuple[int, str, str]] = msgspec.field(default_factory=list)


class Session(msgspec.Struct, eq=False):
    """What one connection holds."""

    #: Object id -> the entries it reads; more than one only if the object was made again meanwhile.
    pins: dict[bytes, list[Entry]] = msgspec.field(default_factory=dict)
    #: Unanswered requests by their numbers.
    waits: dict[int, PinWait] = msgspec.field(default_factory=dict)
    #: What it writes now, also entries that another writer has replaced.
    creating: dict[bytes, Entry] = msgspec.field(default_factory=dict)


class StoredObject(NamedTuple):
    """A sealed object, for the agent that adopts it."""

    object_id: bytes
    nbytes: int
    refs: list[ObjectRefInfo]


class StoreStatistics(msgspec.Struct, frozen=True):
    capacity_bytes: int
    used_bytes: int
    pinned_bytes: int
    high_water_bytes: int
    warmed_bytes: int
    objects: int
    objects_bytes: int
    #: Sealed and in memory / on disk only / in files of their own.
    in_memory: int
    on_disk: int
    own_files: int
    waiting: int
    waiting_bytes: int
    spill_files: int
    spill_file_bytes: int
    spilled_bytes_total: int
    spilled_objects_total: int
    restored_bytes_total: int
    restored_objects_total: int
    disk_usage: float


def describe_holders(sessions: dict[Any, Session]) -> str:
    """Say who reads how much, the largest first, in one line."""
    held: list[tuple[int, int, str]] = []
    for peer, session in sessions.items():
        entries = [entry for pinned in session.pins.values() for entry in pinned]
        if entries:
            held.append((sum(entry.nbytes for entry in entries), len(entries), peer.peer))
    held.sort(key=lambda holder: -holder[0])
    parts = [f"{peer} reads {count} objects ({format_bytes(nbytes)})" for nbytes, count, peer in held[:5]]
    if len(held) > 5:
        parts.append(f"{len(held) - 5} other processes {format_bytes(sum(h[0] for h in held[5:]))}")
    return "; ".join(parts) or "nobody"
