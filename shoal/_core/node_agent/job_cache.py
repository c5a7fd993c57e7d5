"""What workers need before they can run anything of a job: its description and its functions. The control store is asked once per node.

    worker ── GetJob, GetFunction ──▶ known? ── JobInfo, FunctionBlob ──▶ worker
                                        └─ the first time: the same question ──▶ control store

So a fresh worker can take over what a node has run before while the control store is away, and a thousand workers of a node are one
question. Functions never change (they are named by their content); a job's description is forgotten with the job.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from shoal._core.node_agent.peers import Peer
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import FunctionBlob, GetFunction, GetJob, JobInfo

#: Bytes of functions that are kept, those that were asked for last; one larger than this is kept alone.
KEPT_BYTES = 64 << 20


class JobCache:
    """``control``: returns the connection to the control store; None when it is closed for good."""

    def __init__(self, control: Callable[[], Peer | None]) -> None:
        self._control = control
        self._jobs: dict[bytes, JobInfo] = {}
        self._functions: OrderedDict[bytes, FunctionBlob] = OrderedDict()
        self._nbytes = 0
        #: Questions that the control store has now, and the workers that wait: (connection, number of its request).
        self._asked: dict[bytes, tuple[asyncio.Future[Any], list[tuple[Peer, int]]]] = {}

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {GetJob: self._on_get_job, GetFunction: self._on_get_function}

    def forget(self, job_id: bytes) -> None:
        """The job is over. Questions that only processes have which are gone are withdrawn."""
        self._jobs.pop(job_id, None)
        for future, askers in list(self._asked.values()):
            if all(connection.closed for connection, _ in askers):
                future.cancel()

    def check(self) -> None:
        assert self._nbytes == sum(len(answer.blob) for answer in self._functions.values())
        assert self._nbytes <= KEPT_BYTES or len(self._functions) == 1
        assert all(askers for _, askers in self._asked.values())

    def _on_get_job(self, connection: Peer, message: GetJob) -> None:
        self._answer(connection, message, message.job_id, self._jobs.get(message.job_id))

    def _on_get_function(self, connection: Peer, message: GetFunction) -> None:
        known = self._functions.get(message.function_id)
        if known is not None:
            self._functions.move_to_end(message.function_id)
        self._answer(connection, message, message.function_id, known)

    def _answer(self, connection: Peer, message: GetJob | GetFunction, key: bytes, known: JobInfo | FunctionBlob | None) -> None:
        if known is not None:
            connection.send(msgspec.structs.replace(known, rid=message.rid))
        elif key in self._asked:
            self._asked[key][1].append((connection, message.rid))
        elif (control := self._control()) is None:
            connection.fail(message.rid, "RuntimeError", "The node has no control store any more: it is ending.")
        else:
            future = control.request(msgspec.structs.replace(message, rid=0))
            self._asked[key] = future, [(connection, message.rid)]
            future.add_done_callback(lambda _future: self._answered(key))

    def _answered(self, key: bytes) -> None:
        future, askers = self._asked.pop(key)
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._keep(key, future.result())
        for connection, rid in askers:
            if connection.closed:
                continue
            if error is None:
                connection.send(msgspec.structs.replace(future.result(), rid=rid))
            elif isinstance(error, RequestFailed):
                connection.fail(rid, error.kind, error.message, error.detail)
            else:
                connection.fail(rid, "RuntimeError", f"The control store could not be asked: {error}")

    def _keep(self, key: bytes, answer: JobInfo | FunctionBlob) -> None:
        if isinstance(answer, JobInfo):
            self._jobs[key] = answer
            return
        self._functions[key] = answer
        self._nbytes += len(answer.blob)
        while self._nbytes > KEPT_BYTES and len(self._functions) > 1:
            _, oldest = self._functions.popitem(last=False)
            self._nbytes -= len(oldest.blob)
