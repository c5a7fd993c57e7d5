"""What the services share: the tables, the connections, and the carrying out of instructions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from shoal._base.settings import Settings
from shoal._core.transport.connection import Connection
from shoal._core.wire.messages import Message

from .actors import ActorTable
from .answers import Answer, AnswerTable
from .functions import FunctionTable
from .instructions import Instruction
from .jobs import JobTable
from .key_values import KeyValueTable
from .nodes import NodeTable
from .outbox import OnReply, Outbox
from .placement import Placement
from .placement_groups import PlacementGroupTable
from .publication import Publication
from .storage.interface import Change, Storage

#: Processes whose answers are remembered, per entry of the history.
CLIENTS_PER_HISTORY = 16

Handler = Callable[["Session", Any], None]


class Session(msgspec.Struct, eq=False):
    """One connection and what it stands for; lives in ``connection.tag``."""

    connection: Connection
    #: Set by RegisterNode: the peer is a node agent.
    node_id: bytes = b""
    #: Jobs whose driver it is; they end with the connection.
    jobs: set[bytes] = msgspec.field(default_factory=set)
    #: Actors it is told about.
    actors: set[bytes] = msgspec.field(default_factory=set)
    channels: set[str] = msgspec.field(default_factory=set)


class Core:
    def __init__(self, loop: asyncio.AbstractEventLoop, storage: Storage, settings: Settings, clock: Callable[[], float]) -> None:
        limit = settings.history_limit
        self.loop = loop
        self.storage = storage
        self.clock = clock
        self.jobs = JobTable(limit)
        self.nodes = NodeTable(limit, settings.node_timeout_s, settings.node_return_s)
        self.actors = ActorTable(limit)
        self.functions = FunctionTable()
        self.key_values = KeyValueTable()
        self.groups = PlacementGroupTable(self.nodes, limit)
        self.placement = Placement(self.nodes, self.groups.get)
        self.publication = Publication()
        self.answers = AnswerTable(CLIENTS_PER_HISTORY * limit)
        self.outbox = Outbox(loop, storage, self.check if settings.debug else None)
        self.sessions: set[Session] = set()
        #: Node id -> its agent's connection.
        self.agents: dict[bytes, Connection] = {}
        self._performers: dict[type, Callable[[Any], None]] = {Change: self.outbox.write}

    def performs(self, kind: type, performer: Callable[[Any], None]) -> None:
        """Say who carries out an instruction."""
        self._performers[kind] = performer

    def perform(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            self._performers[type(instruction)](instruction)

    def tell_node(self, node_id: bytes, message: Message, on_reply: OnReply | None = None) -> bool:
        """Send to a node's agent; False when the node is gone.

        A node that is known but not connected is not told: what is wanted of it is asked when it is back (``node_back`` of the tables).
        """
        connection = self.agents.get(node_id)
        if connection is None:
            return self.nodes.get(node_id) is not None
        if on_reply is None:
            self.outbox.send(connection, message)
        else:
            self.outbox.request(connection, message, on_reply)
        return True

    def answer(self, session: Session, message: Any, answer: Answer) -> None:
        """Answer a request that may come again (``once``): the answer is remembered with what it changed."""
        if message.once is not None:
            self.perform(self.answers.remember(message.once, answer))
        self.outbox.send(session.connection, answer)

    def was_answered(self, session: Session, message: Any) -> bool:
        """Whether a marked request has come before; if so, it gets the same answer, or none if it has it."""
        once = message.once
        if once is None:
            return False
        answer = self.answers.recall(once)
        if answer is not None:
            answer.rid = message.rid
            self.outbox.send(session.connection, answer)
        return answer is not None or self.answers.is_stale(once)

    def publish(self, channel: str, key: bytes, payload: bytes) -> None:
        message = self.publication.publish(channel, key, payload)
        for session in self.sessions:
            if channel in session.channels:
                self.outbox.send(session.connection, message)

    def check(self) -> None:
        """Assert the invariants of all tables; after every event under ``settings.debug``."""
        for table in (
            self.jobs, self.nodes, self.actors, self.functions, self.key_values, self.groups, self.placement, self.publication,
            self.answers,
        ):  # fmt: skip
            table.check()
