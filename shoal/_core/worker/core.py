"""The I/O thread's half of a driver or worker: connections, and which message goes where.

Owns: the connections to the node agent, the control store and other processes, and the shells: objects, tasks, leasing, cancellation,
recovery, actors, streams.
Runs: on the I/O thread only; user threads come in through ``inbox``.
Must not know: threads, blocking, user code. Under a virtual loop many cores run in one thread.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from shoal import exceptions
from shoal._base.ids import ObjectId, task_of
from shoal._base.references import ObjectRef
from shoal._base.settings import Settings
from shoal._core.control_link import ControlAddresses, ControlLink, dial
from shoal._core.object_store import StoreClient
from shoal._core.serialization import deserialize_error, serialize_system_error
from shoal._core.transport import ConnectFailed, Connection, Listener, RequestFailed, Transport
from shoal._core.wire import messages as m

from .actors import Actors, ActorToken
from .agents import Agents
from .cancellation import Cancellation
from .connector import Connector
from .entries import BorrowedEntry, Entry
from .express import Express
from .leasing import Leasing
from .objects import Objects
from .peers import Peer, Peers
from .recovery import Recovery
from .streams import Streams
from .tasks import Tasks

if TYPE_CHECKING:
    from shoal._base.runtime import Runtime


#: Questions of a driver or worker whether the control store is there, per time after which it counts as lost; none while nothing waits.
BEATS_PER_TIMEOUT = 4


class ExecutorDoor(Protocol):
    """What the core needs of the part that runs tasks; drivers have none."""

    def on_message(self, connection: Connection, message: m.Message) -> bool:
        """Handle a message of an owner; False if it is not for the executor."""

    def on_agent_message(self, message: m.Message) -> bool:
        """Handle a message of the node agent; False if it is not for the executor."""

    def on_batch_end(self) -> None: ...

    def on_caller_lost(self, connection: Connection) -> None: ...


class Core:
    """One process's part in the session."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        connector: Connector,
        settings: Settings,
        me: m.Address,
        job_id: bytes,
        runs_tasks: bool,
        on_agent_lost: Callable[[], None],
        on_token: Callable[[bytes], None],
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.me = me
        self.job_id = job_id
        #: A foreign reference may wait with its registration until the running task's reply.
        self.runs_tasks = runs_tasks
        #: Arguments may lie on another node than this one.
        self.has_other_nodes = False
        self.closing = False
        #: The serialized error of everything that is asked for once the head has ended; b"" while it is there.
        self.lost = b""
        self._why_lost: exceptions.RayError | None = None
        self.executor: ExecutorDoor | None = None
        self.runtime: Runtime | None = None
        self.agent: Connection
        self.control_store: ControlLink
        self.agent_address: m.Address
        self.store: StoreClient
        self._transport = transport
        self._on_agent_lost = on_agent_lost
        self._listener: Listener | None = None
        self._callers: dict[Connection, None] = {}
        #: Why this process leaves, once it has handed over its objects; who connects at the last moment hears it too.
        self._leaves_for: m.Cause | None = None
        #: Done when the last caller has closed its connection, if this process leaves.
        self._callers_gone: asyncio.Future[None] | None = None
        #: This driver shows what its workers print, on whatever node.
        self.wants_logs = False
        self.on_log_lines: Callable[[m.LogLines], None] | None = None
        #: The last one whose unread error was told.
        self._unread_task = b""
        #: Runs what user threads have posted, if anything is there; set by ``IoThread``.
        self.drain_inbox: Callable[[], None] = _nothing
        self.express = Express()
        self.peers = Peers(loop, connector, self._peer_message, self._peer_batch_end, self._peer_lost)
        self.agents = Agents(self)
        self.objects = Objects(self)
        self.tasks = Tasks(self)
        self.leasing = Leasing(self)
        self.cancellation = Cancellation(self)
        self.recovery = Recovery(self)
        self.actors = Actors(self)
        self.streams = Streams(self)
        objects, leasing, actors = self.objects, self.leasing, self.actors
        #: Messages of borrowers and owners, whoever opened the connection.
        self._shared: dict[type, Callable[[Any, Any], None]] = {
            m.GetObject: objects.on_get_object,
            m.AddBorrower: objects.on_add_borrower,
            m.RemoveBorrower: objects.on_remove_borrower,
            m.ReportLost: objects.on_report_lost,
            m.PinForever: objects.on_pin_forever,
        }
        self._from_executor: dict[type, Callable[[Any, Any], None]] = {
            m.TaskDone: self._task_done,
            m.GeneratorItem: self.streams.on_item,
            m.HandBack: self._handed_back,
            m.ProcessExiting: self._peer_leaves,
        }
        self._from_agent: dict[type, Callable[[Any, Any], None]] = {
            m.LeaseWanted: leasing.on_lease_wanted,
            m.LeaseInfeasible: leasing.on_lease_infeasible,
            m.WorkerDied: leasing.on_worker_died,
            m.LogLines: self._log_lines,
            m.NodesChanged: self._nodes_changed,
            m.TakeSocket: connector.on_take_socket,
            m.ObjectsMoved: objects.on_moved,
            m.ObjectsSpilled: objects.on_spilled,
            m.TokenChanged: lambda _agent, message: on_token(message.token),
            m.ControlStores: lambda _agent, message: self._control_addresses.learn(message.addresses),
            **self._shared,
        }
        self._from_control_store: dict[type, Callable[[Any, Any], None]] = {
            m.ActorUpdate: actors.on_actor_update,
            m.LeaseInfeasible: leasing.on_lease_infeasible,
        }

    # --- starting and ending -------------------------------------------------------------------------------

    def attach(self, agent: Connection, address: m.Address, store: StoreClient, listener: Listener) -> None:
        """Use this registered connection to the node agent, and this place where callers arrive."""
        self.agent, self.agent_address, self.store, self._listener = agent, address, store, listener
        agent.on_close = self._agent_closed

    def attach_agent_messages(self) -> None:
        """From now on the node agent's messages are handled."""
        self.agent.on_message = self._agent_message
        self.agent.on_batch_end = self.flush

    async def connect_control_store(self, address: str, *, lasting: bool) -> None:
        """Connect to one of the addresses; ``lasting``: the control store is a process of its own, and comes back when it died.

        A driver waits ``control_store_timeout_s`` for one that is not there just now; a worker does not wait: what it needs to run tasks
        that its node knows, the node has. Raises ConnectFailed.
        """
        settings = self.settings
        give_up_s = math.inf if self.runs_tasks else settings.control_store_timeout_s
        self._control_addresses = addresses = ControlAddresses(address)
        self.control_store = link = ControlLink(
            self.loop,
            lambda on_message, on_close: dial(addresses.all(), lambda one: self._transport.connect(one, on_message, on_close)),
            self.me.worker_id,
            on_refused=self._refused,
            on_end=self._session_lost,
            lasting=lasting,
            silence_s=settings.node_timeout_s,
            beat_s=settings.node_timeout_s / BEATS_PER_TIMEOUT,
            give_up_s=give_up_s,
        )
        link.on_message, link.on_batch_end = self._control_message, self.flush
        if lasting and self.runs_tasks:
            link.open_later()
            return
        try:
            async with asyncio.timeout(give_up_s if give_up_s < math.inf else None):
                await link.open(patient=lasting)
        except TimeoutError:
            raise ConnectFailed(
                f"The control store of the cluster ({address}) could not be reached for {give_up_s:g} s. See whether its process and its "
                "machine are up."
            ) from None

    async def close(self) -> None:
        """Send what is queued and close every connection. Idempotent."""
        self.closing = True
        self.flush()
        self.peers.close()
        for connection in list(self._callers):
            connection.close()
        if self._listener is not None:
            self._listener.close()
        for name in ("control_store", "agent"):
            if hasattr(self, name):
                getattr(self, name).close()

    # --- what the shells need of each other ----------------------------------------------------------------

    def flush(self) -> None:
        """Send what gathered during this turn of the loop; called after every batch of messages and of inbox items."""
        self.leasing.flush()
        self.actors.flush()
        self.objects.flush()
        if self.settings.debug:
            self.check()

    def owner_channel(self, owner: m.Address) -> Any:
        """Return what can ``send`` and ``request`` to the owner of an object."""
        if owner.worker_id == owner.node_id:
            return self.agents.get(owner.node_id)
        peer = self.peers.get(owner)
        return self.agents.get(owner.node_id) if peer.left else peer

    def make_ref(self, entry: Entry) -> ObjectRef[Any]:
        """Make a reference whose count was already given to it."""
        return ObjectRef(entry.object_id, entry.owner, counted=True, _runtime=self.runtime)

    def when_all(self, futures: Iterable[asyncio.Future[Any]], then: Callable[[], None]) -> None:
        """Call ``then`` when all are done, however they ended: at once if there are none."""
        waiting = 1  # this call itself

        def over(done: asyncio.Future[Any] | None = None) -> None:
            nonlocal waiting
            if done is not None and not done.cancelled():
                done.exception()  # a registration that failed shows at the reader, as the owner's death
            waiting -= 1
            if not waiting:
                then()

        for future in futures:
            waiting += 1
            if future.done():
                over(future)
            else:
                future.add_done_callback(over)
        over()

    def note(self, text: str) -> None:
        """Tell the user something that is not an error."""
        if self.executor is None and self.settings.log_to_driver:
            print(f"(shoal) {text}", file=sys.stderr)

    def unread_error(self, entry: Entry) -> None:
        """A task failed and nobody asked for its result: say so, as nobody else will."""
        if self.executor is not None or self.closing or self.settings.ignore_unhandled_errors:
            return
        task_id = task_of(ObjectId(entry.object_id))
        if task_id == self._unread_task:  # one task with many returns fails once
            return
        self._unread_task = task_id
        error = deserialize_error(entry.data)
        if isinstance(error, exceptions.TaskCancelledError):
            return
        print(
            f"(shoal) Unhandled error (its reference was dropped unread; suppress with RAY_IGNORE_UNHANDLED_ERRORS=1): {error}",
            file=sys.stderr,
        )

    # --- messages ------------------------------------------------------------------------------------------

    def accept(self, connection: Connection) -> None:
        """An owner or borrower has connected."""
        if self._leaves_for is not None:
            connection.send(m.ProcessExiting(self._leaves_for))
        self._callers[connection] = None
        connection.on_message = self._caller_message
        connection.on_close = self._caller_closed
        connection.on_batch_end = self._caller_batch_end

    def _caller_message(self, connection: Connection, message: m.Message) -> None:
        executor = self.executor
        if executor is not None and executor.on_message(connection, message):
            return
        handler = self._shared.get(type(message))
        if handler is not None:
            handler(connection, message)
        elif type(message) is m.CancelTask:
            self.cancellation.on_cancel_task(connection, message)
        elif type(message) is m.CancelRequest:
            return  # an answer that nobody waits for is dropped by the other side
        else:
            raise TypeError(f"unexpected message {type(message).__name__} from {connection.peer}")

    def _caller_batch_end(self) -> None:
        if self.executor is not None:
            self.executor.on_batch_end()
        self.flush()

    def _caller_closed(self, connection: Connection) -> None:
        self._callers.pop(connection, None)
        if not self._callers and self._callers_gone is not None and not self._callers_gone.done():
            self._callers_gone.set_result(None)
        if self.executor is not None:
            self.executor.on_caller_lost(connection)

    def _peer_message(self, peer: Peer, message: m.Message) -> None:
        is_agent = peer.address.worker_id == peer.address.node_id
        handler = (self._from_agent if is_agent else self._from_executor).get(type(message))
        if handler is not None:
            handler(peer, message)

    def _peer_leaves(self, peer: Peer, _message: m.ProcessExiting) -> None:
        """It has handed its objects to the node agent, and waits for the end of what we have sent."""
        self.objects.owner_left(peer.address)
        if peer.connection is not None:
            peer.connection.finish()

    async def see_callers_off(self, cause: m.Cause, timeout_s: float) -> None:
        """Let nobody in, and wait until all who are connected have said their last word; ``timeout_s`` at most."""
        if self._listener is not None:
            self._listener.close()
        self._leaves_for = cause
        for connection in self._callers:
            connection.send(m.ProcessExiting(cause))
        if self._callers:
            self._callers_gone = self.loop.create_future()
            await asyncio.wait([self._callers_gone], timeout=timeout_s)

    def _peer_batch_end(self) -> None:
        # A thread that waits for a call under way has left word of it without waking this thread: the result does.
        self.drain_inbox()
        self.flush()

    def _task_done(self, peer: Peer, message: m.TaskDone) -> None:
        if peer.calls is not None:
            self.actors.on_task_done(peer, message)
        else:
            self.leasing.on_task_done(peer, message)

    def _handed_back(self, peer: Peer, message: m.HandBack) -> None:
        if peer.calls is not None:
            self.actors.on_hand_back(peer, message)
        else:
            self.leasing.on_hand_back(peer, message)

    def _peer_lost(self, peer: Peer) -> None:
        self.drain_inbox()  # calls that user threads have sent over it
        if self.agents.lost(peer):
            self.leasing.agent_lost(peer.address.node_id)
        self.leasing.peer_lost(peer)
        self.actors.peer_lost(peer)
        self.objects.peer_lost(peer.address, peer.undelivered)
        self.flush()

    def _agent_message(self, connection: Connection, message: m.Message) -> None:
        handler = self._from_agent.get(type(message))
        if handler is not None:
            handler(connection, message)
        elif self.executor is not None:
            self.executor.on_agent_message(message)

    def _control_message(self, connection: Any, message: m.Message) -> None:
        handler = self._from_control_store.get(type(message))
        if handler is not None:
            handler(connection, message)

    def _nodes_changed(self, _channel: Any, message: m.NodesChanged) -> None:
        """Nodes have died: nobody else may tell, as the connections of a machine that vanished stand on. Or one says who its heir is."""
        self.agents.heirs.update((record.node_id, record.heir) for record in message.nodes if record.heir)
        dead = {record.node_id for record in message.nodes if not record.alive}
        self.peers.abort(dead)
        self.objects.nodes_left(dead & self.agents.heirs.keys())
        self.recovery.nodes_died(dead)
        self.flush()

    def _log_lines(self, _connection: Connection, message: m.LogLines) -> None:
        if self.on_log_lines is not None:
            self.on_log_lines(message)

    def _agent_closed(self, _connection: Connection) -> None:
        self._session_lost()

    def _refused(self, error: RequestFailed) -> None:
        """The control store does not know this driver's job any more."""
        self._why_lost = exceptions.NodeDiedError(f"{error.message} Call shoal.shutdown() and shoal.init() to start again.")
        self._session_lost()

    def _session_lost(self) -> None:
        """The node agent is gone, or the control store for good: neither half is of use alone."""
        if self.closing or self.lost:
            return
        error = self.lost = serialize_system_error(self.head_ended())
        self.tasks.fail_all(error)
        self.actors.fail_all(error)
        own = self.objects.own
        for entry in list(own.entries.values()):
            if entry.kind < 0:
                self.objects.complete(entry, m.FAILED, error)
        for name in ("control_store", "agent"):
            if hasattr(self, name):  # the agent may be gone before the control store is reached
                getattr(self, name).close()
        self._on_agent_lost()

    def head_ended(self) -> exceptions.RayError:
        """Return what users read when the session is over but this process is not. Any thread."""
        if self._why_lost is not None:
            return self._why_lost
        directory = os.path.dirname(self.agent_address.address.partition(":")[2])
        return exceptions.LocalRayletDiedError(
            "The head process of this session has ended, and with it all tasks, actors and stored objects. If it failed, the reason is in "
            f"{directory}/logs/head.err; if nothing is there it was killed, for example by the kernel when memory ran out (see dmesg). "
            "Call shoal.shutdown() and shoal.init() to start again."
        )

    # --- looking -------------------------------------------------------------------------------------------

    def entry_released(self, entry: Entry) -> None:
        if isinstance(entry, ActorToken):
            self.actors.token_released(entry)
        else:
            if isinstance(entry, BorrowedEntry):
                self.actors.handle_gone(entry.object_id)
            self.streams.item_released(entry)
            self.recovery.entry_released(entry)

    def check(self) -> None:
        """Assert the invariants of all parts."""
        self.objects.own.check()
        self.leasing.submission.check()
        for calls in self.actors.calls.values():
            calls.check()


def _nothing() -> None:
    """There is no inbox: nothing uses this core from other threads."""
