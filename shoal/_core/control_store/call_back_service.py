"""Nodes that cannot dial each other: the control store, which all of them have dialled, tells one to dial.

A ── CallBack(B, meet) ──▶ here ─(meet is a third: ExpectPair ─▶ it, Ack)─ CallBack(endpoint) ─▶ B
A ◀── Ack, Failed ──────── here ◀───────────────────────────────────────── Ack, Failed ───────── B

Nothing is kept: who asks and hears nothing for a while tries another way, with another ticket.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import Ack, CallBack, ExpectPair, Message

from .core import Core, Handler, Session


class CallBackService:
    def __init__(self, core: Core) -> None:
        self._core = core

    def handlers(self) -> dict[type[Message], Handler]:
        return {CallBack: self._call_back}

    def _call_back(self, session: Session, message: CallBack) -> None:
        core = self._core
        meet = core.nodes.get(message.meet)
        if message.node_id not in core.agents:
            self._refuse(
                session, message, "NodeDiedError", f"Node {message.node_id.hex()[:12]} has died, or is not connected for the moment."
            )
        elif meet is None or message.meet not in core.agents:
            self._refuse(session, message, "ConnectionError", f"Node {message.meet.hex()[:12]}, the place to meet, is not connected.")
        elif message.meet == session.node_id:
            self._pass_on(session, message, meet.record.endpoint)
        else:
            endpoint = meet.record.endpoint

            def expected(_reply: Any, error: BaseException | None) -> None:
                if error is None:
                    self._pass_on(session, message, endpoint)
                else:
                    self._refuse(session, message, "ConnectionError", f"{error}")

            core.outbox.request(core.agents[message.meet], ExpectPair(0, message.ticket), expected)

    def _pass_on(self, session: Session, message: CallBack, endpoint: str) -> None:
        def answered(_reply: Any, error: BaseException | None) -> None:
            if error is None:
                self._core.outbox.send(session.connection, Ack(message.rid))
            elif isinstance(error, RequestFailed):
                self._refuse(session, message, error.kind, error.message)
            else:
                self._refuse(session, message, "NodeDiedError", f"Node {message.node_id.hex()[:12]} has died, or its connection was lost.")

        agent = self._core.agents.get(message.node_id)
        if agent is None:
            answered(None, ConnectionError())
        else:
            self._core.outbox.request(agent, msgspec.structs.replace(message, rid=0, endpoint=endpoint), answered)

    def _refuse(self, session: Session, message: CallBack, kind: str, text: str) -> None:
        self._core.outbox.fail(session.connection, message.rid, kind, text)
