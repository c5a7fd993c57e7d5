"""The node agent: the process-life and lease side of one node, driven by messages.

    worker, driver ──RegisterProcess, RequestLease, ReturnLease, WorkerBlocked...──▶ NodeAgent ──▶ leases.py   who may use how much
    control store  ──StartActor, PrepareBundles, JobFinished...─────────────────────▶    │     ──▶ pool.py     which process serves it
    launcher       ──worker_exited──────────────────────────────────────────────────▶    │     ──▶ adoption.py objects without owner
                                                                                         ▼
                                  LeaseGranted, LeaseWanted, WorkerDied, BecomeActor, NodeResources

One lease: RequestLease -> ``Leases.add`` -> ``schedule`` -> Grant -> ``WorkerPool.assign`` -> (StartWorker -> fork -> RegisterProcess)
-> UseWorker -> LeaseGranted. It ends by ReturnLease, or when the worker exits; an owner that is gone has its workers killed. Everything
runs on one loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from shoal._base.ids import TASK_BYTES, WORKER_BYTES
from shoal._base.settings import Settings
from shoal._core.node_agent import lease_records as lease_state
from shoal._core.node_agent import pool as pool_state
from shoal._core.node_agent.actor_service import ActorService
from shoal._core.node_agent.adopted_objects import AdoptedObjects
from shoal._core.node_agent.bequests import Bequests
from shoal._core.node_agent.bundle_service import BundleService
from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.job_cache import JobCache
from shoal._core.node_agent.lease_records import Lease
from shoal._core.node_agent.leases import Leases
from shoal._core.node_agent.neighbours import Neighbours
from shoal._core.node_agent.node_news import NodeNews
from shoal._core.node_agent.peers import Connect, Departure, Hooks, Launcher, LeasedWorker, Peer, Process
from shoal._core.node_agent.pool import WorkerDemand, WorkerPool
from shoal._core.node_agent.remote_processes import OwnerStore, RemoteProcesses
from shoal._core.node_agent.resource_reports import ResourceReports
from shoal._core.node_agent.waiting import LeaseRequest
from shoal._core.scheduling import strategies
from shoal._core.scheduling.resources import UNIT, Capacity
from shoal._core.wire import messages as wire
from shoal._core.wire.messages import Address, Cause, Message, NodeRecord

log = logging.getLogger("shoal.node_agent")

#: Seconds between two looks at what depends on time: idle workers, starvation, graces.
TICK_S = 0.25
#: Seconds that a worker which was asked to leave, or which hung up, has until it is killed.
LEAVE_S = 5.0


class NodeAgent:
    """One node's agent. All methods are called on the loop's thread.

    Args:
        node: this node's record; ``available`` is kept up to date in it.
        store: the object store of the node; gets messages 30-37.
        launcher: starts and kills workers, and reports ``worker_exited``.
        session_dir, arena_path, arena_bytes, control_address: told to every process that registers.
        hooks: what the launcher, logs and head want to know.
        connect: opens connections to other processes, for references inside adopted objects.
        prestart: fresh workers to keep ready; by default one per CPU.
        rests: keep none of them while nobody asks for workers.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: NodeRecord,
        store: OwnerStore,
        launcher: Launcher,
        settings: Settings,
        session_dir: str,
        arena_path: str,
        arena_bytes: int,
        control_address: str,
        *,
        hooks: Hooks | None = None,
        connect: Connect | None = None,
        prestart: int | None = None,
        rests: bool = False,
        new_worker_id: Callable[[], bytes] | None = None,
    ) -> None:
        self.loop = loop
        self.node = node
        self.settings = settings
        self.hooks = hooks or Hooks()
        self.address = Address(node.node_id, node.node_id, node.address)
        self._store = store
        self._launcher = launcher
        self._welcome = wire.Registered(
            0, node.node_id, session_dir, control_address, arena_path, arena_bytes, msgspec.msgpack.encode(settings)
        )
        self.view = ClusterView(node)
        self._news = news = NodeNews(self, self.view)
        self.leases = Leases(Capacity(node.total), node.node_id, news.nodes, settings.history_limit, news.promise, news.knows_all)
        cpus = max(1, node.total.get("CPU", 0) // UNIT)
        self.pool = WorkerPool(
            cpus if prestart is None else prestart, 2 * cpus, settings.idle_worker_s,
            new_worker_id or (lambda: os.urandom(WORKER_BYTES)), rests,
        )  # fmt: skip
        self.adopted = AdoptedObjects(loop, self.address, store, settings.adoption_grace_s, connect, lambda: self._processes.keys())
        #: What agents own when their nodes leave; None: this node is alone.
        self.bequests: Bequests | None = None
        self.reports = ResourceReports(loop, node, self.leases)
        #: None: there are no other nodes.
        self.remote: RemoteProcesses | None = None
        self.actors = ActorService(self)
        self.bundles = BundleService(self)
        self._job_cache = JobCache(lambda: self.control)
        #: Registered workers and drivers by worker id, and by the number that stands for them as owners.
        self._processes: dict[bytes, Process] = {}
        self._owners: dict[int, Process] = {}
        #: Drivers that show what their workers print, those of other nodes that have something running here, too.
        self._readers: dict[int, Process] = {}
        #: All and only leases that have a worker: lease -> worker id.
        self._lease_workers: dict[int, bytes] = {}
        self._departures: dict[bytes, Departure] = {}
        self._last_number = 0
        self._turn = False
        self._registered = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._handlers: dict[type, Callable[[Peer, Any], None]] = {
            wire.RegisterProcess: self._on_register,
            wire.RequestLease: self._on_request_lease,
            wire.CancelRequest: self._on_cancel_request,
            wire.Backlog: self._on_backlog,
            wire.ReturnLease: self._on_return_lease,
            wire.WorkerBlocked: self._on_blocked,
            wire.WorkerUnblocked: self._on_unblocked,
            wire.ProcessExiting: self._on_exiting,
            wire.KillProcess: self._on_kill,
            wire.NameProcess: self._on_name,
            wire.FlushLogs: self._on_flush_logs,
            wire.JobFinished: self._on_job_finished,
            wire.WorkComes: lambda _connection, _message: self._perform_pool(self.pool.wake()),
            wire.AdoptObjects: self.adopted.adopt,
            wire.PromoteCopy: self._on_promote,
            wire.GetObject: self.adopted.handle,
            wire.AddBorrower: self.adopted.handle,
            wire.RemoveBorrower: self.adopted.handle,
            wire.ReportLost: self.adopted.handle,
            wire.PinForever: self.adopted.handle,
            wire.Ping: lambda connection, message: connection.send(wire.Ack(message.rid)),
            wire.ReportResources: self.reports.on_report,
            wire.RotateToken: self._on_rotate_token,
            wire.ControlStores: self._on_control_stores,
            **self.actors.handlers(),
            **self.bundles.handlers(),
            **self._job_cache.handlers(),
            **self._news.handlers(),
        }

    # --- life -------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the fresh workers and the timer."""
        self._perform_pool(self.pool.refill())
        self._timer = self.loop.call_later(TICK_S, self._tick)

    async def close(self) -> None:
        """Kill every worker and start none any more."""
        self._closed = True
        self._news.close()
        self.pool.close()
        if self._timer is not None:
            self._timer.cancel()
        self.reports.close()
        for worker_id in list(self.pool.workers):
            self._launcher.kill(worker_id)
        if self.bequests is not None:
            self.bequests.close()
        if self.remote is not None:
            self.remote.close()
        await self.adopted.close()

    def accept(self, connection: Peer) -> None:
        """Serve a worker, a driver, or a borrower of adopted objects."""
        connection.on_message = self._on_message
        connection.on_close = self._on_close

    def open_to_others(self, endpoint: str, neighbours: Neighbours, handlers: dict[type, Callable[[Peer, Any], None]]) -> None:
        """Other nodes reach this one at ``endpoint``, it reaches them by ``neighbours``, and its processes by ``handlers``.

        Before any accept.
        """
        self.node.endpoint = self._welcome.endpoint = endpoint
        adopted = self.adopted
        self.remote = remote = RemoteProcesses(
            self.loop, self.address, self._store, adopted, neighbours, self.view.get, self._processes.keys, self.settings.adoption_grace_s
        )
        adopted.free_elsewhere, adopted.promote_elsewhere = neighbours.free_primaries, neighbours.promote
        adopted.watch, adopted.watched, adopted.awaits = remote.watch, remote.watched, remote.awaits
        self._handlers |= handlers | remote.handlers()

    def leave_to_others(self, neighbours: Neighbours) -> Bequests:
        """Let objects go from agent to agent when nodes leave. Before any accept."""
        self.bequests = bequests = Bequests(self.loop, self.address, self._store, self.adopted, neighbours, self.view.get)
        self._handlers |= bequests.handlers()
        return bequests

    def connection_of(self, worker_id: bytes) -> Peer | None:
        """Return the connection of a process of this node."""
        process = self._processes.get(worker_id)
        return None if process is None or process.is_foreign else process.connection

    def processes(self) -> list[Process]:
        """Return the workers and drivers of this node that are connected."""
        return [process for process in self._owners.values() if not process.is_foreign]

    def retire_idle(self) -> int:
        """Have workers that have nothing to do end in good order, and hand over what they own; return how many are about to end."""
        self._perform_pool(self.pool.retire_idle())
        return self.pool.leaving()

    def attach_control(self, connection: Peer) -> asyncio.Future[Any]:
        """Register this node at the control store and obey it. The future is done when the node is registered."""
        self.obey(connection)
        return connection.request(self.registration())

    def obey(self, control: Peer) -> None:
        """Do what the control store says, over a connection or link that registers this node itself (``registration``)."""
        control.on_message = self._on_message
        control.on_close = self._on_control_closed
        self.reports.control = control

    def registration(self) -> wire.RegisterNode:
        """Make the message that registers this node; again whenever the connection to the control store has been lost."""
        known, self._registered = self._registered, True
        self.reports.registered()
        jobs = {worker.job_id for worker in self.pool.workers.values() if worker.job_id}
        groups: dict[bytes, list[int]] = {}
        for bundle in self.leases.bundles:
            groups.setdefault(bundle.group, []).append(bundle.index)
        return wire.RegisterNode(0, self.node, known, self.actors.incarnations(), groups, sorted(jobs))

    @property
    def control(self) -> Peer | None:
        return self.reports.control

    def forward_log(self, job_id: bytes, lines: wire.LogLines) -> bool:
        """Send a worker's output to the driver of its job, if it wants to see it. False: the driver is slow, come again later."""
        for process in self._readers.values():
            if process.log_to_driver and process.job_id == job_id:
                if process.connection.saturated():
                    return False
                process.connection.send(lines)
        return True

    def leased_workers(self) -> list[LeasedWorker]:
        """Return the busy workers, for the memory monitor."""
        found = []
        for lease_id, worker_id in self._lease_workers.items():
            lease, worker = self.leases.leases[lease_id], self.pool.workers[worker_id]
            request = lease.request
            found.append(
                LeasedWorker(
                    worker_id, worker.pid, worker.job_id, lease.owner, request.retriable, lease.granted_at, request.name, lease.is_actor
                )
            )
        return found

    def kill_worker(self, worker_id: bytes, cause: Cause) -> None:
        """SIGKILL a worker and its children; ``cause`` is what its owner and callers hear, completed by the exit status."""
        if worker_id in self.pool.workers:
            departure = self._departures.setdefault(worker_id, Departure())
            departure.cause = departure.cause or cause
            self.pool.ending(worker_id)
            self._launcher.kill(worker_id)

    def worker_exited(self, worker_id: bytes, pid: int, exit_code: int | None, signal: int | None) -> None:
        """The launcher's word that a worker's process has ended, or that it could not be started (``pid`` 0)."""
        worker, replacements = self.pool.exited(worker_id)
        if worker is None:
            return
        departure = self._departures.pop(worker_id, Departure())
        process = self._processes.get(worker_id)
        known = departure.cause or (process.cause if process is not None else None)
        cause = self._explain(known, worker_id, pid or worker.pid, exit_code, signal)
        lease = self._end_lease(worker.lease_id)
        told = [(lease.owner, lease.lease_id)] if lease is not None and not lease.is_actor else []
        for owner, lease_id in told + departure.mourners:
            if owner in self._owners:
                self._owners[owner].connection.send(wire.WorkerDied(worker_id, lease_id, cause))
        self.actors.worker_died(worker_id, cause)
        if self.control is not None:
            self.control.send(wire.WorkerDied(worker_id, 0, cause))
        if process is not None:
            self._forget(process)
        self._owner_ended(worker_id)
        self._perform_pool(replacements)
        self.reschedule()

    # --- messages -----------------------------------------------------------------------------------------------------------------

    def _on_message(self, connection: Peer, message: Message) -> None:
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(connection, message)
        elif self._store.handle(connection, message):
            if type(message) is wire.SealObject:
                self.adopted.sealed(message.object_id)
                if self.remote is not None:
                    self.remote.sealed(message.object_id)
        else:
            log.warning("The node agent got a %s, which it does not serve.", type(message).__name__)
            if (rid := getattr(message, "rid", None)) is not None:
                connection.fail(rid, "RuntimeError", f"The node agent does not serve {type(message).__name__}.")
        if self.settings.debug:
            self.check()

    def _owner_ended(self, worker_id: bytes) -> None:
        """A process of this node has ended; what it has left in stores may have holders."""
        self.adopted.owner_killed(worker_id)
        if self.remote is not None:
            self.remote.ended(worker_id)

    def _on_close(self, connection: Peer) -> None:
        self._store.disconnected(connection)
        process = connection.tag
        if not isinstance(process, Process) or self._closed:
            return
        self._forget(process)
        if process.is_driver:
            if any(process.job_id):
                self._end_job(process.job_id, Cause("job_finished", "Its driver has ended."))
            self._owner_ended(process.address.worker_id)
            if self.control is not None:
                cause = Cause("job_finished", "Its driver has ended.", pid=process.pid, node_id=self.node.node_id)
                self.control.send(wire.WorkerDied(process.address.worker_id, 0, cause))
            if self.hooks.driver_lost is not None:
                self.hooks.driver_lost(process.job_id)
        elif process.address.worker_id in self.pool.workers:
            self.pool.ending(process.address.worker_id)
            if process.cause is not None and process.address.worker_id not in self._departures:
                self._departures[process.address.worker_id] = Departure(process.cause)
            self._kill_later(process.address.worker_id, Cause("worker_exit", "It hung up on the node agent and did not end."))
        self.reschedule()

    def _on_control_closed(self, connection: Peer) -> None:
        if self.reports.control is connection:
            self.reports.control = None

    def _on_register(self, connection: Peer, message: wire.RegisterProcess) -> None:
        process = connection.tag
        if isinstance(process, Process):  # again: a driver has learned the number of its job
            process.job_id, process.log_to_driver = message.job_id or process.job_id, message.log_to_driver
            if process.log_to_driver:
                self._readers[process.number] = process
            connection.send(msgspec.structs.replace(self._welcome, rid=message.rid))
            return
        self._last_number += 1
        worker = self.pool.workers.get(message.worker_id)
        is_foreign = message.node_id not in (b"", self.node.node_id)
        if worker is None and not message.job_id and not is_foreign:
            connection.fail(message.rid, "RuntimeError", "This worker was not started by this node agent, or was given up.")
            return
        address = Address(message.worker_id, message.node_id or self.node.node_id, message.address)
        process = Process(
            self._last_number, connection, address, message.pid, message.job_id, worker is None and not is_foreign, is_foreign,
            message.log_to_driver,
        )  # fmt: skip
        connection.tag = process
        self._processes[message.worker_id] = self._owners[process.number] = process
        if process.log_to_driver:
            self._readers[process.number] = process
        connection.send(msgspec.structs.replace(self._welcome, rid=message.rid))
        if worker is not None:
            self._perform_pool(self.pool.registered(message.worker_id, message.pid, self.loop.time()))

    def _on_request_lease(self, connection: Peer, message: wire.RequestLease) -> None:
        process = connection.tag
        if not isinstance(process, Process):
            connection.fail(message.rid, "RuntimeError", "A process registers (RegisterProcess) before it asks for leases.")
            return
        if process.number not in self._owners:
            return  # it has ended: its exit status came before its last words
        self.learn_job(process.address.worker_id, message.shape.job_id)
        self.queue(
            LeaseRequest(
                process.number,
                message.rid,
                strategies.freeze(message.shape),
                self.loop.time(),
                message.retriable,
                message.name,
                hops=message.hops,
                backlog=message.backlog,
            )
        )

    def _on_backlog(self, connection: Peer, message: wire.Backlog) -> None:
        process = connection.tag
        if isinstance(process, Process):
            self.leases.backlog(process.number, message.request, message.tasks)
            self.reports.changed()

    def _on_cancel_request(self, connection: Peer, message: wire.CancelRequest) -> None:
        process = connection.tag
        if isinstance(process, Process) and self.leases.cancel(process.number, message.request):
            connection.fail(message.request, "Cancelled", "The request was withdrawn.")
            self.reschedule()
        else:
            self._store.handle(connection, message)

    def _on_return_lease(self, connection: Peer, message: wire.ReturnLease) -> None:
        process = connection.tag
        lease = self.leases.leases.get(message.lease_id)
        if lease is None or not isinstance(process, Process) or lease.owner != process.number:
            return
        worker_id = self._lease_workers.get(lease.lease_id, b"")
        if message.worker_failed and worker_id:
            # Its resources come free when it has ended: a process that hangs still uses them.
            self._departures.setdefault(worker_id, Departure())
            self.kill_worker(worker_id, Cause("worker_exit", "Its owner lost the connection to it."))
            return
        self._take_back(lease)

    def _take_back(self, lease: Lease) -> None:
        """The lease's holder has nothing on it: its worker serves others."""
        worker_id = self._lease_workers.get(lease.lease_id)
        self._end_lease(lease.lease_id)
        if worker_id is not None:
            self._perform_pool(self.pool.released(worker_id, self.loop.time()))
        else:
            self.pool.withdraw(lease.lease_id)
        self.reschedule()

    def _on_blocked(self, connection: Peer, message: wire.WorkerBlocked) -> None:
        worker = self.pool.workers.get(message.worker_id)
        if worker is not None and worker.lease_id:
            self.leases.worker_blocked(worker.lease_id)
            self.reschedule()

    def _on_unblocked(self, connection: Peer, message: wire.WorkerUnblocked) -> None:
        worker = self.pool.workers.get(message.worker_id)
        if worker is not None and worker.lease_id:
            self.leases.worker_unblocked(worker.lease_id)
            self.reports.changed()

    def _on_exiting(self, connection: Peer, message: wire.ProcessExiting) -> None:
        process = connection.tag
        if isinstance(process, Process):
            process.finished = process.unfinished and not message.unfinished
            process.cause, process.unfinished = message.cause, message.unfinished
            self.pool.ending(process.address.worker_id)

    def _on_promote(self, connection: Peer, message: wire.PromoteCopy) -> None:
        store, object_id, owner, refs = self._store, message.object_id, message.owner, message.refs
        if store.promote(object_id, owner, refs) or (
            message.spilled and store.adopt_spilled(object_id, message.nbytes, owner, refs, message.spilled)
        ):
            connection.send(wire.Ack(message.rid))
        else:
            connection.fail(message.rid, "ObjectLostError", "No complete copy is here.")

    def _on_kill(self, connection: Peer, message: wire.KillProcess) -> None:
        self.kill_worker(message.worker_id, message.cause)

    def _on_name(self, connection: Peer, message: wire.NameProcess) -> None:
        process = connection.tag
        if isinstance(process, Process):
            process.name = message.name
            if self.hooks.named is not None:
                self.hooks.named(process.address.worker_id, message.name)

    def _on_flush_logs(self, connection: Peer, message: wire.FlushLogs) -> None:
        if self.hooks.flush_logs is not None:
            self.hooks.flush_logs(message.job_id)
        connection.send(wire.Ack(message.rid))

    def _on_job_finished(self, connection: Peer, message: wire.JobFinished) -> None:
        self._end_job(message.job_id, Cause("job_finished", "Its job has ended."))

    def _on_rotate_token(self, connection: Peer, message: wire.RotateToken) -> None:
        if self.hooks.token_changed is not None:
            self.hooks.token_changed(message.token)
        for process in self._processes.values():
            if not process.is_foreign:
                process.connection.send(wire.TokenChanged(message.token))
        connection.send(wire.Ack(message.rid))

    def _on_control_stores(self, connection: Peer, message: wire.ControlStores) -> None:
        if isinstance(connection.tag, Process):
            return  # only the control store's word counts
        if self.hooks.control_stores is not None:
            self._welcome.control_store = self.hooks.control_stores(message.addresses)
        for process in self._processes.values():
            if not process.is_foreign:
                process.connection.send(message)

    def tell_processes(self, message: Message) -> None:
        """Pass a word on to the workers and drivers of this node; those who come later learn it with their welcome."""
        self._welcome.heirs = self.view.heirs
        for process in self._owners.values():
            if not process.is_foreign:
                process.connection.send(message)

    def nodes_died(self, dead: Collection[bytes]) -> None:
        """Drop what was for processes of these nodes; heirs may have been named as well."""
        if self.bequests is not None:
            self.bequests.nodes_died(dead, self.view.heirs)
        self.adopted.nodes_died(dead)
        if self.remote is not None:
            self.remote.nodes_died(dead)
        # Their connections may stand for long: nobody tells the kernel of a machine that it has vanished.
        for process in [one for one in self._owners.values() if one.address.node_id in dead]:
            process.connection.close()
            self._forget(process)

    def learn_job(self, worker_id: bytes, job_id: bytes) -> None:
        """A driver registers before its job has a number (all bytes zero); its first request tells it."""
        process = self._processes.get(worker_id)
        if process is not None and process.is_driver and not any(process.job_id):
            process.job_id = job_id

    # --- leases and workers -----------------------------------------------------------------------------------------------------------

    def queue(self, request: LeaseRequest) -> None:
        """Queue a request for a lease, of a process or for an actor."""
        self.perform_leases(self.leases.add(request))
        self.reschedule()

    def reschedule(self) -> None:
        """Grant what fits, once per turn of the loop however much has changed in it."""
        self.reports.changed()
        if not self._turn and not self._closed:
            self._turn = True
            self.loop.call_soon(self._schedule)

    def _schedule(self) -> None:
        self._turn = False
        if not self._closed:
            self.perform_leases(self.leases.schedule(self.loop.time()))
            self.bundles.settle()
            if self.settings.debug:
                self.check()

    def perform_leases(self, instructions: list[lease_state.Instruction]) -> None:
        """Carry out what the state of leases has decided."""
        for instruction in instructions:
            match instruction:
                case lease_state.Grant(lease):
                    self._find_worker(lease)
                case lease_state.Want(lease):
                    # One whose worker is still starting is unknown to its owner: it is told with the grant.
                    if lease.owner in self._owners and lease.lease_id in self._lease_workers:
                        self._owners[lease.owner].connection.send(wire.LeaseWanted(lease.lease_id))
                case lease_state.TellInfeasible(request, message):
                    if request.owner in self._owners:
                        self._owners[request.owner].connection.send(wire.LeaseInfeasible(request.rid, message))
                    else:
                        log.warning("%s", message)
                case lease_state.Spill(request, node_id):
                    if request.owner in self._owners:
                        self._owners[request.owner].connection.send(wire.LeaseSpilled(request.rid, node_id))
                case lease_state.FindGroup(group):
                    self.bundles.watch(group)
                case lease_state.Doubt(request):
                    self._news.doubt(request)
                case lease_state.Refuse(request, kind, message):
                    if request.actor_id:
                        self.actors.refused(request, kind, message)
                    elif request.owner in self._owners:
                        self._owners[request.owner].connection.fail(request.rid, kind, message)

    def _find_worker(self, lease: Lease) -> None:
        self.reports.changed()
        devices = tuple((name, tuple(ids)) for name, ids in sorted(lease.allocation.ids().items()))
        demand = WorkerDemand(lease.lease_id, lease.shape.job_id, lease.shape.runtime_env, devices, lease.is_actor)
        self._perform_pool(self.pool.assign(demand))

    def _perform_pool(self, instructions: list[pool_state.Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case pool_state.StartWorker(worker_id):
                    self._launcher.start(worker_id)
                case pool_state.UseWorker(lease_id, worker):
                    self._hand_out(self.leases.leases[lease_id], worker)
                case pool_state.RetireWorker(worker):
                    self.dismiss(worker.worker_id, Cause("idle", "It had nothing to do."))
                case pool_state.StartFailed(lease_id):
                    self._start_failed(lease_id)

    def _hand_out(self, lease: Lease, worker: pool_state.Worker) -> None:
        self._lease_workers[lease.lease_id] = worker.worker_id
        process = self._processes[worker.worker_id]
        if self.hooks.bound is not None and process.job_id != worker.job_id:
            self.hooks.bound(worker.worker_id, worker.job_id)
        process.job_id = worker.job_id
        if lease.is_actor:
            self.actors.worker_found(lease, process)
            return
        connection = self._owners[lease.owner].connection
        connection.send(
            wire.LeaseGranted(
                lease.request.rid,
                lease.lease_id,
                process.address,
                worker.pid,
                lease.allocation.ids(),
                lease.shape.placement_group,
                lease.bundle_index,
            )
        )
        if lease.wanted:
            connection.send(wire.LeaseWanted(lease.lease_id))

    def _start_failed(self, lease_id: int) -> None:
        lease = self._end_lease(lease_id)
        if lease is None:
            return
        message = "No worker process could be started. The session's log directory has the output of the attempts."
        if lease.is_actor:
            self.actors.start_failed(lease, Cause("worker_exit", message, node_id=self.node.node_id))
        elif lease.owner in self._owners:
            self._owners[lease.owner].connection.fail(lease.request.rid, "WorkerCrashedError", message)

    def _end_lease(self, lease_id: int) -> Lease | None:
        """Free the lease's resources; what happens to its worker is the caller's affair."""
        if not lease_id:
            return None
        self._lease_workers.pop(lease_id, None)
        return self.leases.end(lease_id)

    def withdraw_lease(self, lease_id: int, cause: Cause) -> bool:
        """End a lease that its owner cannot return: with its worker, whose end the owner hears of; at once when it has none yet (False)."""
        worker_id = self._lease_workers.get(lease_id)
        if worker_id is not None:
            self.kill_worker(worker_id, cause)
            return True
        self.pool.withdraw(lease_id)
        self._end_lease(lease_id)
        return False

    def stop_worker(self, worker_id: bytes, cause: Cause) -> None:
        """Ask a worker to finish what it has and leave."""
        process = self._processes.get(worker_id)
        self.pool.ending(worker_id)
        if process is not None:
            process.connection.send(wire.StopProcess(True, cause))

    def dismiss(self, worker_id: bytes, cause: Cause) -> None:
        """Ask a worker without work to leave; it has LEAVE_S for that."""
        self._departures.setdefault(worker_id, Departure(cause))
        self.stop_worker(worker_id, cause)
        self._kill_later(worker_id, cause)

    def _kill_later(self, worker_id: bytes, cause: Cause) -> None:
        self.loop.call_later(LEAVE_S, self._kill_stuck, worker_id, cause)

    def _kill_stuck(self, worker_id: bytes, cause: Cause) -> None:
        """Kill a worker that should have left. One that says it waits for its own tasks is looked at again."""
        process = self._processes.get(worker_id)
        if process is not None and process.unfinished:
            self._kill_later(worker_id, cause)
        else:
            self.kill_worker(worker_id, cause)  # nothing happens if it has gone

    def _forget(self, process: Process) -> None:
        """A process's connection or life has ended: it owns no leases and borrows nothing. Idempotent."""
        if self._owners.pop(process.number, None) is None:
            return
        self._readers.pop(process.number, None)
        if self._processes.get(process.address.worker_id) is process:
            del self._processes[process.address.worker_id]
        leases = self.leases.owner_lost(process.number)
        # Those without a worker first: a worker that comes free must not be given to another lease of the one who left.
        for lease in sorted(leases, key=lambda lease: lease.lease_id in self._lease_workers):
            if process.finished:  # a lease that was granted while it left
                self._take_back(lease)
            else:
                self.withdraw_lease(lease.lease_id, Cause("owner_died", "The process that used this worker has ended."))
        if not process.is_foreign:
            self.adopted.borrower_ended(process.address.worker_id)

    def _end_job(self, job_id: bytes, cause: Cause) -> None:
        """Kill the job's workers, but for detached actors and what works for them."""
        self.actors.cancel_job(job_id)
        self._job_cache.forget(job_id)
        spared = self._spared(job_id)
        for worker in self.pool.job_finished(job_id):
            if worker.worker_id not in spared:
                self.kill_worker(worker.worker_id, cause)
        self.reschedule()

    def _spared(self, job_id: bytes) -> set[bytes]:
        """Workers of the job that live on: detached actors, the workers they lease, the actors they own, and so on."""
        spared = self.actors.detached_workers(job_id)
        added = True
        while added:
            numbers = {process.number for worker_id, process in self._processes.items() if worker_id in spared}
            more = {
                worker_id
                for lease_id, worker_id in self._lease_workers.items()
                if self.leases.leases[lease_id].owner in numbers or self.actors.owner_of(worker_id) in spared
            }
            added = not more <= spared
            spared |= more
        return spared

    def _explain(self, known: Cause | None, worker_id: bytes, pid: int, exit_code: int | None, signal: int | None) -> Cause:
        """Complete what is known about a death by the facts."""
        cause = msgspec.structs.replace(known) if known is not None else Cause("worker_exit")
        cause.pid, cause.exit_code, cause.signal, cause.node_id = pid, exit_code, signal, self.node.node_id
        if not cause.log_tail:
            cause.log_tail = self._launcher.tail(worker_id)
        cause.started = cause.started or _take_progress(self._welcome.session_dir, worker_id)
        return cause

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK_S, self._tick)
        self._perform_pool(self.pool.tick(self.loop.time()))
        self.adopted.tick()
        if self.remote is not None:
            self.remote.tick()
        if self.leases.waiting:
            self.perform_leases(self.leases.tick(self.loop.time()))
            self.reschedule()

    def check(self) -> None:
        """Assert the invariants of all parts and between them."""
        self.leases.check()
        self.pool.check()
        self.actors.check()
        self.adopted.state.check()
        self._job_cache.check()
        assert self._lease_workers.keys() <= self.leases.leases.keys()


def _take_progress(session_dir: str, worker_id: bytes) -> bytes:
    """Return the id of the task that the worker started last, from the file that it keeps for this, and remove the file."""
    path = os.path.join(session_dir, "run", worker_id.hex())
    try:
        with open(path, "rb") as file:
            task_id = file.read(TASK_BYTES)
        os.unlink(path)
    except OSError:
        return b""
    return task_id if any(task_id) else b""
