"""The serving part of the head's life: its loop, whom it watches, its end.

    compose and listen ─ "ready" ─ serve ─┬─ driver gone (its socket ends, or its pidfd) ─▶ end at once
                                          ├─ SIGTERM, or a byte from the driver ─▶ end in good order
                                          └─ declared dead by the control store ─▶ end at once, keep the session, start anew (head.py)
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
from functools import partial
from importlib import import_module
from typing import Protocol

from shoal._base import processes
from shoal._core.node_agent.launcher import TemplateLauncher
from shoal._core.node_agent.logs import WorkerLogReader
from shoal._core.object_store.arena import Arena
from shoal._core.process import resources
from shoal._core.process import session as sessions
from shoal._core.process.ending import Ending
from shoal._core.process.keeping import ControlStoreKeeper
from shoal._core.process.options import HeadOptions, HeadReady, send_frame
from shoal._core.transport.trust import Trust

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
    trust: Trust
    node_id: bytes
    arena: Arena
    launcher: TemplateLauncher
    logs: WorkerLogReader
    #: The node was declared dead: end all that runs on it, and join again as another.
    start_anew: Callable[[], None]
    #: Ends the process in good order.
    end: Callable[[], None]


class Parts(Protocol):
    """What serves inside the head, once composed: listens on the session's two sockets."""

    @property
    def endpoint(self) -> str:
        """Where other nodes reach this one; "": nowhere."""

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

    def run(self, template_pid: int, channel: int, new_template: NewTemplate) -> bool:
        """Serve until the end; return whether to start anew. The caller leaves the process at once: the loop is not wound up."""
        compose = _load(self.options.composition)
        loop = new_loop()
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(self._serve(loop, template_pid, channel, new_template, compose))

    async def _serve(
        self, loop: asyncio.AbstractEventLoop, template_pid: int, channel: int, new_template: NewTemplate, compose: Compose
    ) -> bool:
        logs = WorkerLogReader(loop, self.session.logs_dir, self.options.settings)
        launcher = TemplateLauncher(loop, self.session.name, template_pid, channel, new_template, logs)
        ending = Ending(loop, self.lifeline, self.options.driver_pid)
        context = HeadContext(
            loop, self.options, self.plan, self.session, self.session.trust(), self.node_id, self.arena, launcher, logs,
            ending.begin_anew,
            partial(ending.begin, True),
        )  # fmt: skip
        parts: Parts | None = None
        keeper: ControlStoreKeeper | None = None
        try:
            parts = await compose(context)
            if self.options.control_session_dir:
                keeper = ControlStoreKeeper(loop, self.options.control_session_dir)
            if not self.options.anew:  # whoever started it knows by now, and may be gone if this is a daemon
                send_frame(self.lifeline, self._ready(template_pid, parts.endpoint))
            processes.return_free_memory()
            loop.call_later(_SWEEP_DELAY_S, self._sweep)
            await ending.wait()
        finally:
            if keeper is not None:
                await keeper.close()
            await self._end(parts, launcher, logs, orderly=ending.is_orderly, keep_session=ending.anew)
        return ending.anew

    def _ready(self, template_pid: int, endpoint: str) -> HeadReady:
        return HeadReady(
            node_id=self.node_id.hex(),
            agent_address=self.session.agent_address,
            control_address=self.options.control_address or self.session.control_address,
            session_dir=str(self.session.path),
            arena_path=self.arena.path,
            arena_bytes=self.arena.nbytes,
            pid=os.getpid(),
            template_pid=template_pid,
            endpoint=endpoint,
        )

    def _sweep(self, budget_s: float = 0.1) -> None:
        try:
            sessions.sweep(self.session.directory.parent, spare=self.session, budget_s=budget_s)
        except OSError as error:
            log.debug("sweeping failed: %s", error)

    # --- the end ---

    async def _end(
        self, parts: Parts | None, launcher: TemplateLauncher, logs: WorkerLogReader, *, orderly: bool, keep_session: bool
    ) -> None:
        if parts is not None and orderly:
            await _attempt(parts.close(), _PARTS_S)
        await launcher.close(_DESCENDANTS_S)
        if parts is not None and not orderly:
            await _attempt(parts.close(), _PARTS_S)
        logs.close()
        if keep_session:
            self.session.empty()
        else:
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


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _load(entry: str) -> Compose:
    module, _, name = entry.partition(":")
    found: Compose = getattr(import_module(module), name)
    return found
