"""References to objects: what ``.remote()`` and ``put`` return.

Counting: every ObjectRef tells the runtime when it begins and when it ends (``ref_added``, ``ref_dropped``); both only append to a
queue, because ``__del__`` may run anywhere, even inside a lock. A reference that the runtime itself has just made (``counted=True``) was
counted when its entry was made, which saves the first append on the per-task path.
"""

from __future__ import annotations

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

    def __init__(self, object_id: bytes, owner: Any = None, *, counted: bool = False, _runtime: Any = None) -> None:
        self._id = object_id
        self._owner = owner
        self._runtime = _runtime if _runtime is not None else runtime.current()
        if not counted:
            self._runtime.ref_added(object_id, owner)

    def __del__(self) -> None:
        try:
            self._runtime.ref_dropped(self._id)
        except AttributeError:
            return  # __init__ raised before the runtime was known, so nothing was counted

    def binary(self) -> bytes:
        """Return the 28 bytes of the identifier."""
        return self._id

    def hex(self) -> str:
        """Return the identifier as 56 hexadecimal characters."""
        return self._id.hex()

    def is_nil(self) -> bool:
        return self._id == b"\xff" * ids.OBJECT_BYTES

    @classmethod
    def size(cls) -> int:
        return ids.OBJECT_BYTES

    def task_id(self) -> ids.TaskID:
        """Return the id of the task that makes the object."""
        return ids.TaskID(self._id[: ids.TASK_BYTES])

    def job_id(self) -> ids.JobID:
        return ids.JobID(self._id[ids.TASK_BYTES - ids.JOB_BYTES : ids.TASK_BYTES])

    def owner_address(self) -> Any:
        """Return the address of the process that owns the object."""
        return self._owner if self._owner is not None else self._runtime.address

    def call_site(self) -> str:
        return ""

    def future(self) -> Future[T]:
        """Return a ``concurrent.futures.Future`` of the value. Cancelling it does not cancel the task."""
        return self._runtime.object_future(self)

    def as_future(self) -> asyncio.Future[T]:
        """Return an asyncio future of the value, bound to the running loop."""
        return self._runtime.asyncio_future(self)

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
        self._runtime.ref_pickled(self)
        return _restore, (self._id, self.owner_address())


def _restore(object_id: bytes, owner: Any) -> ObjectRef[Any]:
    return ObjectRef(object_id, owner)


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
        raise NotImplementedError("A remote generator cannot receive values: send() is not supported.")

    def throw(self, *exc: Any) -> Any:
        raise NotImplementedError("throw() is not supported on a remote generator. Use shoal.cancel(generator) to stop it.")

    def close(self) -> Any:
        raise NotImplementedError("close() is not supported on a remote generator. Use shoal.cancel(generator) to stop it.")

    def asend(self, value: Any) -> Any:
        raise NotImplementedError("A remote generator cannot receive values: asend() is not supported.")

    def athrow(self, *exc: Any) -> Any:
        raise NotImplementedError("athrow() is not supported on a remote generator. Use shoal.cancel(generator) to stop it.")

    def aclose(self) -> Any:
        raise NotImplementedError("aclose() is not supported on a remote generator. Use shoal.cancel(generator) to stop it.")


class DynamicObjectRefGenerator(Generic[T]):
    """The value of a ``num_returns="dynamic"`` task: an iterable of references to what it yielded."""

    def __init__(self, refs: list[ObjectRef[T]]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)
