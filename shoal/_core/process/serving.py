"""The serving part of the head's life: its loop, whom it watches, its end.

    compose and listen ─ "ready" ─ serve ─┬─ driver gone (its socket ends, or its pidfd) ─▶ end at once
                                          └─ SIGTERM, or a byte from the driver ─▶ end in good order
    end: stop the parts ─ SIGKILL all descendants ─ remove the session's files ─ the template ─ leave

The template is told nothing at the end: it is killed last, so until then it would clean up if we died.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from shoal._core.node_agent.launcher import TemplateLauncher
from shoal._core.node_agent.logs import WorkerLogReader
from shoal._core.object_store.arena import Arena
from shoal._core.process import resources
from shoal._core.process import session as sessions
from shoal._core.process.options import HeadOptions, HeadReady, send_frame

log = logging.getLogger("shoal.head")

#: Seconds that the parts get to end in good order, and the descendants to be gone.
_PARTS_S = 0.3
_DESCENDANTS_S = 0.6
#: Seconds after the start until what earlier sessions left is looked at: not while the first tasks come.
_SWEEP_DELAY_S = 2.0

Compose = Callable[["HeadContext"], Awaitable["Parts"]]
NewTemplate = Callable[[list[int]], tuple[int, int]]


@dataclass(frozen=True)
class HeadContext:
    """What the parts of the head are made from."""

    loop: asyncio.AbstractEventLoop
    options: HeadOptions
    plan: resources.NodePlan
    session: sessions.Session
    token: bytes
    node_id: bytes
    arena: Arena
    launcher: TemplateLauncher
    logs: WorkerLogReader


class Parts(Protocol):
    """What serves inside the head, once composed: listens on the session's two sockets."""

    async def close(self) -> None:
        """End in good order: workers of this node may still be running."""


class Server:
    """What a head does once its template is forked."""

    def __init__(
        self,
        options: HeadOptions,
        lifeline: socket.socket,
        session: sessions.Session,
        node_id: bytes,
        plan: resources.NodePlan,
        arena: Arena,
    ) -> None:
        self.options = options
        self.lifeline = lifeline
        self.session = session
        self.node_id = node_id
        self.plan = plan
        self.arena = arena
        #: Descriptors that stay readable when the driver is gone.
        self._watched: list[int] = []

    def run(self, template_pid: int, channel: int, new_template: NewTemplate) -> None:
        """Serve until the end. The caller leaves the process at once: the loop is not wound up."""
        compose = _load(self.options.composition)
        loop = _new_loop()
        asyncio.set_event_loop(loop)
        self._stopping: asyncio.Future[bool] = loop.create_future()
        loop.run_until_complete(self._serve(loop, template_pid, channel, new_template, compose))

    async def _serve(
        self, loop: asyncio.AbstractEventLoop, template_pid: int, channel: int, new_template: NewTemplate, compose: Compose
    ) -> None:
        logs = WorkerLogReader(loop, self.session.logs_dir, self.options.settings)
        launcher = TemplateLauncher(loop, self.session.name, template_pid, channel, new_template, logs)
        self._watch_driver(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, True)
        context = HeadContext(loop, self.options, self.plan, self.session, self.session.token(), self.node_id, self.arena, launcher, logs)
        parts: Parts | None = None
        try:
            parts = await compose(context)
            send_frame(self.lifeline, self._ready(template_pid))
            loop.call_later(_SWEEP_DELAY_S, self._sweep)
            await self._stopping
        finally:
            await self._end(parts, launcher, logs)

    def _ready(self, template_pid: int) -> HeadReady:
        return HeadReady(
            node_id=self.node_id.hex(),
            agent_address=self.session.agent_address,
            control_address=self.session.control_address,
            session_dir=str(self.session.path),
            arena_path=self.arena.path,
            arena_bytes=self.arena.nbytes,
            pid=os.getpid(),
            template_pid=template_pid,
        )

    def _watch_driver(self, loop: asyncio.AbstractEventLoop) -> None:
        """The socket ends with the last process that holds it, maybe a forgotten fork of the driver; the pidfd knows the driver itself."""
        self._watched.append(self.lifeline.fileno())
        loop.add_reader(self.lifeline.fileno(), self._on_lifeline)
        try:
            pidfd = os.pidfd_open(self.options.driver_pid)
        except OSError:
            self._stop(False)
            return
        self._watched.append(pidfd)
        loop.add_reader(pidfd, self._stop, False)
        if os.getppid() != self.options.driver_pid:  # it ended before the pidfd was there: the number may be a stranger's
            self._stop(False)

    def _on_lifeline(self) -> None:
        """The driver says nothing after its options: a readable socket is an end. A byte before it asks for good order."""
        try:
            data = self.lifeline.recv(16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._stop(bool(data))

    def _stop(self, orderly: bool) -> None:
        if not self._stopping.done():
            self._stopping.set_result(orderly)
            for descriptor in self._watched:  # they stay readable
                self._stopping.get_loop().remove_reader(descriptor)

    def _sweep(self, budget_s: float = 0.1) -> None:
        try:
            sessions.sweep(self.session.directory.parent, spare=self.session, budget_s=budget_s)
        except OSError as error:
            log.debug("sweeping failed: %s", error)

    # --- the end ---

    async def _end(self, parts: Parts | None, launcher: TemplateLauncher, logs: WorkerLogReader) -> None:
        orderly = self._stopping.done() and self._stopping.result()
        if parts is not None and orderly:
            await _attempt(parts.close(), _PARTS_S)
        await launcher.close(_DESCENDANTS_S)
        if parts is not None and not orderly:
            await _attempt(parts.close(), _PARTS_S)
        logs.close()
        self.session.remove()
        self._sweep()
        if launcher.template_pid:
            os.kill(launcher.template_pid, signal.SIGKILL)
            os.waitpid(launcher.template_pid, 0)


async def _attempt(step: Awaitable[None], timeout_s: float) -> None:
    """Do one step of the end; neither an error nor a hang of it may keep the others from being done."""
    try:
        await asyncio.wait_for(step, timeout_s)
    except TimeoutError:
        log.warning("A part of the head took more than %.1f s to end.", timeout_s)
    except Exception:
        log.exception("A part of the head failed to end.")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _load(entry: str) -> Compose:
    module, _, name = entry.partition(":")
    found: Compose = getattr(import_module(module), name)
    return found
