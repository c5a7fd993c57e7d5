"""Agents that reach each other through real ports on loopback, and a real control store over memory, whichever of them can be dialled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from shoal._base.settings import Settings
from shoal._core.control_store.node_service import Probe
from shoal._core.control_store.server import ControlStore
from shoal._core.control_store.storage import MemoryStorage
from shoal._core.node_agent import joining
from shoal._core.node_agent.cluster_view import ClusterView
from shoal._core.node_agent.dialling import Dialling
from shoal._core.node_agent.joining import Joining
from shoal._core.transport import ConnectFailed, Connection, HandshakeError, NoSuchProcess, RequestFailed, SocketTransport, Tokens, Trust
from shoal._core.transport.addresses import TcpAddress, parse_address
from shoal._core.transport.handover import Handover
from shoal._core.transport.memory import MemoryNetwork, MemoryTransport
from shoal._core.transport.port import dial
from shoal._core.transport.presence import has_ended, is_there, tell
from shoal._core.transport.switchboard import Switchboard
from shoal._core.wire.messages import Ack, CallBack, Message, NodeRecord, NodesChanged, Ping, RegisterNode

TOKENS = Tokens(b"t" * 32)
PATIENCE_S = 20.0
CLOSED = 1


def target_at(name: str) -> bytes:
    return f"process of {name}".encode().ljust(28, b".")


def node_id(name: str) -> bytes:
    return name.encode().ljust(28, b"-")


def answering(connection: Connection) -> None:
    connection.on_message = lambda asker, message: asker.send(Ack(message.rid))


class Agent:
    """What of a node has to do with sockets. ``shut``: nobody can dial it."""

    def __init__(self, cluster: Cluster, name: str, *, shut: bool, head: bool) -> None:
        loop = asyncio.get_running_loop()
        self.cluster, self.name, self.shut = cluster, name, shut
        total = {"node:__internal_head__": 10_000} if head else {}
        self.record = NodeRecord(node_id(name), "", name, "", total, {}, {}, name=name)
        self.view = ClusterView(self.record)
        self.transport = SocketTransport(loop, Trust(TOKENS))
        self.switchboard = Switchboard()
        self.welcome, self.hang_up = self.transport.welcomer(name, target_at(name), self.accept)
        self.accepted: list[Connection] = []
        self.control: Connection
        self.dialling = Dialling(
            loop, Handover(loop, f"{cluster.directory}/{name}"), self.record, self.view, lambda: self.control, lambda _: None,
            Joining(loop, self.switchboard), self.serve,
        )  # fmt: skip

    async def start(self) -> None:
        self.listener = await self.transport.listen(
            "tcp:127.0.0.1:0", answering, itself=self.record.node_id, route=self.dialling.route
        )  # fmt: skip
        self.port = self.listener.address
        # One that nobody can dial announces a port that is closed.
        self.record.endpoint = f"tcp:127.0.0.1:{CLOSED}" if self.shut else self.port
        link = MemoryTransport(self.cluster.network, self.name)
        self.control = await link.connect("control", self.on_message)
        await self.control.request(RegisterNode(0, self.record))

    def on_message(self, connection: Connection, message: Message) -> None:
        if isinstance(message, NodesChanged):
            self.view.update(message.nodes)
        elif handler := self.dialling.handlers().get(type(message)):
            handler(connection, message)

    def serve(self, target: bytes, sock: socket.socket) -> bool:
        if target != target_at(self.name):
            return False
        self.welcome(sock)
        return True

    def accept(self, connection: Connection) -> None:
        answering(connection)
        self.accepted.append(connection)

    async def reach(self, other: str, target: bytes = b"") -> Connection:
        """Connect to the process of another node."""
        target = target or target_at(other)
        sock = await self.dialling.open(node_id(other), target)
        return await self.transport.greet(sock, other, lambda c, m: None, target=target)

    def close(self) -> None:
        self.listener.close()
        self.hang_up()
        self.dialling.close()


class Cluster:
    def __init__(self, directory: str) -> None:
        loop = asyncio.get_running_loop()
        self.directory = directory
        self.network = MemoryNetwork(loop)
        transport = MemoryTransport(self.network, "head")
        probe = Probe(
            lambda node: is_there(loop, node.endpoint, node.node_id),
            lambda node: has_ended(loop, node.endpoint, node.node_id),
            lambda node, message: tell(transport.connect(node.endpoint, lambda _connection, _message: None), message),
        )
        self.store = ControlStore(loop, MemoryStorage(), Settings(debug=True), probe=probe)
        self.agents: dict[str, Agent] = {}

    async def start(self, **shut: bool) -> None:
        """Start nodes by name, the first is the head's."""
        listener = await MemoryTransport(self.network, "head").listen("control", self.store.accept)
        for name, is_shut in shut.items():
            self.agents[name] = Agent(self, name, shut=is_shut, head=not self.agents)
            await self.agents[name].start()
        await self.until(lambda: all(self.known_right(agent) for agent in self.agents.values()))
        del listener

    def known_right(self, agent: Agent) -> bool:
        """Whether it knows of all nodes which of them can be dialled."""
        records = {record.name: record for record in agent.view.nodes()}
        return records.keys() == self.agents.keys() and all(records[name].reachable != other.shut for name, other in self.agents.items())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.fixture
