"""Answers that are remembered, so that a request which is sent again after a lost connection takes effect once.

    request (client, number, oldest) ── recall ──┬─ known: the same answer again
                                                 ├─ stale: the client has the answer, this is an old copy ─▶ nothing
                                                 └─ new: carried out, and ``remember``ed with its change, in one commit

Only for requests that are not the same twice by nature (docs/design/cluster.md has the table). A client says which answers it has, so one
client keeps as many rows as it has requests under way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from shoal._core.wire.messages import Ack, KvValue, Once

from .instructions import Instruction
from .rows import ANSWERS, encode
from .storage.interface import Change

#: What a marked request is answered by.
Answer = Ack | KvValue

_decode = msgspec.msgpack.Decoder(Answer).decode
_NUMBER_BYTES = 8


class _Client(msgspec.Struct):
    #: Requests before this one are answered, and the client knows it.
    oldest: int = 0
    answers: dict[int, bytes] = msgspec.field(default_factory=dict)


class AnswerTable:
    """``limit``: clients that are remembered; beyond it the one that was silent for longest goes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clients: OrderedDict[bytes, _Client] = OrderedDict()

    def is_stale(self, once: Once) -> bool:
        """Whether this is a copy of a request whose answer has arrived."""
        client = self._clients.get(once.client)
        return client is not None and once.number < client.oldest

    def recall(self, once: Once) -> Answer | None:
        """Return the answer that was given before."""
        client = self._clients.get(once.client)
        answer = None if client is None else client.answers.get(once.number)
        return None if answer is None else _decode(answer)

    def remember(self, once: Once, answer: Answer) -> list[Instruction]:
        """Keep the answer, and forget those that have arrived."""
        client = self._clients.setdefault(once.client, _Client())
        self._clients.move_to_end(once.client)
        client.answers[once.number] = encoded = encode(answer)
        changes: list[Instruction] = [Change(ANSWERS, _key(once.client, once.number), encoded)]
        client.oldest = max(client.oldest, once.oldest)
        for number in [number for number in client.answers if number < client.oldest]:
            del client.answers[number]
            changes.append(Change(ANSWERS, _key(once.client, number), None))
        while len(self._clients) > self._limit:
            changes += self.forget(next(iter(self._clients)))
        return changes

    def forget(self, client_id: bytes) -> list[Instruction]:
        """The client has ended: it asks nothing again."""
        client = self._clients.pop(client_id, None)
        return [] if client is None else [Change(ANSWERS, _key(client_id, number), None) for number in client.answers]

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for key, answer in rows:
            client = self._clients.setdefault(key[:-_NUMBER_BYTES], _Client())
            client.answers[int.from_bytes(key[-_NUMBER_BYTES:], "big")] = answer

    def __len__(self) -> int:
        return sum(len(client.answers) for client in self._clients.values())

    def check(self) -> None:
        assert len(self._clients) <= self._limit
        for client in self._clients.values():
            assert all(number >= client.oldest for number in client.answers)


def _key(client: bytes, number: int) -> bytes:
    return client + number.to_bytes(_NUMBER_BYTES, "big")
