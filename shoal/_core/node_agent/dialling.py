"""Sockets between processes of different nodes: the agent opens them, and hands them over.

    process ── Dial(address) ──▶ here: a way to its node, preamble with its id ── SocketReady(ticket) ──▶ process
    port    ── preamble with the id of one of our processes ──▶ here ── TakeSocket(ticket) ──▶ that process

The ways (``ways.py``), when A wants to reach Q on B:

    dialled         A ── Q ──▶ B's port
    called back     A ── CallBack(ticket, Q) ──▶ control store ──▶ B;    B ── ticket ──▶ A's port
    met elsewhere   the same, with ExpectPair(ticket) to C before;       B ── ticket ──▶ C's port ◀── ticket ── A

A socket that B has opened with a ticket goes to Q at B as if it had come in at B's port, and Q's answer comes out at A as if A had dialled:
what passes afterwards is the same in all three, and none of this part's business.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shoal._core.node_agent.joining import Joining, open_to
from shoal._core.node_agent.peers import Peer
from shoal._core.node_agent.ways import Kind, Way, Ways
from shoal._core.transport import ConnectFailed, ConnectionLost, HandshakeTimeout, NoSuchProcess, RequestFailed
from shoal._core.transport.addresses import TcpAddress, parse_address
from shoal._core.transport.errors import NodeUnknown
from shoal._core.transport.greeting import HANDSHAKE_TIMEOUT_S
from shoal._core.transport.handover import Handover
from shoal._core.transport.port import Route, dial, hear_answer
from shoal._core.transport.preamble import TARGET_BYTES
from shoal._core.wire.messages import Ack, CallBack, Dial, NodeRecord, SocketReady, TakeSocket

log = logging.getLogger("shoal.node_agent")

#: Seconds that a machine has to answer before another way is tried: what was lost is sent again after one.
CONNECT_S = 2.0
#: Seconds that a node has to call back; more than it needs to find out that it cannot.
CALL_BACK_S = HANDSHAKE_TIMEOUT_S + 1.0


class Cluster(Protocol):
    """What is known here of the others (``ClusterView``)."""

    def get(self, node_id: bytes, /) -> NodeRecord | None: ...
    def nodes(self) -> Sequence[NodeRecord]: ...


class Dialling:
    """One node's.

    Args:
        own: this node's record.
        control: finds the way to the control store.
        process: finds the connection of a process of this node by its id.
        serve: takes sockets for this node itself, or its objects; False: they are for nobody here.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handover: Handover,
        own: NodeRecord,
        cluster: Cluster,
        control: Callable[[], Peer | None],
        process: Callable[[bytes], Peer | None],
        joining: Joining,
        serve: Route,
    ) -> None:
        self._loop = loop
        self._handover = handover
        self._own = own
        self._cluster = cluster
        self._control = control
        self._process = process
        self._joining = joining
        self._serve = serve
        self._ways = Ways(own)
        #: Nodes that were found at their endpoint.
        self._found: set[bytes] = set()
        #: Those who wait to be called back, by their tickets.
        self._awaited: dict[bytes, asyncio.Future[socket.socket]] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def handlers(self) -> dict[type, Callable[[Peer, Any], None]]:
        return {
            Dial: lambda connection, message: self._begin(self._dial(connection, message)),
            CallBack: lambda connection, message: self._begin(self._call_back(connection, message)),
            **self._joining.handlers(),
        }

    def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        self._handover.close()
        self._joining.close()

    def route(self, target: bytes, sock: socket.socket) -> bool:
        """Somebody has come to this node's port. False: who is meant is not here."""
        waiting = self._awaited.get(target)
        if waiting is not None and not waiting.done():
            open_to(sock)
            waiting.set_result(sock)
            return True
        return self._joining.take(target, sock) or self._deliver(target, sock)

    def _deliver(self, target: bytes, sock: socket.socket) -> bool:
        """Give a socket to a process of this node, or a part of it."""
        connection = self._process(target)
        if connection is None or connection.closed:
            return self._serve(target, sock)
        connection.send(TakeSocket(self._handover.offer(sock)))
        return True

    async def open(self, node_id: bytes, target: bytes) -> socket.socket:
        """Connect to this target on another node, whichever way leads there. Raises ConnectFailed, or what is below it."""
        problems: list[ConnectFailed] = []
        tried: set[object] = set()
        while True:
            record = self._cluster.get(node_id)
            if record is None or not record.endpoint:
                self._forget()
                raise NodeUnknown(f"Node {node_id.hex()} has died, or is not known here.")
            ways = self._ways.to(record, self._cluster.nodes(), self._loop.time())
            way = next((way for way in ways if way.key not in tried), None)
            if way is None:
                raise _none_leads_there(record, problems)
            tried.add(way.key)
            try:
                sock = await self._take(way, record, target)
            except _Blocked as error:
                log.info("Node %s cannot be %s: %s", record.name, way.kind.value, error)
                self._ways.failed(node_id, way, self._loop.time())
                problems.append(error)
            else:
                self._ways.worked(node_id, way)
                return sock

    async def _take(self, way: Way, node: NodeRecord, target: bytes) -> socket.socket:
        """Try one way. Raises _Blocked if others may lead there, and any other ConnectFailed if it is the end."""
        if way.kind is Kind.DIRECT:
            return await self._dial_node(node, target)
        if way.third is None:
            return await self._be_called(node, target)
        return await self._meet(node, target, way.third)

    async def _dial_node(self, node: NodeRecord, target: bytes) -> socket.socket:
        try:
            sock = await dial(self._loop, _place(node.endpoint), target, timeout_s=HANDSHAKE_TIMEOUT_S, connect_s=CONNECT_S)
        except HandshakeTimeout:
            raise  # it can be reached, and hangs
        except NoSuchProcess as error:
            if target == node.node_id or not await self._is_at_its_endpoint(node):
                raise _Blocked(f"Another node has its address {node.endpoint} here. {error}") from error
            raise
        except ConnectFailed as error:
            raise _Blocked(f"{error}") from error
        if target == node.node_id:
            self._found.add(node.node_id)
        return sock

    async def _is_at_its_endpoint(self, node: NodeRecord) -> bool:
        """Whether it is this node that listens there: private addresses are used by more than one."""
        if node.node_id not in self._found:
            try:
                (await dial(self._loop, _place(node.endpoint), node.node_id, timeout_s=HANDSHAKE_TIMEOUT_S)).close()
            except ConnectFailed:
                return False
            self._found.add(node.node_id)
        return True

    async def _be_called(self, node: NodeRecord, target: bytes) -> socket.socket:
        ticket = secrets.token_bytes(TARGET_BYTES)
        arrived = self._awaited[ticket] = self._loop.create_future()
        try:
            await self._ask(CallBack(0, node.node_id, target, ticket, self._own.node_id))
            async with asyncio.timeout(CALL_BACK_S):
                sock = await arrived
        except BaseException as error:
            if arrived.done() and not arrived.cancelled():
                arrived.result().close()
            if isinstance(error, TimeoutError):
                raise _Blocked(f"Node {node.name} says that it has called back, and nobody came.") from None
            raise
        finally:
            del self._awaited[ticket]
        return await hear_answer(self._loop, sock, f"node {node.name}, called back,", target, HANDSHAKE_TIMEOUT_S)

    async def _meet(self, node: NodeRecord, target: bytes, third: NodeRecord) -> socket.socket:
        ticket = secrets.token_bytes(TARGET_BYTES)
        await self._ask(CallBack(0, node.node_id, target, ticket, third.node_id))
        try:
            sock = await dial(self._loop, _place(third.endpoint), ticket, timeout_s=HANDSHAKE_TIMEOUT_S, connect_s=CONNECT_S)
        except ConnectFailed as error:
            raise _Blocked(f"Node {third.name} cannot be reached as the place to meet: {error}") from error
        where = f"node {node.name}, met at {third.name},"
        return await hear_answer(self._loop, sock, where, target, HANDSHAKE_TIMEOUT_S)

    async def _ask(self, message: CallBack) -> None:
        """Have the other node dial, by way of the control store. Raises as ``_take``."""
        control = self._control()
        if control is None:
            raise ConnectFailed("The control store is not there to ask the other node to call back.")
        try:
            async with asyncio.timeout(CALL_BACK_S):
                await control.request(message)
        except RequestFailed as error:
            if error.kind == "ConnectionError":
                raise _Blocked(error.message) from error
            raise (NoSuchProcess if error.kind == "LookupError" else ConnectFailed)(error.message) from error
        except (TimeoutError, ConnectionLost) as error:
            raise ConnectFailed(
                f"Node {message.node_id.hex()[:12]} was asked to call back, and has not answered within {CALL_BACK_S:g} s, nor has the "
                "control store."
            ) from error

    def _forget(self) -> None:
        living = {record.node_id for record in self._cluster.nodes()}
        self._ways.forget(living)
        self._found &= living

    def _begin(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _dial(self, connection: Peer, message: Dial) -> None:
        try:
            sock = await self.open(message.address.node_id, message.address.worker_id)
        except ConnectFailed as error:
            connection.fail(message.rid, "ConnectionError", f"{error}")
            return
        if connection.closed:
            sock.close()
        else:
            connection.send(SocketReady(message.rid, self._handover.offer(sock)))

    async def _call_back(self, connection: Peer, message: CallBack) -> None:
        """Another node, which cannot dial this one, wants to reach somebody here."""
        try:
            sock = await dial(
                self._loop, _place(message.endpoint), message.ticket, timeout_s=HANDSHAKE_TIMEOUT_S, connect_s=CONNECT_S
            )  # fmt: skip
        except ConnectFailed as error:
            connection.fail(message.rid, "ConnectionError", f"{error}")
            return
        if self._deliver(message.target, sock):
            connection.send(Ack(message.rid))
        else:
            sock.close()
            connection.fail(message.rid, "LookupError", f"Who was asked for on node {self._own.name} is not there, or has ended.")


class _Blocked(ConnectFailed):
    """This way does not lead there; another one may."""


def _none_leads_there(node: NodeRecord, problems: list[ConnectFailed]) -> ConnectFailed:
    return ConnectFailed(
        f"No way leads to node {node.name} ({node.node_id.hex()[:12]}), which lives. {' '.join(map(str, problems))} "
        "One of the two must be able to dial the other, or both a third node, as a rule the head's."
    )


def _place(endpoint: str) -> TcpAddress:
    where = parse_address(endpoint)
    assert isinstance(where, TcpAddress)
    return where
