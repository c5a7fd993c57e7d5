"""The drain of this node, carried out (the shell around ``draining.py``).

control store --Drain--> refused, or: nothing new is granted, what waits goes elsewhere, leases are called back
                         every STEP_S: what is here? -> draining.step -> copy off, end work, leave
              <--NodeDrained-- [nothing left] --Ack--> this process ends
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from shoal._core.node_agent.bequests import Bequests
from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.draining import Bequeath, CopyOff, Draining, EndWork, Leave, Load, refusal
from shoal._core.node_agent.peers import Peer, Process
from shoal._core.node_agent.services import AgentServices
from shoal._core.transport.errors import ConnectionLost, RequestFailed
from shoal._core.wire.messages import DRAINED, Ack, Address, Cause, Drain, NameHeir, NodeDrained, describe_drain

log = logging.getLogger("shoal.node_agent")

#: Seconds between two looks at what is left; as long as a look takes, if that is more (100,000 objects: 40 ms).
STEP_S = 0.02
#: Seconds after the deadline within which the control store can say that it knows; then the node ends all the same.
FAREWELL_S = 5.0


class Host(AgentServices, Protocol):
    """The node agent, as far as a drain needs it."""

    view: ClusterView

    def processes(self) -> list[Process]: ...
    def retire_idle(self) -> int: ...


class DrainService:
    """One node's.

    Args:
        primaries: the primary copies here, with their owners.
        copy_off: has another node take over these primary copies; returns those that it has taken.
        last_words: waits until other nodes have been told what was to be told.
        leave: ends this process in good order.
    """

    def __init__(
        self,
        agent: Host,
        primaries: Callable[[], Sequence[tuple[bytes, Address]]],
        copy_off: Callable[[bytes, list[bytes]], Awaitable[list[bytes]]],
        bequests: Bequests,
        last_words: Callable[[], Awaitable[None]],
        leave: Callable[[], None],
    ) -> None:
        self._agent = agent
        self._primaries = primaries
        self._copy_off = copy_off
        self._bequests = bequests
        self._last_words = last_words
        self._leave = leave
        self._state: Draining | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {Drain: self._on_drain}

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _on_drain(self, connection: Peer, message: Drain) -> None:
        agent = self._agent
        why_not = refusal(message.reason, self._load(everything=True))
        if why_not:
            connection.fail(message.rid, "RuntimeError", why_not)
            return
        deadline = agent.loop.time() + message.deadline_s
        connection.send(Ack(message.rid))
        if self._state is not None:
            self._state.again(deadline)
            agent.node.leaves_at = min(agent.node.leaves_at, message.leaves_at)
            return
        log.info("This node leaves within %.1f s: %s. %s", message.deadline_s, message.reason, message.text)
        agent.node.draining, agent.node.leaves_at = describe_drain(message.reason, message.text), message.leaves_at
        self._state = Draining(agent.node.node_id, deadline)
        agent.perform_leases(agent.leases.drain(agent.loop.time()))
        self._step()

    def _load(self, *, everything: bool = False) -> Load:
        """What is here; ``everything``: also objects that go with their owners, who are here."""
        agent = self._agent
        here = agent.node.node_id
        homes = {node.node_id for node in agent.view.nodes()} - (set() if everything else {here})
        actors = sum(lease.is_actor for lease in agent.leases.leases.values())
        processes = agent.processes()
        return Load(
            tasks=len(agent.leases.leases) - actors,
            actors=actors,
            drivers=sum(process.is_driver for process in processes),
            unfinished=sum(process.unfinished for process in processes),
            leaving=0 if everything else agent.retire_idle(),
            owned=0 if everything else self._bequests.count(),
            objects={object_id: owner.node_id for object_id, owner in self._primaries() if owner.node_id in homes},
        )

    def _step(self) -> None:
        state, agent = self._state, self._agent
        if state is None or self._closed:
            return
        began = time.monotonic()
        others = [node.node_id for node in agent.view.nodes() if node.takes_work and node.endpoint and node is not agent.node]
        for instruction in state.step(self._load(), others, agent.loop.time()):
            match instruction:
                case CopyOff(node_id, object_ids):
                    self._spawn(self._offer(state, node_id, object_ids))
                case Bequeath(heir):
                    self._spawn(self._bequeath(state, heir))
                case EndWork():
                    self._end_work()
                case Leave():
                    self._spawn(self._say_goodbye(state))
                    return
        self._timer = agent.loop.call_later(max(STEP_S, time.monotonic() - began), self._step)

    async def _offer(self, state: Draining, node_id: bytes, object_ids: list[bytes]) -> None:
        taken: list[bytes] = []
        try:
            taken = await self._copy_off(node_id, object_ids)
        except (OSError, RequestFailed) as error:
            log.warning("Node %s takes over none of %d objects: %s", node_id.hex(), len(object_ids), error)
        state.answered(node_id, object_ids, taken)

    async def _bequeath(self, state: Draining, heir: bytes) -> None:
        agent = self._agent
        done = False
        try:
            await self._bequests.bequeath(heir)
            if agent.control is not None and agent.node.heir != heir:
                agent.node.heir = heir  # a control store that was started again hears it when this node comes back
                await agent.control.request(NameHeir(0, agent.node.node_id, heir))
            done = True
        except (OSError, RequestFailed) as error:
            log.warning("Node %s does not take over what this node's agent owns: %s", heir.hex(), error)
        state.bequeathed(done, agent.loop.time())

    def _end_work(self) -> None:
        agent = self._agent
        cause = Cause(DRAINED, f"Its node {agent.node.hostname} leaves the cluster ({agent.node.draining}).", node_id=agent.node.node_id)
        for lease_id in list(agent.leases.leases):
            agent.withdraw_lease(lease_id, cause)

    async def _say_goodbye(self, state: Draining) -> None:
        """Leave when the control store knows why, so that nobody takes it for a death."""
        agent = self._agent
        patience_s = max(FAREWELL_S, state.deadline + FAREWELL_S - agent.loop.time())
        try:
            async with asyncio.timeout(patience_s):
                await self._last_words()
                if agent.control is not None:
                    await agent.control.request(NodeDrained(0, agent.node.node_id, agent.node.draining))
        except (TimeoutError, ConnectionLost, RequestFailed) as error:
            log.warning("The control store does not know that this node has left in good order: %s", error)
        log.info("This node has left: nothing is here that anybody waits for.")
        self._leave()

    def _spawn(self, work: Any) -> None:
        task = self._agent.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