def run(tmp_path) -> Callable[[Callable[[Cluster], Awaitable[None]]], None]:
    def run(test: Callable[[Cluster], Awaitable[None]]) -> None:
        async def main() -> None:
            cluster = Cluster(str(tmp_path))
            try:
                async with asyncio.timeout(3 * PATIENCE_S):
                    await test(cluster)
            finally:
                for agent in cluster.agents.values():
                    for connection in agent.accepted:
                        connection.abort()
                    agent.close()
                cluster.store.close()
                await asyncio.sleep(0.05)

        before = set(os.listdir("/proc/self/fd"))
        asyncio.run(main())
        assert set(os.listdir("/proc/self/fd")) == before

    return run


async def ping(connection: Connection) -> None:
    assert type(await connection.request(Ping(0))) is Ack


@pytest.mark.parametrize(
    ("one", "other", "pairs"),
    [("head", "open", 0), ("two", "head", 0), ("head", "one", 0), ("one", "two", 1)],
    ids=["dialled", "dialled from inside", "called back", "met"],
)
def test_every_node_reaches_every_other(run, one: str, other: str, pairs: int) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, open=False, one=True, two=True)
        connection = await cluster.agents[one].reach(other)
        await ping(connection)
        head = cluster.agents["head"].switchboard
        await cluster.until(lambda: head.pairs == pairs)
        assert len(cluster.agents[other].accepted) == 1
        connection.close()
        await cluster.until(lambda: head.pairs == 0 and cluster.agents[other].accepted[0].closed)

    run(test)


@pytest.mark.parametrize(("one", "other"), [("head", "open"), ("head", "one"), ("one", "two")])
def test_that_a_process_is_not_there_is_said_whatever_the_way(run, one: str, other: str) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, open=False, one=True, two=True)
        with pytest.raises(NoSuchProcess, match="is not there, or has ended"):
            await cluster.agents[one].reach(other, b"?" * 28)
        await cluster.until(lambda: cluster.agents["head"].switchboard.pairs == 0)

    run(test)


def test_a_node_that_is_not_connected_is_not_searched_for_on_all_ways(run) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, open=False, one=True)
        cluster.agents["one"].control.abort()
        await cluster.until(lambda: cluster.store.statistics().nodes.connected == 2)
        with pytest.raises(ConnectFailed, match="has died, or is not connected"):
            await cluster.agents["head"].reach("one")

    run(test)


def test_when_the_place_where_two_met_ends_they_meet_elsewhere(run) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, open=False, one=True, two=True)
        head, one = cluster.agents["head"], cluster.agents["one"]
        first = await one.reach("two")
        await ping(first)
        head.close()
        await cluster.until(lambda: first.closed and cluster.agents["two"].accepted[0].closed)
        second = await one.reach("two")
        await ping(second)
        await cluster.until(lambda: cluster.agents["open"].switchboard.pairs == 1)
        second.close()

    run(test)


def mistaken(agent: Agent, other: str, endpoint: str) -> None:
    """Have an agent find something else at the address of another node."""
    record = agent.view.get(node_id(other))
    assert record is not None
    agent.view.update([msgspec.structs.replace(record, endpoint=endpoint)])


def test_two_that_can_be_dialled_but_not_by_each_other(run) -> None:
    """For a reason of their own: here the one finds a closed port at the other's address."""

    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, open=False)
        head = cluster.agents["head"]
        mistaken(head, "open", f"tcp:127.0.0.1:{CLOSED}")
        connection = await head.reach("open")
        await ping(connection)
        connection.close()
        [(kind, _)] = head.dialling._ways._resting[node_id("open")]
        assert kind.value == "dialled"

    run(test)


