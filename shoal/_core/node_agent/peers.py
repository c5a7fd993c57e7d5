"""What the node agent needs of its surroundings, as protocols; tests pass fakes.

The launcher and the object store run in the same process and loop; peers are connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from shoal._core.wire.messages import Address, Cause, Message, ObjectRefInfo


class Peer(Protocol):
    """The part of ``transport.Connection`` that is used here."""

    closed: bool
    tag: Any
    on_message: Any
    on_close: Any

    def send(self, message: Message) -> None: ...
    def request(self, message: Any) -> asyncio.Future[Any]: ...
    def fail(self, rid: int, kind: str, message: str, detail: bytes = b"") -> None: ...
    def saturated(self) -> bool: ...
    def close(self) -> None: ...


class Launcher(Protocol):
    """Starts and ends worker processes; reports each end through ``NodeAgent.worker_exited``, exactly once per ``start``."""

    def start(self, worker_id: bytes) -> None:
        """Fork a worker; it connects and sends ``RegisterProcess`` with this id. Does not block; a failed start is a reported end."""

    def kill(self, worker_id: bytes) -> None:
        """SIGKILL the worker and its process group. Unknown id: nothing. The end is reported later, never inside this call."""

    def tail(self, worker_id: bytes) -> list[str]:
        """Return the last lines that the worker wrote, also after its end."""


class Store(Protocol):
    """The object store of the node."""

    def handle(self, connection: Any, message: Message, /) -> bool: ...
    def disconnected(self, connection: Any, /) -> None: ...
    def free(self, ids: list[bytes], /) -> None: ...
    def contains(self, object_id: bytes, /) -> bool: ...
    def promote(self, object_id: bytes, owner: Address, refs: list[ObjectRefInfo], /) -> bool: ...
    def adopt_spilled(self, object_id: bytes, nbytes: int, owner: Address, refs: list[ObjectRefInfo], location: str, /) -> bool: ...
    def stored(self, object_id: bytes, /) -> tuple[Address, int, list[ObjectRefInfo]] | None:
        """(owner, bytes, references inside) of a sealed object; None if there is none."""

    def objects_of(self, worker_id: bytes, /) -> Iterable[tuple[bytes, int, list[ObjectRefInfo]]]:
        """(object id, bytes, references inside) of the sealed objects that the process owns."""


class Connect(Protocol):
    """Open (or reuse) a connection to the process with this address."""

    async def __call__(self, address: Address, /) -> Peer: ...


class Hooks(msgspec.Struct):
    """What others want to know or can tell; all optional."""

    #: The worker's log lines are shown under this name from now on.
    named: Callable[[bytes, str], None] | None = None
    #: The worker belongs to this job from now on: (worker id, job id).
    bound: Callable[[bytes, bytes], None] | None = None
    #: Hand on what the job's workers have printed so far: (job id).
    flush_logs: Callable[[bytes], None] | None = None
    #: The cluster has a new token: (token).
    token_changed: Callable[[bytes], None] | None = None
    #: Where control stores are; returns what processes that join are told: (addresses).
    control_stores: Callable[[list[str]], str] | None = None
    #: The driver's connection has ended: (job id).
    driver_lost: Callable[[bytes], None] | None = None


class Process(msgspec.Struct, eq=False):
    """A worker or driver that has registered, of this node or of another; ``number`` stands for it as owner of leases."""

    number: int
    connection: Peer
    address: Address
    pid: int
    job_id: bytes = b""
    is_driver: bool = False
    #: Of another node: here for leases alone.
    is_foreign: bool = False
    log_to_driver: bool = False
    #: Set when the process said that it ends, or when it was told to.
    cause: Cause | None = None
    #: It leaves, and waits for tasks that it submitted.
    unfinished: bool = False
    #: It leaves, and what it had submitted has run to its end.
    finished: bool = False
    name: str = ""


class Departure(msgspec.Struct, eq=False):
    """What is known about a worker that is about to end, until it has."""

    cause: Cause | None = None
    #: (owner number, lease id) of those who gave up on the worker and wait to hear why it ended.
    mourners: list[tuple[int, int]] = msgspec.field(default_factory=list)


class LeasedWorker(msgspec.Struct, frozen=True):
    """A busy worker as the memory monitor sees it."""

    worker_id: bytes
    pid: int
    job_id: bytes
    owner: int
    retriable: bool
    granted_at: float
    name: str
    is_actor: bool
