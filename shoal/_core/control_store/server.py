"""The control store as a server: connections in, a table of message type -> method, replies out.

    connection --> session --> handler (a service) --> table --> instructions --> outbox --> connections

One loop, no threads, no tasks: waiting is an entry in a table. Messages of one connection are handled in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from shoal._base.ids import JOB_BYTES
from shoal._base.settings import Settings
from shoal._core.transport.connection import Connection
from shoal._core.wire.messages import (
    Ack,
    CancelRequest,
    CreateActor,
    CreatePlacementGroup,
    KillActor,
    KvDelete,
    KvPut,
    Message,
    Ping,
    RegisterJob,
    RegisterNode,
)

from . import rows
from .actor_records import ActorStatistics
from .actor_service import ActorService
from .call_back_service import CallBackService
from .core import Core, Handler, Session
from .drain_service import DrainService
from .functions import FunctionStatistics
from .group_records import GroupStatistics
from .group_service import GroupService
from .instructions import ActorEnded
from .job_service import JobService
from .jobs import JobStatistics
from .key_values import KeyValueStatistics
from .membership_service import Membership, MembershipService
from .node_service import NodeService, Probe
from .nodes import NodeStatistics
from .placement import PlacementStatistics
from .publication import PublicationStatistics
from .scheduling_service import SchedulingService
from .storage.interface import Change, Deposed, Storage, TablesDamaged
from .sweep_service import SweepService

log = logging.getLogger("shoal.control_store")

#: Requests that may come twice and must not take effect twice.
MARKED = (KvPut, KvDelete, KillActor)
#: What would add to the tables, while they have no room. A Ping, too: its answer says that all before it is durable.
REFUSED_WITHOUT_ROOM = (CreateActor, CreatePlacementGroup, RegisterJob, RegisterNode, KvPut, Ping)
_NO_ROOM = (
    "The control store cannot write its tables: its disk is full, or failing (its log has the error). Nothing of this request was done. "
    "It goes on by itself once there is room."
)


class ControlStoreStatistics(msgspec.Struct, frozen=True):
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
        membership: issues certificates and changes the token; None: nobody may ask for that.
        clock: seconds since the epoch, for ``started_at`` and the like. Timeouts use the loop's time.
        probe: looks at the endpoints of nodes; None: they have none, and a lost connection is the end of a node.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        storage: Storage,
        settings: Settings,
        membership: Membership | None = None,
        *,
        clock: Callable[[], float] = time.time,
        probe: Probe | None = None,
    ) -> None:
        self._core = core = Core(loop, storage, settings, clock)
        self._scheduling = SchedulingService(core)
        self._jobs = JobService(core)
        self._actors = ActorService(core, self._jobs, self._scheduling)
        self._groups = GroupService(core, self._jobs, self._scheduling)
        self._members = members = None if membership is None else MembershipService(core, membership)
        self._nodes = NodeService(core, self._jobs, self._scheduling, SweepService(core, settings.spill_sweep_s), members, probe)
        core.performs(ActorEnded, self._actor_ended)
        self._handlers: dict[type[Message], Handler] = {Ping: self._ping, CancelRequest: self._cancel}
        drains = DrainService(core, self._scheduling, self._nodes)
        for service in (self._jobs, self._actors, self._groups, self._nodes, CallBackService(core), members, drains):
            self._handlers |= {} if service is None else service.handlers()

    def load(self) -> None:
        """Read all tables back after a restart. Nodes are known but not connected until their agents register again.

        Raises TablesDamaged: they cannot be what a control store wrote.
        """
        core, scan = self._core, self._core.storage.scan
        try:
            core.nodes.load(scan(rows.NODES), core.loop.time())
            actors = core.actors.load(scan(rows.ACTOR_SPECS), scan(rows.ACTORS), scan(rows.UNWANTED_ACTORS))
            kept = {row.spec.job_id for row in core.actors.actors() if core.actors.has_detached(row.spec.job_id)}
            core.jobs.load(scan(rows.JOBS), core.storage.get(rows.COUNTERS, rows.NEXT_JOB), kept)
            core.functions.load(scan(rows.FUNCTIONS), scan(rows.FUNCTION_JOBS), JOB_BYTES)
            core.key_values.load(scan(rows.KEY_VALUES))
            core.answers.load(scan(rows.ANSWERS))
            groups = core.groups.load(scan(rows.GROUPS))
            started = core.storage.get(rows.COUNTERS, rows.STARTS)
            times = 0 if started is None else rows.decode_number(started)
            core.check()
        except (msgspec.MsgspecError, LookupError, AssertionError) as error:
            raise TablesDamaged(f"they do not fit together ({type(error).__name__}: {error})") from error
        core.publication.started(times)
        core.outbox.write(Change(rows.COUNTERS, rows.STARTS, rows.encode(times + 1)))
        core.perform(actors)
        core.perform(groups)
        self._nodes.started()

    def accept(self, connection: Connection) -> None:
        """Serve a connection until it closes."""
        session = Session(connection)
        connection.tag = session
        self._core.sessions.add(session)
        connection.on_message = self._on_message
        connection.on_close = self._on_close

    @property
    def on_deposed(self) -> Callable[[Deposed], None] | None:
        """Called once when another control store has taken over the tables; nobody is told anything any more then."""
        return self._core.outbox.on_deposed

    @on_deposed.setter
    def on_deposed(self, callback: Callable[[Deposed], None]) -> None:
        self._core.outbox.on_deposed = callback

    def tell_control_stores(self, addresses: list[str]) -> None:
        """Tell all nodes where they can turn to: here, and when this one is gone."""
        self._nodes.tell_control_stores(addresses)

    def close(self) -> None:
        """Write what is left. The connections and the storage belong to the caller."""
        self._nodes.close()
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
                self._core.outbox.fail(
                    connection, rid, "NotImplementedError", f"The control store does not answer {type(message).__name__}."
                )
            return
        session = connection.tag
        if session.node_id:
            self._core.nodes.heard(session.node_id, self._core.loop.time())
        if self._core.outbox.is_stuck and isinstance(message, REFUSED_WITHOUT_ROOM):
            # Not by the outbox, which sends nothing before it has written what it has.
            connection.fail(message.rid, "OutOfDiskError", _NO_ROOM)
        elif not (isinstance(message, MARKED) and self._core.was_answered(session, message)):
            handler(session, message)

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
