"""Messages about jobs, functions, key-values and channels.

RegisterJob (node agents ready workers) ... JobFinished, or the driver's connection lost, or its death reported by the node agent
    -> node agents end the workers -> actors and groups end -> functions go, unless a detached actor of the job lives on
"""

from __future__ import annotations

from collections.abc import Callable

from shoal._base.version import why_apart
from shoal._core.transport.connection import Connection
from shoal._core.wire.messages import (
    Ack,
    CancelRequest,
    FunctionBlob,
    GetFunction,
    GetJob,
    JobFinished,
    JobInfo,
    JobRegistered,
    KvDelete,
    KvGet,
    KvKeyList,
    KvKeys,
    KvPut,
    KvValue,
    Message,
    PutFunction,
    RegisterJob,
    Watch,
    WorkComes,
)

from .core import Core, Handler, Session
from .instructions import ActorEnded
from .publication import CHANNELS
from .rows import encode


class JobService:
    def __init__(self, core: Core) -> None:
        self._core = core
        #: Called when a job is over; set by the actor service.
        self.on_finished: Callable[[bytes], None] = lambda job_id: None
        #: Function id -> who waits for it.
        self._wanted: dict[bytes, dict[tuple[Connection, int], None]] = {}
        #: The same, by who waits.
        self._waiting: dict[Connection, dict[int, bytes]] = {}

    def handlers(self) -> dict[type[Message], Handler]:
        return {
            RegisterJob: self._register_job, GetJob: self._get_job, JobFinished: self._job_finished,
            PutFunction: self._put_function, GetFunction: self._get_function,
            KvPut: self._kv_put, KvGet: self._kv_get, KvDelete: self._kv_delete, KvKeys: self._kv_keys,
            Watch: self._watch,
        }  # fmt: skip

    def finish(self, job_id: bytes) -> None:
        """The driver is gone. Idempotent."""
        core = self._core
        if not core.jobs.running(job_id):
            return
        keep = core.actors.has_detached(job_id)
        core.perform(core.jobs.finish(job_id, core.clock(), keep=keep))
        for connection in core.agents.values():
            core.outbox.send(connection, JobFinished(job_id))
        core.perform(core.actors.job_finished(job_id))
        core.perform(core.groups.job_finished(job_id, self._actor_lives))
        if not keep:
            core.perform(core.functions.forget_job(job_id))
        self._publish(job_id)
        self.on_finished(job_id)

    def actor_ended(self, ended: ActorEnded) -> None:
        """The last detached actor of a finished job takes the job's functions along."""
        core = self._core
        job_id = ended.job_id
        if ended.detached and not core.jobs.running(job_id) and not core.actors.has_detached(job_id):
            core.perform(core.functions.forget_job(job_id))
            core.perform(core.jobs.let_go(job_id))

    def accepts(self, job_id: bytes) -> bool:
        """Whether something of the job still runs, so that new things may begin."""
        return self._core.jobs.running(job_id) or self._core.actors.has_detached(job_id)

    def disconnected(self, session: Session) -> None:
        for rid in list(self._waiting.get(session.connection, ())):
            self.cancel(session, CancelRequest(rid))
        for job_id in sorted(session.jobs):
            row = self._core.jobs.get(job_id)
            # A lost connection is not the end of the driver: the agent of its node tells of that, if there is one.
            if row is not None and self._core.nodes.get(row.driver.node_id) is None:
                self.finish(job_id)

    def cancel(self, session: Session, message: CancelRequest) -> None:
        connection = session.connection
        function_id = self._waiting.get(connection, {}).pop(message.request, None)
        if function_id is None:
            return
        if not self._waiting[connection]:
            del self._waiting[connection]
        self._wanted[function_id].pop((connection, message.request), None)
        if not self._wanted[function_id]:
            del self._wanted[function_id]

    def _register_job(self, session: Session, message: RegisterJob) -> None:
        apart = why_apart(message.release)
        if apart:
            self._core.outbox.fail(session.connection, message.rid, "ConnectionError", f"This driver cannot join the cluster. {apart}")
            return
        row, changes = self._core.jobs.register(message, self._core.clock())
        self._core.perform(changes)
        if not row.running:
            text = f"Job {row.job_id.hex()} is over: this driver, or its node, was declared dead. Start the driver again."
            self._core.outbox.fail(session.connection, message.rid, "RaySystemError", text)
            return
        session.jobs.add(row.job_id)
        self._core.outbox.send(session.connection, JobRegistered(message.rid, row.job_id))
        if changes:
            for agent in self._core.agents.values():
                self._core.outbox.send(agent, WorkComes())
            self._publish(row.job_id)

    def _get_job(self, session: Session, message: GetJob) -> None:
        row = self._core.jobs.get(message.job_id)
        if row is None:
            text = f"Job {message.job_id.hex()} is not known; it has ended long ago, or was started on another cluster."
            self._core.outbox.fail(session.connection, message.rid, "ValueError", text)
        else:
            self._core.outbox.send(session.connection, JobInfo(message.rid, row.job_id, row.config))

    def _job_finished(self, session: Session, message: JobFinished) -> None:
        session.jobs.discard(message.job_id)
        self.finish(message.job_id)

    def _publish(self, job_id: bytes) -> None:
        row = self._core.jobs.get(job_id)
        if row is not None:
            self._core.publish("jobs", job_id, encode(row))

    def _actor_lives(self, actor_id: bytes) -> bool:
        actor = self._core.actors.get(actor_id)
        return actor is not None and actor.state != "DEAD"

    # --- functions

    def _put_function(self, session: Session, message: PutFunction) -> None:
        if not self.accepts(message.job_id):
            return  # from a worker that has not noticed the end of its job
        self._core.perform(self._core.functions.put(message.function_id, message.job_id, message.blob))
        for connection, rid in self._wanted.pop(message.function_id, ()):
            self._core.outbox.send(connection, FunctionBlob(rid, message.blob))
            del self._waiting[connection][rid]
            if not self._waiting[connection]:
                del self._waiting[connection]

    def _get_function(self, session: Session, message: GetFunction) -> None:
        blob = self._core.functions.get(message.function_id)
        if blob is not None:
            self._core.outbox.send(session.connection, FunctionBlob(message.rid, blob))
            return
        self._wanted.setdefault(message.function_id, {})[session.connection, message.rid] = None
        self._waiting.setdefault(session.connection, {})[message.rid] = message.function_id

    # --- key-values and channels

    def _kv_put(self, session: Session, message: KvPut) -> None:
        added, changes = self._core.key_values.put(message.namespace, message.key, message.value, message.overwrite)
        self._core.perform(changes)
        self._core.answer(session, message, KvValue(message.rid, b"1" if added else b""))

    def _kv_get(self, session: Session, message: KvGet) -> None:
        self._core.outbox.send(session.connection, KvValue(message.rid, self._core.key_values.get(message.namespace, message.key)))

    def _kv_delete(self, session: Session, message: KvDelete) -> None:
        deleted, changes = self._core.key_values.delete(message.namespace, message.key)
        self._core.perform(changes)
        self._core.answer(session, message, KvValue(message.rid, b"1" if deleted else b""))

    def _kv_keys(self, session: Session, message: KvKeys) -> None:
        self._core.outbox.send(session.connection, KvKeyList(message.rid, self._core.key_values.keys(message.namespace, message.prefix)))

    def _watch(self, session: Session, message: Watch) -> None:
        """Acked, then all of the backlog after the given number, then every change."""
        outbox, connection = self._core.outbox, session.connection
        if message.channel not in CHANNELS:
            outbox.fail(connection, message.rid, "ValueError", f"There is no channel {message.channel!r}; there are {', '.join(CHANNELS)}.")
            return
        session.channels.add(message.channel)
        outbox.send(connection, Ack(message.rid))
        for published in self._core.publication.after(message.channel, message.after):
            outbox.send(connection, published)
