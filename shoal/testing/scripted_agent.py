"""A node agent that obeys, for tests of the control store: it starts what it is told to, and keeps what a real one must keep.

Its figures are exact, so a test can assert that no two incarnations of an actor live, and that nothing is reserved at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shoal._core.control_link import ControlLink
from shoal._core.transport.connection import Connection
from shoal._core.transport.memory import MemoryTransport
from shoal._core.wire.messages import (
    REPLY_TYPES,
    Ack,
    ActorStarted,
    ActorWorkerDied,
    Address,
    CancelActorStart,
    Cause,
    ClusterChanged,
    CommitBundles,
    Drain,
    Failed,
    Message,
    NodeList,
    NodeRecord,
    PrepareBundles,
    RegisterNode,
    ReleaseBundles,
    ReportResources,
    StartActor,
    StopActor,
    describe_drain,
)


class ScriptedAgent:
    """``hold``: keep starts in ``pending`` until ``finish_start``. ``refuse``: say no to PrepareBundles."""

    def __init__(self, name: str, total: dict[str, int], *, labels: dict[str, str] | None = None) -> None:
        self.node_id = name.encode().ljust(28, b"\0")
        self.total = dict(total)
        self.record = NodeRecord(self.node_id, f"memory:{name}", name, "127.0.0.1", dict(total), dict(total), labels or {}, name=name)
        self.hold = False
        self.refuse = False
        #: Everything that came, in order.
        self.seen: list[Message] = []
        #: Actor -> the start that is not answered yet.
        self.pending: dict[bytes, StartActor] = {}
        #: Actor -> (incarnation, address).
        self.living: dict[bytes, tuple[int, Address]] = {}
        #: Group -> bundles that are reserved; and those that are committed.
        self.reserved: dict[bytes, dict[int, dict[str, int]]] = {}
        self.committed: set[bytes] = set()
        #: What to answer to a start; None: it lives.
        self.fail_start: Callable[[StartActor], Cause | None] = lambda start: None
        #: Each incarnation that was started, in order.
        self.started: list[tuple[bytes, int]] = []
        self.connection: Any = None
        self._asker: Connection | None = None
        self._registered = False

    async def stay(self, transport: MemoryTransport, address: str, timeout_s: float = 10.0) -> None:
        """Connect by a link, and register again whenever the connection is lost."""
        loop = asyncio.get_running_loop()
        link = ControlLink(
            loop,
            lambda on_message, on_close: transport.connect(address, on_message, on_close),
            self.node_id,
            greet=self.registration,
            silence_s=timeout_s,
            beat_s=timeout_s / 10,
            always=True,
        )
        link.on_message = self._on_message
        self.connection = link
        await link.open()

    def registration(self) -> RegisterNode:
        """Make the message that registers it, with what it holds."""
        known, self._registered = self._registered, True
        self.record.available = self.available()
        held = {actor_id: incarnation for actor_id, (incarnation, _) in self.living.items()}
        held |= {actor_id: start.incarnation for actor_id, start in self.pending.items()}
        groups = {group: list(bundles) for group, bundles in self.reserved.items()}
        return RegisterNode(0, self.record, known, sorted(held.items()), groups)

    async def join(self, transport: MemoryTransport, address: str) -> None:
        """Connect and register."""
        self.connection = await transport.connect(address, self._on_message)
        await self.connection.request(RegisterNode(0, self.record))

    def available(self) -> dict[str, int]:
        """What no bundle holds; actors hold nothing."""
        left = dict(self.total)
        for bundles in self.reserved.values():
            for bundle in bundles.values():
                for name, amount in bundle.items():
                    left[name] -= amount
        return left

    def finish_start(self, actor_id: bytes, cause: Cause | None = None) -> None:
        """Answer the start that was held."""
        start = self.pending.pop(actor_id)
        address = None
        if cause is None:
            assert actor_id not in self.living, "two live incarnations"
            worker = (actor_id + b"%d" % start.incarnation).ljust(28, b"\0")
            address = Address(worker, self.node_id, f"memory:{worker.hex()[:8]}")
            self.living[actor_id] = (start.incarnation, address)
        self._send(ActorStarted(start.rid, address, cause))

    def end_worker(self, actor_id: bytes, cause: Cause) -> None:
        """The actor's process is gone."""
        incarnation, _ = self.living.pop(actor_id)
        self._send(ActorWorkerDied(actor_id, incarnation, cause))

    def requests(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.seen if type(message) is kind]

    def _send(self, message: Message) -> None:
        """Tell the control store, or answer it on the connection of now."""
        assert self.connection is not None
        if type(message) in REPLY_TYPES and self._asker is not None:
            self._asker.send(message)
        else:
            self.connection.send(message)

    def _on_message(self, connection: Connection, message: Any) -> None:
        self.seen.append(message)
        self._asker = connection
        match message:
            case StartActor():
                actor_id = message.spec.actor_id
                before = self.pending.get(actor_id)
                living = self.living.get(actor_id)
                if living is not None and living[0] == message.incarnation:  # asked again: the answer was lost
                    self._send(ActorStarted(message.rid, living[1]))
                    return
                assert before is None or before.incarnation == message.incarnation, "two starts at once"
                self.pending[actor_id] = message
                if before is None:
                    self.started.append((actor_id, message.incarnation))
                if not self.hold:
                    self.finish_start(actor_id, self.fail_start(message))
            case CancelActorStart():
                if message.actor_id in self.pending:
                    self.finish_start(message.actor_id, Cause("cancelled"))
            case Drain():
                self.record.draining, self.record.leaves_at = describe_drain(message.reason, message.text), message.leaves_at
                self._send(Ack(message.rid))
            case StopActor():
                if message.actor_id in self.living:
                    asyncio.get_event_loop().call_soon(self._stopped, message.actor_id, message.cause)
            case PrepareBundles():
                self._prepare(message)
            case CommitBundles():
                assert message.placement_group_id in self.reserved
                self.committed.add(message.placement_group_id)
                self._send(Ack(message.rid))
            case ReleaseBundles():
                self.reserved.pop(message.placement_group_id, None)
                self.committed.discard(message.placement_group_id)
                self._send(Ack(message.rid))
                self._send(ClusterChanged(self.node_id))
            case ReportResources():
                self.record.available = self.available()
                self._send(NodeList(message.rid, [self.record]))
            case _:
                pass

    def _stopped(self, actor_id: bytes, cause: Cause) -> None:
        if actor_id in self.living:
            self.end_worker(actor_id, cause)

    def _prepare(self, message: PrepareBundles) -> None:
        left = self.available()
        wanted: dict[str, int] = {}
        for bundle in message.bundles.values():
            for name, amount in bundle.items():
                wanted[name] = wanted.get(name, 0) + amount
        if self.refuse or any(left.get(name, 0) < amount for name, amount in wanted.items()):
            self._send(Failed(message.rid, "RuntimeError", "does not fit now"))
            return
        self.reserved.setdefault(message.placement_group_id, {}).update(message.bundles)
        self._send(Ack(message.rid))
