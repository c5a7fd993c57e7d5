"""Puts the execution part of a worker together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal._core.wire.messages import BecomeActor, WorkerBlocked, WorkerUnblocked

from .actors import ActorExecutor
from .calls import Call, CallRunner
from .inbound import Inbound
from .tasks import MainThread

if TYPE_CHECKING:
    from shoal._core.worker.core import Core
    from shoal._core.worker.inbox import Inbox
    from shoal._core.worker.runtime import CoreRuntime


class Execution:
    """What the runtime of a worker needs to know about the code that runs in it."""

    def __init__(self, core: Core, runtime: CoreRuntime, inbox: Inbox, *, session_dir: str, ip: str) -> None:
        self.core = core
        self.inbox = inbox
        self.inbound = Inbound(core, runtime, inbox, ip)
        self.runner = CallRunner(self.inbound)
        self.main = MainThread(self.inbound, self.runner, session_dir, self._make_actor)
        self.inbound.main = self.main
        core.executor = self.inbound

    def _make_actor(self, message: BecomeActor) -> ActorExecutor:
        return ActorExecutor(self.inbound, self.runner, self.main, message)

    @property
    def actor(self) -> Any:
        """The actor that lives here, if any."""
        return self.inbound.actor

    def releases_cpu(self, call: Call) -> bool:
        """A blocked call frees its CPUs when nothing else runs in this process meanwhile."""
        spec = self.inbound.actor_spec
        return spec is None or (not spec.is_async and spec.max_concurrency == 1 and not spec.concurrency_groups)

    def block(self) -> None:
        self.inbox.post(self._blocked, None)

    def unblock(self) -> None:
        self.inbox.post(self._unblocked, None)

    def _blocked(self, _arg: None) -> None:
        self.core.agent.send(WorkerBlocked(self.core.me.worker_id))
        if self.inbound.actor is None:
            self.inbound.hand_back()
            self.inbound.blocked = True

    def _unblocked(self, _arg: None) -> None:
        self.core.agent.send(WorkerUnblocked(self.core.me.worker_id))
        self.inbound.blocked = False
