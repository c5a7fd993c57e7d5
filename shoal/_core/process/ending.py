"""When a head or control store has to end: its driver is gone, or somebody asks for it.

driver's lifeline ends, or its pidfd says that it is gone ─▶ at once
a byte on the lifeline, SIGTERM, SIGINT                    ─▶ in good order
a daemon has no driver: signals only
its node was declared dead, or it leads no more            ─▶ at once, and then anew: as another node, as a standby
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket

from shoal._base.processes import is_running


class Ending:
    """Made inside the running loop. ``wait`` returns whether the end is to be in good order.

    Args:
        lifeline: the socket to the driver that started this process; None: somebody else did.
        driver_pid: the process whose end is ours; 0: this is a daemon.
        driver_started: when it started, if it is not our parent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lifeline: socket.socket | None, driver_pid: int, driver_started: int = 0) -> None:
        self._loop = loop
        self._lifeline = lifeline
        self._stopping: asyncio.Future[bool] = loop.create_future()
        #: The process lives on, from its beginning.
        self.anew = False
        #: Descriptors that stay readable when the driver is gone.
        self._watched: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.begin, True)
        if driver_pid:
            self._watch(driver_pid, driver_started)

    async def wait(self) -> bool:
        """Block until the end. True: in good order."""
        return await self._stopping

    @property
    def is_orderly(self) -> bool:
        """Whether an end in good order has begun."""
        return self._stopping.done() and self._stopping.result()

    def begin(self, orderly: bool) -> None:
        """Let ``wait`` return. Idempotent: the first word counts."""
        if not self._stopping.done():
            self._stopping.set_result(orderly)
            for descriptor in self._watched:  # they stay readable
                self._loop.remove_reader(descriptor)

    def begin_anew(self) -> None:
        """End all that runs, and start again in this process. Nothing if an end has begun."""
        if not self._stopping.done():
            self.anew = True
            self.begin(False)

    def _watch(self, driver_pid: int, driver_started: int) -> None:
        """The socket ends with the last process that holds it, maybe a forgotten fork of the driver; the pidfd knows the driver itself."""
        if self._lifeline is not None:
            self._watched.append(self._lifeline.fileno())
            self._loop.add_reader(self._lifeline.fileno(), self._on_lifeline, self._lifeline)
        try:
            pidfd = os.pidfd_open(driver_pid)
        except OSError:
            self.begin(False)
            return
        self._watched.append(pidfd)
        self._loop.add_reader(pidfd, self.begin, False)
        is_there = is_running(driver_pid, driver_started) if driver_started else os.getppid() == driver_pid
        if not is_there:  # it ended before the pidfd was there: the number may be a stranger's
            self.begin(False)

    def _on_lifeline(self, lifeline: socket.socket) -> None:
        """The driver says nothing after its options: a readable socket is an end. A byte before it asks for good order."""
        try:
            data = lifeline.recv(16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.begin(bool(data))
