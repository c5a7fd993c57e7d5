"""References to objects: what ``.remote()`` and ``put`` return.

Counting: every ObjectRef tells the runtime when it begins and when it ends (``ref_added``, ``ref_dropped``); both only append to a
queue, because ``__del__`` may run anywhere, even inside a lock. A reference that the runtime itself has just made (``counted=True``) was
counted when its entry was made, which saves the first append on the per-task path.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import ids, runtime

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

T = TypeVar("T")


class ObjectRef(Generic[T]):
    """A handle to a value that exists now or later, somewhere in the cluster.

    ``await ref`` works in any asyncio loop; cancelling the await does not cancel the task.
    """

    __slots__ = ("__weakref__", "_id", "_owner", "_runtime")

    def __init__(self, id: bytes, owner: Any = None, *, counted: bool = False, _runtime: Any = None) -> None:
        if _runtime is None:  # made by a user or unpickled; without a session it is an identifier and nothing more
            _check_binary(id)
            _runtime = runtime.current_or_none()
        self._id = id
        self._owner = owner
        self._runtime = _runtime
        if not counted and _runtime is not None:
            _runtime.ref_added(id, owner)

    def __del__(self) -> None:
        try:
            self._runtime.ref_dropped(self._id)
        except AttributeError:
            return  # there was no runtime, or __init__ raised before it was known: nothing was counted

    def binary(self) -> bytes:
        """Return the 28 bytes of the identifier."""
        return self._id

    def hex(self) -> str:
        """Return the identifier as 56 hexadecimal characters."""
        return self._id.hex()

    def is_nil(self) -> bool:
        """It refers to nothing."""
        return self._id == b"\xff" * ids.OBJECT_BYTES

    @classmethod
    def size(cls) -> int:
        """Return the number of bytes of an identifier."""
        return ids.OBJECT_BYTES

    @classmethod
    def nil(cls) -> ObjectRef[Any]:
        """Return the reference to nothing; ``get`` refuses it."""
        return _identifier(b"\xff" * ids.OBJECT_BYTES)

    @classmethod
    def from_random(cls) -> ObjectRef[Any]:
        """Return a reference that is like no other; there is no object behind it, and ``get`` refuses it."""
        return _identifier(os.urandom(ids.OBJECT_BYTES))

    @classmethod
    def from_binary(cls, binary: bytes) -> ObjectRef[Any]:
        """Return the reference with these 28 bytes, for objects that this process owns. ValueError for another length."""
        return cls(binary)

    @classmethod
    def from_hex(cls, text: str) -> ObjectRef[Any]:
        """Return the reference with this identifier, for objects that this process owns. ValueError for another length."""
        return cls(bytes.fromhex(text))

    def task_id(self) -> ids.TaskID:
        """Return the id of the task that makes the object."""
        return ids.TaskID(self._id[: ids.TASK_BYTES])

    def job_id(self) -> ids.JobID:
        """Return the id of the job whose process made the reference."""
        return ids.JobID(self._id[ids.TASK_BYTES - ids.JOB_BYTES : ids.TASK_BYTES])

    def owner_address(self) -> Any:
        """Return the address of the process that owns the object."""
        return self._owner if self._owner is not None or self._runtime is None else self._runtime.address

    def call_site(self) -> str:
        """Return "": where references are made is not recorded."""
        return ""

    def future(self) -> Future[T]:
        """Return a ``concurrent.futures.Future`` of the value. Cancelling it does not cancel the task."""
        future: Future[T] = self._runtime.object_future(self)
        return future

    def as_future(self) -> asyncio.Future[T]:
        """Return an asyncio future of the value, bound to the running loop."""
        future: asyncio.Future[T] = self._runtime.asyncio_future(self)
        return future

    def __await__(self) -> Generator[Any, None, T]:
        return self.as_future().__await__()

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(
            "An ObjectRef is one reference and cannot be iterated over. "
            "Use shoal.get(ref) for its value, or num_returns=N for N references."
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.hex()})"

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self._runtime is not None:
            self._runtime.ref_pickled(self)
        return _restore, (self._id, self.owner_address())


def _restore(object_id: bytes, owner: Any) -> ObjectRef[Any]:
    return ObjectRef(object_id, owner)


def _check_binary(binary: object) -> None:
    if not isinstance(binary, bytes):
        raise TypeError(f"ObjectRef is made from bytes, got {type(binary).__name__}.")
    if len(binary) != ids.OBJECT_BYTES:
        raise ValueError(f"ObjectRef has {ids.OBJECT_BYTES} bytes, got {len(binary)}.")


def _identifier(binary: bytes) -> ObjectRef[Any]:
    """Make a reference that no session counts."""
    ref: ObjectRef[Any] = ObjectRef.__new__(ObjectRef)
    ref._id, ref._owner, ref._runtime = binary, None, None
    return ref


class ObjectRefGenerator(Generic[T]):
    """The references of a streaming task's items, in order, each as soon as it exists.

    An exception in the task is the *value* of the next reference; the stream ends after it. Not safe for several threads at once.
    """

    def __init__(self, task_id: bytes, completed: ObjectRef[Any], _runtime: Any) -> None:
        self._task_id = task_id
        self._completed = completed
        self._runtime = _runtime
        self._index = 0
        self._finished = False

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return self

    def __next__(self) -> ObjectRef[T]:
        """Return the next item's reference; blocks until it exists."""
        return self._take(self._runtime.generator_next(self._task_id, self._index, None), StopIteration)

    def __aiter__(self) -> AsyncIterator[ObjectRef[T]]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        import asyncio  # a third of the time of ``import shoal``, and whoever awaits has it already

        return self._take(await asyncio.wrap_future(self._runtime.generator_next_future(self._task_id, self._index)), StopAsyncIteration)

    def _take(self, ref: ObjectRef[T] | None, end: type[Exception]) -> ObjectRef[T]:
        if ref is None:
            self._finished = True
            raise end
        self._index += 1
        self._runtime.generator_consumed(self._task_id, self._index)
        return ref

    def completed(self) -> ObjectRef[Any]:
        """Return a reference that is ready when the task ends; its value is None, or it raises the task's error."""
        return self._completed

    def next_ready(self) -> bool:
        """The next item, or the end of the stream, is there now."""
        return bool(self._runtime.generator_ready(self._task_id, self._index))

    def is_finished(self) -> bool:
        """The stream was read to its end."""
        return self._finished

    def task_id(self) -> ids.TaskID:
        """Return the id of the task that yields the items."""
        return ids.TaskID(self._task_id)

    def __del__(self) -> None:
        rt = self.__dict__.get("_runtime")
        if rt is not None:
            rt.generator_dropped(self._task_id)

    def __reduce__(self) -> Any:
        raise TypeError(
            "An ObjectRefGenerator cannot be pickled, passed to a task or returned from one: its items arrive in this process. "
            "Pass its references instead, for example list(generator)."
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._task_id.hex()})"

    def send(self, value: Any) -> Any:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("A remote generator cannot receive values: send() is not supported.")

    def throw(self, *exc: Any) -> Any:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("throw() is not supported on a remote generator. Use shoal.cancel(generator) to stop it.")

    def close(self) -> Any:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("close() is not supported on a remote generator. Use shoal.cancel(generator) to stop it.")

    def asend(self, value: Any) -> Any:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("A remote generator cannot receive values: asend() is not supported.")

    def athrow(self, *exc: Any) -> Any:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("athrow() is not supported on a remote generator. Use shoal.cancel(generator) to stop it.")

    def aclose(self) -> Any:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("aclose() is not supported on a remote generator. Use shoal.cancel(generator) to stop it.")


class DynamicObjectRefGenerator(Generic[T]):
    """The value of a ``num_returns="dynamic"`` task: an iterable of references to what it yielded."""

    def __init__(self, refs: list[ObjectRef[T]]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)


def unknown_owner(ref: Any) -> ValueError:
    """Return the error for a reference that does not belong to the session that runs now."""
    if runtime.forked:
        return ValueError(f"The owner is unknown of {ref!r}. {runtime.FORKED}")
    return ValueError(
        f"The owner is unknown of {ref!r}: it belongs to an earlier session, which ended with its objects. "
        "Use references of the session that runs now."
    )
