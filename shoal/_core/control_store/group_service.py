"""Messages about placement groups.

CreatePlacementGroup --> [create] --Ack--> caller
                             +--PrepareBundles--> agents --Ack--> [PREPARED] --CommitBundles--> agents --Ack--> [CREATED]
WaitPlacementGroup --> acked at CREATED          RemovePlacementGroup --> ReleaseBundles to agents --> acked when all have answered
WatchGroup (agent) --> GroupChanged: where its bundles lie, now, when it is created, when bundles are lost, and when it is removed
"""

from __future__ import annotations

from collections.abc import Callable

from shoal._core.transport.connection import Connection
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import (
    Ack,
    CancelRequest,
    CommitBundles,
    CreatePlacementGroup,
    GetPlacementGroup,
    GroupChanged,
    ListPlacementGroups,
    Message,
    PlacementGroupList,
    PrepareBundles,
    ReleaseBundles,
    RemovePlacementGroup,
    WaitPlacementGroup,
    WatchGroup,
)

from .core import Core, Handler, Session
from .group_records import CREATED, REMOVED, GroupNameTaken
from .instructions import BundlesLost, Commit, GroupSettled, Prepare, Release, RemovalDone
from .job_service import JobService
from .scheduling_service import SchedulingService

#: Connection and number of the request that waits.
Waiter = tuple[Connection, int]

_REMOVED_TEXT = "The placement group was removed."


