"""How user threads reach the I/O thread: a queue and one wake-up per batch.

    any thread: post(fn, arg) -> deque.append, and one eventfd write if nobody has written since the last drain
    I/O thread: the loop sees the eventfd, clears the flag, calls fn(arg) for everything queued, then ``on_drained`` once

A thread that posts faster than this one runs must not keep it from its sockets: of what comes while it drains, it takes ``MEANWHILE``
at most.

Order is kept across all threads' own posts. ``post_later`` is for what can wait, reference counts above all: it may run in ``__del__``,
inside any lock, so it appends and at most writes to the eventfd; the I/O thread then waits ``LATER_S``, so that a loop of put and delete
costs one wake-up per 5 ms, not one per object.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

LATER_S = 0.005
#: Posts that a drain runs beyond those that it found, 10 ms of them. With 0, batches are so small that actor calls in flight cost 6 % more.
MEANWHILE = 1000


class Inbox:
    """Made on the loop's thread; ``post`` and ``post_later`` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_drained: Callable[[], None]) -> None:
        self._loop = loop
        self._on_drained = on_drained
        self._queue: deque[tuple[Callable[[Any], Any], Any]] = deque()
        self._signalled = False
        #: A timer will drain the queue, or is about to be set.
        self._later = False
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False
        self._closed = False
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._fd, self._readable)

    def post(self, fn: Callable[[Any], Any], arg: Any) -> None:
        """Have ``fn(arg)`` called on the I/O thread, soon."""
        self._queue.append((fn, arg))
        if not self._signalled:
            self.signal()

    def signal(self) -> None:
        """Have what was posted with ``post_later`` run soon."""
        if not self._signalled:
            self._signalled = True
            try:
                self._wake()
            except BaseException:  # Ctrl-C on the way: the next who posts wakes it
                self._signalled = False
                raise

    def post_later(self, fn: Callable[[Any], Any], arg: Any) -> None:
        """The same within a few milliseconds; safe inside ``__del__``."""
        self._queue.append((fn, arg))
        if not self._signalled and not self._later:
            self._later = True
            try:
                self._wake()
            except BaseException:
                self._later = False
                raise

    def idle(self) -> bool:
        """Whether everything that the calling thread has posted was handled."""
        return not self._queue and not self._draining

    def settled(self) -> bool:
        """The same, but for what was left to ``post_later``."""
        return not self._signalled and not self._draining

    def drain_rest(self) -> None:
        """Run what is queued, if anything is. I/O thread only."""
        if self._queue and not self._draining:
            self.drain()

    def barrier(self) -> None:
        """Block until everything posted so far was handled and what it sent was written to its sockets. Not on the I/O thread."""
        done = threading.Lock()
        done.acquire()
        # Connections write at the end of the turn in which they were sent to: that was scheduled before this is.
        self.post(lambda _: self._loop.call_soon(done.release), None)
        done.acquire()

    def _wake(self) -> None:
        if not self._closed:
            os.eventfd_write(self._fd, 1)

    def _readable(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        if self._later and self._timer is None:
            self._timer = self._loop.call_later(LATER_S, self._time_out)
        if self._signalled:
            self.drain()

    def _time_out(self) -> None:
        self._timer = None
        # Before the look at the queue: whoever found it set has appended already.
        self._later = False
        if not self._closed:
            self.drain_rest()

    def drain(self) -> None:
        """Run everything that is queued now, and some of what comes meanwhile. I/O thread only."""
        queue = self._queue
        self._draining = True
        self._signalled = False
        left = len(queue) + MEANWHILE  # after the flag: whoever appends later, and found it set, is among them
        try:
            while queue and left:
                left -= 1
                fn, arg = queue.popleft()
                fn(arg)
            self._on_drained()
        finally:
            self._draining = False
            if queue:  # too many, or one of them failed, which the loop reports: the others shall not wait for the next post
                self.signal()

    def abandon(self) -> None:
        """In a forked child: never write to the descriptor, which is the parent's, and whose number may soon be another file's."""
        self._closed = True

    def close(self) -> None:
        """Drain once more and stop listening; later posts are kept and never run."""
        if self._closed:
            return
        self.drain()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