@pytest.mark.parametrize("target", ["process", "agent"])
def test_another_node_at_the_same_private_address_is_not_taken_for_the_one_that_was_meant(run, target: str) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, open=False, other=False)
        head = cluster.agents["head"]
        mistaken(head, "open", cluster.agents["other"].port)
        if target == "process":
            await ping(await head.reach("open"))
        else:  # the test's agents answer for their nodes at their ports alone
            with pytest.raises(NoSuchProcess):
                await head.reach("open", node_id("open"))
        assert not cluster.agents["other"].accepted

    run(test)


def test_without_a_place_to_meet_the_error_says_so(run) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start(head=True, one=True)
        with pytest.raises(ConnectFailed, match=r"No way leads to node one .*which lives\. .*or both a third node"):
            await cluster.agents["head"].reach("one")

    run(test)


def test_a_place_that_is_full_is_passed_over(run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, one=True, two=True)
        monkeypatch.setattr(joining, "MOST_PAIRS", 0)
        with pytest.raises(ConnectFailed, match="joins 0 pairs of sockets already"):
            await cluster.agents["one"].reach("two")
        monkeypatch.setattr(joining, "MOST_PAIRS", 1)
        connection = await cluster.agents["one"].reach("two")
        with pytest.raises(ConnectFailed, match="joins 1 pairs of sockets already"):
            await cluster.agents["two"].reach("one")
        connection.close()

    run(test)


def test_who_comes_with_a_ticket_of_others_gets_nothing(run) -> None:
    """It was read on the wire: the thief is the first to come with it, in the place of the node that was asked."""

    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, one=True)
        head, one = cluster.agents["head"], cluster.agents["one"]
        loop = asyncio.get_running_loop()
        thief = SocketTransport(loop, Trust(Tokens(b"?" * 32)))
        stolen: list[bytes] = []
        robbed: list[Connection] = []

        def steal(connection: Connection, message: Message) -> None:
            stolen.append(message.ticket)  # type: ignore[attr-defined]

        one.control.on_message = steal
        reaching = loop.create_task(head.reach("one"))
        await cluster.until(lambda: bool(stolen))
        where = parse_address(head.port)
        assert isinstance(where, TcpAddress)
        sock = await dial(loop, where, stolen[0], timeout_s=PATIENCE_S)
        thief.welcomer("thief", target_at("one"), robbed.append)[0](sock)
        one.control.send(Ack(_last_request(cluster, one)))
        with pytest.raises(HandshakeError):
            await reaching
        assert not robbed
        with pytest.raises(NoSuchProcess):  # it was good for once
            await dial(loop, where, stolen[0], timeout_s=PATIENCE_S)

    def _last_request(cluster: Cluster, agent: Agent) -> int:
        session = cluster.store._core.agents[agent.record.node_id]
        return max(session._pending)

    run(test)


def test_a_pair_of_which_one_never_comes_is_given_up(run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False)
        monkeypatch.setattr(joining, "PAIR_S", 0.2)
        head = cluster.agents["head"]
        asked: list[Message] = []
        asker = MemoryTransport(cluster.network, "asker")
        await asker.listen("asked", lambda connection: setattr(connection, "on_message", lambda c, m: head.on_message(c, m)))
        connection = await asker.connect("asked", lambda c, m: asked.append(m))
        assert type(await connection.request(joining.ExpectPair(0, b"?" * 28))) is Ack
        where = parse_address(head.port)
        assert isinstance(where, TcpAddress)
        loop = asyncio.get_running_loop()
        sock = await dial(loop, where, b"?" * 28, timeout_s=PATIENCE_S)
        with contextlib.closing(sock):
            assert await loop.sock_recv(sock, 1) == b""
        with pytest.raises(NoSuchProcess):
            await dial(loop, where, b"?" * 28, timeout_s=PATIENCE_S)

    run(test)


def test_a_node_that_was_asked_twice_calls_back_once(run) -> None:
    """The answer was lost with the connection to the control store, and the question is asked again."""

    async def test(cluster: Cluster) -> None:
        await cluster.start(head=False, one=True)
        head, one = cluster.agents["head"], cluster.agents["one"]
        asked: list[CallBack] = []

        def note(connection: Connection, message: Message) -> None:
            if isinstance(message, CallBack):
                asked.append(message)
            one.on_message(connection, message)

        one.control.on_message = note
        connection = await head.reach("one")
        await ping(connection)
        with pytest.raises(RequestFailed, match="is not there, or has ended"):
            await head.control.request(msgspec.structs.replace(asked[0], rid=0, endpoint=""))
        await ping(connection)
        assert len(asked) == 2
        assert len(one.accepted) == 1
        connection.close()

    run(test)
