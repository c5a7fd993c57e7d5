"""The threads in which the store's files are written and read: the loop never waits for a disk or a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """At most ``most`` of them, started when they are needed."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        #: What they do now.
        self._jobs: set[asyncio.Future[Any]] = set()

    def run(self, loop: asyncio.AbstractEventLoop, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run a function in one of them."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._most, thread_name_prefix=self._name)
        job = loop.run_in_executor(self._pool, function, *args)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    async def close(self, patience_s: float | None = None) -> None:
        """Join them; what has not begun is not done. ``patience_s``: leave those that take longer alone."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=patience_s is None, cancel_futures=True)
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=patience_s)
