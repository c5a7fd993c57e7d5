"""What a worker knows at its first moment, told by the template that forked it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStart:
    worker_id: bytes
    agent_address: str
    token: bytes
    session_dir: str
    #: The object store's memory, open for reading and writing; -1 if this process must open ``Registered.arena_path``.
    arena_fd: int
    arena_bytes: int
