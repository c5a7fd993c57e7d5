"""Identifiers: typed bytes inside, small public classes outside.

Inside the runtime an identifier is plain ``bytes`` under a ``NewType``, because hashing and comparing bytes costs a tenth of a
Python-level ``__hash__``. Users see the classes ``TaskID``, ``ActorID``... with Ray's sizes and methods.

Layout, so that an identifier is unique without asking anybody:

    task id (24)   = counter (8, per process) + process (12, random per process) + job (4)
    object id (28) = task id + index (4, little endian); a ``put`` draws a task id of its own and uses index 0
    actor id (16)  = random (12) + job (4)
"""

from __future__ import annotations

import itertools
import os
from typing import NewType, Self

TaskId = NewType("TaskId", bytes)
ObjectId = NewType("ObjectId", bytes)
ActorId = NewType("ActorId", bytes)
JobId = NewType("JobId", bytes)
NodeId = NewType("NodeId", bytes)
WorkerId = NewType("WorkerId", bytes)
PlacementGroupId = NewType("PlacementGroupId", bytes)
FunctionId = NewType("FunctionId", bytes)
LeaseId = NewType("LeaseId", int)

JOB_BYTES = 4
ACTOR_BYTES = 16
TASK_BYTES = 24
OBJECT_BYTES = 28
NODE_BYTES = 28
WORKER_BYTES = 28
PLACEMENT_GROUP_BYTES = 18
FUNCTION_BYTES = 28

INDEX_BYTES = OBJECT_BYTES - TASK_BYTES
#: Index suffixes of the first returns, made once: concatenation with these is the per-task cost.
INDEX_SUFFIX = tuple(i.to_bytes(INDEX_BYTES, "little") for i in range(64))


def object_id(task_id: TaskId, index: int) -> ObjectId:
    """Identify return number ``index`` of a task."""
    suffix = INDEX_SUFFIX[index] if index < len(INDEX_SUFFIX) else index.to_bytes(INDEX_BYTES, "little")
    return ObjectId(task_id + suffix)


def maker_of(object_id: bytes) -> bytes:
    """Return what the ids of all objects have in common that one process owns, and of no other's."""
    return object_id[8 : TASK_BYTES - JOB_BYTES]


def task_of(object_id: ObjectId) -> TaskId:
    return TaskId(object_id[:TASK_BYTES])


class TaskIdSource:
    """Draws task ids for one process and one job; a forked child must make its own."""

    def __init__(self, job_id: JobId, process: bytes | None = None) -> None:
        self.suffix = (process or os.urandom(TASK_BYTES - 8 - JOB_BYTES)) + job_id
        self._counter = itertools.count(1)

    def enter_job(self, job_id: JobId) -> None:
        """Draw for another job from now on: a worker that ran nothing yet learns whose it is."""
        self.suffix = self.suffix[:-JOB_BYTES] + job_id

    def next(self) -> TaskId:
        """Return a fresh id. Safe from any thread: ``itertools.count`` advances in one step under the interpreter lock."""
        return TaskId(next(self._counter).to_bytes(8, "big") + self.suffix)


def random_actor_id(job_id: JobId) -> ActorId:
    return ActorId(os.urandom(ACTOR_BYTES - JOB_BYTES) + job_id)


class BaseID:
    """A fixed-size identifier: ``binary()``, ``hex()``, ``is_nil()``, comparable and hashable."""

    SIZE = 0
    __slots__ = ("_bytes",)

    def __init__(self, binary: bytes) -> None:
        if not isinstance(binary, bytes):
            raise TypeError(f"{type(self).__name__} is made from bytes, got {type(binary).__name__}.")
        if len(binary) != self.SIZE:
            raise ValueError(f"{type(self).__name__} has {self.SIZE} bytes, got {len(binary)}.")
        self._bytes = binary

    @classmethod
    def size(cls) -> int:
        """Return the number of bytes of an identifier."""
        return cls.SIZE

    @classmethod
    def nil(cls) -> Self:
        """Return the identifier of nothing."""
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def from_random(cls) -> Self:
        """Return an identifier that is like no other."""
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def from_binary(cls, binary: bytes) -> Self:
        """Return the identifier with these bytes. ValueError for another length."""
        return cls(binary)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Return the identifier written so. ValueError for another length."""
        return cls(bytes.fromhex(text))

    def binary(self) -> bytes:
        """Return the bytes."""
        return self._bytes

    def hex(self) -> str:
        """Return the bytes as hexadecimal characters."""
        return self._bytes.hex()

    def is_nil(self) -> bool:
        """It identifies nothing."""
        return self._bytes == b"\xff" * self.SIZE

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._bytes == self._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (self._bytes,)


class UniqueID(BaseID):
    """Identifies anything."""

    SIZE = 28
    __slots__ = ()


class JobID(BaseID):
    """Identifies a job: one driver and all that it starts."""

    SIZE = JOB_BYTES
    __slots__ = ()

    @classmethod
    def from_int(cls, number: int) -> JobID:
        """Return the id of job number ``number``."""
        return cls(number.to_bytes(JOB_BYTES, "big"))


class ActorID(BaseID):
    """Identifies an actor."""

    SIZE = ACTOR_BYTES
    __slots__ = ()


class TaskID(BaseID):
    """Identifies a task or an actor call."""

    SIZE = TASK_BYTES
    __slots__ = ()


class NodeID(BaseID):
    """Identifies a node."""

    SIZE = NODE_BYTES
    __slots__ = ()


class WorkerID(BaseID):
    """Identifies a process of the cluster."""

    SIZE = WORKER_BYTES
    __slots__ = ()


class PlacementGroupID(BaseID):
    """Identifies a placement group."""

    SIZE = PLACEMENT_GROUP_BYTES
    __slots__ = ()


class FunctionID(BaseID):
    """Identifies a remote function."""

    SIZE = FUNCTION_BYTES
    __slots__ = ()


class ActorClassID(BaseID):
    """Identifies an actor class."""

    SIZE = FUNCTION_BYTES
    __slots__ = ()
