"""Exported functions and classes, by content.

    PutFunction -> put -> waiting GetFunctions answered        job over -> forget -> blob gone once no job uses it

A blob arrives once, whoever sends it first, and is found by its hash, so there is nothing to overwrite and no order to keep.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .instructions import Instruction
from .rows import FUNCTION_JOBS, FUNCTIONS
from .storage.interface import Change


class FunctionStatistics(msgspec.Struct, frozen=True):
    functions: int
    nbytes: int


class FunctionTable:
    def __init__(self) -> None:
        self._blobs: dict[bytes, bytes] = {}
        #: The jobs that need a blob. Same keys as ``_blobs``, never an empty set.
        self._users: dict[bytes, set[bytes]] = {}
        self._by_job: dict[bytes, set[bytes]] = {}
        self._nbytes = 0

    def get(self, function_id: bytes) -> bytes | None:
        return self._blobs.get(function_id)

    def put(self, function_id: bytes, job_id: bytes, blob: bytes) -> list[Instruction]:
        """Keep the blob for as long as the job needs it. Idempotent."""
        changes: list[Instruction] = []
        if function_id not in self._blobs:
            self._blobs[function_id] = blob
            self._nbytes += len(blob)
            changes.append(Change(FUNCTIONS, function_id, blob))
        users = self._users.setdefault(function_id, set())
        if job_id not in users:
            users.add(job_id)
            self._by_job.setdefault(job_id, set()).add(function_id)
            changes.append(Change(FUNCTION_JOBS, function_id + job_id, b""))
        return changes

    def forget_job(self, job_id: bytes) -> list[Instruction]:
        """The job and everything that outlives it (detached actors) are over. O(functions of the job)."""
        changes: list[Instruction] = []
        for function_id in self._by_job.pop(job_id, ()):
            changes.append(Change(FUNCTION_JOBS, function_id + job_id, None))
            users = self._users[function_id]
            users.discard(job_id)
            if not users:
                del self._users[function_id]
                self._nbytes -= len(self._blobs.pop(function_id))
                changes.append(Change(FUNCTIONS, function_id, None))
        return changes

    def load(self, blobs: Iterable[tuple[bytes, bytes]], users: Iterable[tuple[bytes, bytes]], job_bytes: int) -> None:
        for function_id, blob in blobs:
            self._blobs[function_id] = blob
            self._users[function_id] = set()
            self._nbytes += len(blob)
        for key, _ in users:
            function_id, job_id = key[:-job_bytes], key[-job_bytes:]
            self._users[function_id].add(job_id)
            self._by_job.setdefault(job_id, set()).add(function_id)

    def statistics(self) -> FunctionStatistics:
        return FunctionStatistics(functions=len(self._blobs), nbytes=self._nbytes)

    def check(self) -> None:
        assert self._blobs.keys() == self._users.keys()
        assert all(self._users.values())
        assert self._nbytes == sum(map(len, self._blobs.values()))
        for job_id, functions in self._by_job.items():
            assert all(job_id in self._users[function_id] for function_id in functions)
        assert sum(map(len, self._by_job.values())) == sum(map(len, self._users.values()))
