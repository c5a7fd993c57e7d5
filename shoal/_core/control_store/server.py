"""The control store as a server: connections in, a table of message type -> method, replies out.

    connection --> session --> handler (a service) --> table --> instructions --> outbox --> connections

One loop, no threads, no tasks: waiting is an entry in a table. Messages of one connection are handled in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from shoal._base.ids import JOB_BYTES
from shoal._base.settings import Settings
from shoal._core.transport.connection import Connection
from shoal._core.wire.messages import Ack, CancelRequest, Message, Ping

from . import rows
from .actor_records import ActorStatistics
from .actor_service import ActorService
from .core import Core, Handler, Session
from .functions import FunctionStatistics
from .group_records import GroupStatistics
from .group_service import GroupService
from .instructions import ActorEnded
from .job_service import JobService
from .jobs import JobStatistics
from .key_values import KeyValueStatistics
from .node_service import NodeService
from .nodes import NodeStatistics
from .placement import PlacementStatistics
from .publication import PublicationStatistics
from .scheduling_service import SchedulingService
from .storage.interface import Storage

log = logging.getLogger("shoal.control_store")


@dataclass(frozen=True, slots=True)
class ControlStoreStatistics:
    connections: int
    commits: int
    jobs: JobStatistics
    nodes: NodeStatistics
    actors: ActorStatistics
    placement: PlacementStatistics
    groups: GroupStatistics
    functions: FunctionStatistics
    key_values: KeyValueStatistics
    publication: PublicationStatistics


class ControlStore:
    """The tables of one cluster, served to every process of it.

    Args:
        storage: where rows live; call ``load`` once before the first ``accept`` if it may hold any.
        clock: seconds since the epoch, for ``started_at`` and the like. Timeouts use the loop's time.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, storage: Storage, settings: Settings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._core = core = Core(loop, storage, settings, clock)
        self._scheduling = SchedulingService(core)
        self._jobs = JobService(core)
        self._actors = ActorService(core, self._jobs, self._scheduling)
        self._groups = GroupService(core, self._jobs, self._scheduling)
        self._nodes = NodeService(core, self._jobs, self._scheduling)
        core.performs(ActorEnded, self._actor_ended)
        self._handlers: dict[type[Message], Handler] = {Ping: self._ping, CancelRequest: self._cancel}
        for service in (self._jobs, self._actors, self._groups, self._nodes):
            self._handlers |= service.handlers()

    def load(self) -> None:
        """Read all tables back after a restart. Nodes are known but not connected until their agents register again."""
        core, scan = self._core, self._core.storage.scan
        core.nodes.load(scan(rows.NODES))
        actors = core.actors.load(scan(rows.ACTOR_SPECS), scan(rows.ACTORS))
        kept = {row.spec.job_id for row in core.actors.actors() if core.actors.has_detached(row.spec.job_id)}
        core.jobs.load(scan(rows.JOBS), core.storage.get(rows.COUNTERS, rows.NEXT_JOB), kept)
        core.functions.load(scan(rows.FUNCTIONS), scan(rows.FUNCTION_JOBS), JOB_BYTES)
        core.key_values.load(scan(rows.KEY_VALUES))
        groups = core.groups.load(scan(rows.GROUPS))
        core.perform(actors)
        core.perform(groups)

    def accept(self, connection: Connection) -> None:
        """Serve a connection until it closes."""
        session = Session(connection)
        connection.tag = session
        self._core.sessions.add(session)
        connection.on_message = self._on_message
        connection.on_close = self._on_close

    def close(self) -> None:
        """Write what is left. The connections and the storage belong to the caller."""
        self._core.outbox.close()

    def statistics(self) -> ControlStoreStatistics:
        core = self._core
        return ControlStoreStatistics(
            len(core.sessions), core.outbox.commits, core.jobs.statistics(), core.nodes.statistics(), core.actors.statistics(),
            core.placement.statistics(), core.groups.statistics(), core.functions.statistics(), core.key_values.statistics(),
            core.publication.statistics(),
        )  # fmt: skip

    def check(self) -> None:
        self._core.check()

    def _on_message(self, connection: Connection, message: Message) -> None:
        handler = self._handlers.get(type(message))
        if handler is None:
            log.warning("A %s from %s is not for the control store.", type(message).__name__, connection.peer)
            rid = getattr(message, "rid", None)
            if rid is not None:
                connection.fail(rid, "NotImplementedError", f"The control store does not answer {type(message).__name__}.")
            return
        handler(connection.tag, message)

    def _on_close(self, connection: Connection) -> None:
        session = connection.tag
        if not isinstance(session, Session) or session not in self._core.sessions:
            return
        self._core.sessions.discard(session)
        for service in (self._actors, self._groups, self._jobs, self._nodes):
            service.disconnected(session)

    def _actor_ended(self, ended: ActorEnded) -> None:
        self._jobs.actor_ended(ended)
        self._core.perform(self._core.groups.actor_ended(ended.actor_id))

    def _ping(self, session: Session, message: Ping) -> None:
        self._core.outbox.send(session.connection, Ack(message.rid))

    def _cancel(self, session: Session, message: CancelRequest) -> None:
        self._jobs.cancel(session, message)
        self._groups.cancel(session, message)
