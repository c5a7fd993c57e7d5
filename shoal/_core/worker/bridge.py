"""From a user thread to the I/O thread and back: posting, and blocking for an answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from shoal import exceptions
from shoal._base import runtime as holder
from shoal._base.references import ObjectRef, unknown_owner
from shoal._core.serialization import deserialize_error, error_named
from shoal._core.transport import ConnectionLost, RequestFailed

from .core import Core
from .inbox import Inbox
from .waiting import CallOperation


class Bridge:
    """One per process; every method may be called from any user thread."""

    def __init__(self, core: Core, inbox: Inbox) -> None:
        self._core = core
        self.closed = False
        self._pid = os.getpid()
        self.inbox = inbox
        # Bound once: these run for every reference and every call.
        self.post = inbox.post
        self.post_later = inbox.post_later

    def check_open(self) -> None:
        if self.closed:
            if os.getpid() != self._pid:
                raise exceptions.RaySystemError(holder.FORKED)
            raise exceptions.RaySystemError("shoal was shut down in this process. Call shoal.init() to start again.")

    def check_refs(self, refs: Sequence[ObjectRef[Any]], runtime: object) -> None:
        """Refuse references of a session that is over. Raises ValueError, RaySystemError."""
        for ref in refs:
            if ref._runtime is not runtime:
                raise unknown_owner(ref)
        self.check_open()

    def request_control_store(self, message: Any, timeout_s: float | None = None) -> Any:
        return self.request(lambda: self._core.control_store.request(message), timeout_s)

    def request_node_agent(self, message: Any, timeout_s: float | None = None) -> Any:
        return self.request(lambda: self._core.agent.request(message), timeout_s)

    def request(self, start: Callable[[], asyncio.Future[Any]], timeout_s: float | None) -> Any:
        self.check_open()
        try:
            return self.call(start, timeout_s, withdraw=True)
        except RequestFailed as error:
            raise self.as_exception(error) from None

    def call(self, start: Callable[[], asyncio.Future[Any]], timeout_s: float | None = None, *, withdraw: bool = False) -> Any:
        """Run ``start`` on the I/O thread and block for the future it returns, which waits for the head.

        ``withdraw``: cancel it when the time is up; else it goes on.

        Raises LocalRayletDiedError when the head has ended, GetTimeoutError, RequestFailed.
        """
        operation = CallOperation()

        def done(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                operation.error = ConnectionLost("the request was dropped")
            elif (error := future.exception()) is not None:
                operation.error = error
            else:
                operation.result = future.result()
            operation.fire()

        started: list[asyncio.Future[Any]] = []

        def run(_arg: None) -> None:
            try:
                started.append(start())
                started[0].add_done_callback(done)
            except Exception as error:  # delivered to the thread that asked
                operation.error = error
                operation.fire()

        self.post(run, None)
        if not operation.wait(timeout_s):
            if withdraw:
                self.post(_withdraw, started)
            raise exceptions.GetTimeoutError(f"No answer within {timeout_s} s.")
        # An error holds the frames that it passes, and this one must not hold the error: the references that the callers' frames have, to
        # what is inside of a value that the store refused, would live until the collector runs.
        started.clear()
        error, operation.error = operation.error, None
        if isinstance(error, ConnectionLost):
            raise self._core.head_ended() from None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return operation.result

    def as_exception(self, error: RequestFailed) -> Exception:
        if error.detail:
            detail = deserialize_error(error.detail)
            if isinstance(detail, Exception):
                return detail
        named = error_named(error.kind, error.message)
        return named if isinstance(named, Exception) else exceptions.RaySystemError(error.message)


def _withdraw(started: list[asyncio.Future[Any]]) -> None:
    """Nobody waits for it any more; a lost control store must not be asked again for it."""
    for future in started:
        future.cancel()