class GroupService:
    def __init__(self, core: Core, jobs: JobService, scheduling: SchedulingService) -> None:
        self._core = core
        self._jobs = jobs
        self._scheduling = scheduling
        #: Group -> (connection, rid) that wait until it is created, or until its removal is done.
        self._waiters: dict[bytes, dict[Waiter, None]] = {}
        self._removers: dict[bytes, dict[Waiter, None]] = {}
        #: Group -> agents that send work there.
        self._watchers: dict[bytes, dict[Connection, None]] = {}
        core.performs(Prepare, self._prepare)
        core.performs(Commit, self._commit)
        core.performs(Release, self._release)
        core.performs(GroupSettled, self._settled)
        core.performs(BundlesLost, lambda lost: self._tell_watchers(lost.group_id))
        core.performs(RemovalDone, self._removal_done)

    def handlers(self) -> dict[type[Message], Handler]:
        return {
            CreatePlacementGroup: self._create, RemovePlacementGroup: self._remove, WaitPlacementGroup: self._wait,
            GetPlacementGroup: self._get, ListPlacementGroups: self._list, WatchGroup: self._watch,
        }  # fmt: skip

    def disconnected(self, session: Session) -> None:
        self._drop(lambda waiter: waiter[0] is session.connection)
        for watchers in self._watchers.values():
            watchers.pop(session.connection, None)

    def cancel(self, session: Session, message: CancelRequest) -> None:
        self._drop(lambda waiter: waiter == (session.connection, message.request))

    # --- requests

    def _create(self, session: Session, message: CreatePlacementGroup) -> None:
        core, spec = self._core, message.spec
        if not self._jobs.accepts(spec.job_id):
            text = f"Job {spec.job_id.hex()} has ended; it can create no more placement groups."
            core.outbox.fail(session.connection, message.rid, "RuntimeError", text)
            return
        try:
            instructions = core.groups.create(spec, core.clock())
        except GroupNameTaken:
            text = f"A placement group named {spec.name!r} exists in namespace {spec.namespace!r}. Remove it or use another name."
            core.outbox.fail(session.connection, message.rid, "ValueError", text)
            return
        core.perform(instructions)
        core.outbox.send(session.connection, Ack(message.rid))
        core.perform(core.groups.schedule())
        self._scheduling.refresh()

    def _remove(self, session: Session, message: RemovePlacementGroup) -> None:
        group_id = message.placement_group_id
        waiter = (session.connection, message.rid)
        self._removers.setdefault(group_id, {})[waiter] = None
        self._core.perform(self._core.groups.remove(group_id))
        if not self._core.groups.releasing(group_id):
            self._removal_done(RemovalDone(group_id))

    def _wait(self, session: Session, message: WaitPlacementGroup) -> None:
        record = self._core.groups.get(message.placement_group_id)
        if record is None or record.state == REMOVED:
            self._core.outbox.fail(session.connection, message.rid, "TaskPlacementGroupRemoved", _REMOVED_TEXT)
        elif record.state == CREATED:
            self._core.outbox.send(session.connection, Ack(message.rid))
        else:
            self._waiters.setdefault(message.placement_group_id, {})[session.connection, message.rid] = None

    def _get(self, session: Session, message: GetPlacementGroup) -> None:
        groups = self._core.groups
        record = groups.get(message.placement_group_id) if message.placement_group_id else groups.named(message.namespace, message.name)
        self._core.outbox.send(session.connection, PlacementGroupList(message.rid, [] if record is None else [record]))

    def _list(self, session: Session, message: ListPlacementGroups) -> None:
        self._core.outbox.send(session.connection, PlacementGroupList(message.rid, self._core.groups.records()))

    def _watch(self, session: Session, message: WatchGroup) -> None:
        self._watchers.setdefault(message.placement_group_id, {})[session.connection] = None
        self._tell_watchers(message.placement_group_id, session.connection)

    def _tell_watchers(self, group_id: bytes, only: Connection | None = None) -> None:
        record = self._core.groups.get(group_id)
        if record is None or record.state == REMOVED:
            news = GroupChanged(group_id, REMOVED)
            watchers = self._watchers.pop(group_id, {})
        else:
            news = GroupChanged(group_id, record.state, record.spec.bundles, record.nodes)
            watchers = self._watchers.get(group_id, {}) if only is None else {only: None}
        for connection in watchers:
            self._core.outbox.send(connection, news)

    # --- instructions

    def _prepare(self, prepare: Prepare) -> None:
        groups, group_id, node_id = self._core.groups, prepare.group_id, prepare.node_id

        def answered(reply: Ack | None, error: BaseException | None) -> None:
            if reply is not None or isinstance(error, RequestFailed):
                self._core.perform(groups.prepared(group_id, node_id, ok=error is None))
                self._scheduling.look_again()

        if not self._core.tell_node(node_id, PrepareBundles(0, group_id, prepare.bundles), answered):
            self._core.perform(groups.prepared(group_id, node_id, ok=False))

    def _commit(self, commit: Commit) -> None:
        groups, group_id, node_id = self._core.groups, commit.group_id, commit.node_id

        def answered(reply: Ack | None, error: BaseException | None) -> None:
            if reply is not None or isinstance(error, RequestFailed):
                self._core.perform(groups.committed(group_id, node_id, ok=error is None))

        if not self._core.tell_node(node_id, CommitBundles(0, group_id), answered):
            self._core.perform(groups.committed(group_id, node_id, ok=False))

    def _release(self, release: Release) -> None:
        groups, group_id, node_id = self._core.groups, release.group_id, release.node_id

        def answered(reply: Ack | None, error: BaseException | None) -> None:
            if reply is not None or isinstance(error, RequestFailed):
                self._core.perform(groups.released(group_id, node_id))
                if groups.is_removed(group_id):
                    self._scheduling.reschedule()
                self._scheduling.look_again()

        if not self._core.tell_node(node_id, ReleaseBundles(0, group_id, groups.is_removed(group_id)), answered):
            self._core.perform(groups.released(group_id, node_id))

    def _settled(self, settled: GroupSettled) -> None:
        outbox = self._core.outbox
        for connection, rid in self._waiters.pop(settled.group_id, ()):
            if settled.removed:
                outbox.fail(connection, rid, "TaskPlacementGroupRemoved", _REMOVED_TEXT)
            else:
                outbox.send(connection, Ack(rid))
        self._tell_watchers(settled.group_id)
        if settled.removed:
            self._core.perform(self._core.actors.group_removed(settled.group_id))
        self._scheduling.retry_group(settled.group_id)

    def _removal_done(self, done: RemovalDone) -> None:
        for connection, rid in self._removers.pop(done.group_id, ()):
            self._core.outbox.send(connection, Ack(rid))

    def _drop(self, is_gone: Callable[[Waiter], bool]) -> None:
        for table in (self._waiters, self._removers):
            for group_id, waiters in list(table.items()):
                for waiter in [waiter for waiter in waiters if is_gone(waiter)]:
                    del waiters[waiter]
                if not waiters:
                    del table[group_id]
