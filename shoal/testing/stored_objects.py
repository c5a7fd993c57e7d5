"""Harm to stored objects, by the messages that any process of the session may send, and where actors live."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shoal._base import ids
from shoal._base import runtime as holder
from shoal._base.references import ObjectRef
from shoal._core.api.context import cluster_resources
from shoal._core.api.objects import wait
from shoal._core.worker.core import Core
from shoal._core.worker.runtime import CoreRuntime


def lose_stored_copy(ref: ObjectRef[Any], timeout_s: float) -> None:
    """Make the store forget an object. ValueError if it has none of it, TimeoutError if it is not ready in time."""
    ready, _ = wait([ref], timeout=timeout_s, fetch_local=False)
    if not ready:
        raise TimeoutError(f"{ref!r} is not ready after {timeout_s:g} s, so it cannot be lost.")
    object_id = ref._id

    async def lose(core: Core) -> bool:
        [place] = await core.store.pin([object_id])
        if place is None:
            return False
        core.store.unpin(object_id)
        core.store.free([object_id])
        # The connection keeps the order: when this is answered, the object is gone.
        [place] = await core.store.pin([_unknown_id()])
        assert place is None
        return True

    if not _on_loop(lose):
        raise ValueError(
            f"{ref!r} has no stored copy to lose: values of up to {_runtime().settings.inline_limit_bytes} bytes travel in messages and "
            "live in the memory of their owner, and so do errors."
        )


@contextmanager
def hold_store_memory(nbytes: int | None) -> Iterator[None]:
    """Hold ``nbytes`` of the store in one piece, or all of it, by an object that is never finished. RuntimeError: it is read."""
    wanted = nbytes if nbytes is not None else int(cluster_resources()["object_store_memory"])
    object_id = _unknown_id()

    async def take(core: Core) -> bool:
        place = await core.store.create(object_id, wanted, core.me)
        return not place.path

    async def give_back(core: Core) -> None:
        core.store.abort(object_id)

    try:
        if not _on_loop(take):
            raise RuntimeError(
                f"{wanted} bytes of the object store cannot be taken: arrays or tables from get() are still read in it. Drop them first, "
                "or take less."
            )
        yield
    finally:
        if holder._current is not None:
            _on_loop(give_back)


def actor_worker_id(actor: Any) -> str:
    """Return the id (hex) of the worker in which an actor lives, as this process knows it; "" while it lives nowhere."""
    calls = _runtime().core.actors.calls.get(actor._actor_id.binary())
    return calls.address.worker_id.hex() if calls is not None and calls.address is not None else ""


def _unknown_id() -> bytes:
    return ids.object_id(ids.TaskId(os.urandom(ids.TASK_BYTES)), 0)


def _runtime() -> CoreRuntime:
    runtime = holder.current()
    if not isinstance(runtime, CoreRuntime):
        raise RuntimeError("Local mode has no processes and no object store that could be harmed.")
    return runtime


def _on_loop(work: Callable[[Core], Awaitable[Any]]) -> Any:
    """Run ``work`` on the runtime's own thread, and wait for it."""
    core = _runtime().core

    async def run() -> Any:
        return await work(core)

    return asyncio.run_coroutine_threadsafe(run(), core.loop).result()
