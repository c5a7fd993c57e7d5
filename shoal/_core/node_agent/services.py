"""What the parts of the node agent (actors, bundles) ask of the whole: workers, leases, the control store's connection."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shoal._core.node_agent.lease_records import Instruction
from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.peers import Peer
from shoal._core.node_agent.resource_reports import ResourceReports
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.wire.messages import Cause, NodeRecord


class AgentServices(Protocol):
    """Implemented by ``server.NodeAgent``, where the methods are described."""

    loop: asyncio.AbstractEventLoop
    node: NodeRecord
    leases: Leases
    reports: ResourceReports

    @property
    def control(self) -> Peer | None: ...
    def learn_job(self, worker_id: bytes, job_id: bytes) -> None: ...
    def queue(self, request: LeaseRequest) -> None: ...
    def perform_leases(self, instructions: list[Instruction]) -> None: ...
    def reschedule(self) -> None: ...
    def withdraw_lease(self, lease_id: int, cause: Cause) -> bool: ...
    def stop_worker(self, worker_id: bytes, cause: Cause) -> None: ...
    def dismiss(self, worker_id: bytes, cause: Cause) -> None: ...
    def kill_worker(self, worker_id: bytes, cause: Cause) -> None: ...
