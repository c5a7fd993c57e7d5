"""What a worker knows at its first moment, told by the template that forked it."""

from __future__ import annotations

import msgspec

from shoal._core.transport.trust import Tokens


class WorkerStart(msgspec.Struct, frozen=True):
    worker_id: bytes
    agent_address: str
    tokens: Tokens
    session_dir: str
    #: The object store's memory, open for reading and writing; -1 if this process must open ``Registered.arena_path``.
    arena_fd: int
    arena_bytes: int
