"""A connection over which objects come from another node, and the thread that reads it.

loop ── batch ──▶ queue ──▶ thread: asks for up to DEPTH batches, receives the oldest into memory ──▶ loop: answers
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from shoal._core.object_store.pulls import DEPTH, Answer, Found, Piece
from shoal._core.object_store.transfer import STALL_S, DataSocket
from shoal._core.transport.errors import TransportError
from shoal._core.transport.preamble import data_of
from shoal._core.transport.trust import Trust

log = logging.getLogger("shoal.object_store")


class FileRange(NamedTuple):
    """Where a piece goes that does not go into the arena. ``offset``: a multiple of the page size."""

    path: str
    offset: int


#: Memory or file, for each piece of a batch.
Targets = Sequence[memoryview | FileRange]


class Link:
    """One connection to one node. ``ask`` and ``end`` on the loop.

    Args:
        as_relay: pieces are asked of the node as of a relay.
        on_answers: gets the answers to the oldest batch, on the loop, when its bytes are here.
        on_failure: gets (answers so far to the oldest batch, why) once; nothing comes after that.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        as_relay: bool,
        on_answers: Callable[[list[Answer]], None],
        on_failure: Callable[[list[Answer], str], None],
    ) -> None:
        self._loop = loop
        self._as_relay = as_relay
        self._on_answers = on_answers
        self._on_failure = on_failure
        #: None: nothing follows.
        self._batches: SimpleQueue[tuple[Sequence[Piece], Targets] | None] = SimpleQueue()
        self._sock: DataSocket | None = None
        self._thread: threading.Thread | None = None

    def start(self, sock: DataSocket, trust: Trust, source: bytes, own: bytes) -> None:
        """Work over this socket from now on, and close it at the end. ``source``: the node that it leads to; ``own``: this one."""
        self._sock = sock
        self._thread = threading.Thread(target=self._run, args=(sock, trust, source, own), name="shoal-pull", daemon=True)
        self._thread.start()

    def ask(self, pieces: Sequence[Piece], targets: Targets) -> None:
        """Fetch these after what was asked before. The socket may come later."""
        self._batches.put((pieces, targets))

    def end(self) -> threading.Thread | None:
        """Hang up; what is under way is not reported. Returns the thread, which ends soon."""
        self._on_answers, self._on_failure = _nobody_cares, _nobody_cares
        self._batches.put(None)
        if self._sock is not None:
            self._sock.hang_up()
        return self._thread

    def _run(self, sock: DataSocket, trust: Trust, source: bytes, own: bytes) -> None:
        answers: list[Answer] = []
        try:
            sock.prove("client", trust, data_of(source))
            sock.limit_wait(STALL_S)
            sock.send(own)
            asked: deque[tuple[Sequence[Piece], Targets]] = deque()
            while True:
                if not self._ask(sock, asked):
                    return
                pieces, targets = asked.popleft()
                answers = []
                for piece, target, answer in zip(pieces, targets, sock.receive_answers(len(pieces)), strict=True):
                    if answer.found is Found.HERE:
                        _receive(sock, target, piece.length)
                    answers.append(answer)
                self._loop.call_soon_threadsafe(self._answered, answers)
                answers = []
        except (OSError, EOFError, ValueError, TransportError) as error:
            reason = "Nothing has come for too long." if isinstance(error, BlockingIOError | TimeoutError) else str(error)
            self._loop.call_soon_threadsafe(self._failed, answers, reason)
        except Exception as error:  # a fault of ours: those who wait must not wait for ever
            log.exception("A thread that fetches objects has failed.")
            self._loop.call_soon_threadsafe(self._failed, answers, repr(error))
        finally:
            sock.close()

    def _ask(self, sock: DataSocket, asked: deque[tuple[Sequence[Piece], Targets]]) -> bool:
        """Ask for what is queued, up to ``DEPTH``; wait if there is nothing to wait for otherwise. False: nothing follows."""
        while len(asked) < DEPTH:
            try:
                batch = self._batches.get(block=not asked)
            except Empty:
                break
            if batch is None:
                return False
            sock.send_batch(batch[0], as_relay=self._as_relay)
            asked.append(batch)
        return True

    def _answered(self, answers: list[Answer]) -> None:
        self._on_answers(answers)

    def _failed(self, answers: list[Answer], reason: str) -> None:
        self._on_failure(answers, reason)


def _receive(sock: DataSocket, target: memoryview | FileRange, nbytes: int) -> None:
    if isinstance(target, memoryview):
        sock.receive_into(target)
    elif nbytes:
        descriptor = os.open(target.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with mmap.mmap(descriptor, nbytes, offset=target.offset) as file, memoryview(file) as view:
                sock.receive_into(view)
        finally:
            os.close(descriptor)


def _nobody_cares(*_: object) -> None:
    """The link was ended."""
