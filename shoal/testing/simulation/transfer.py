"""How bytes move between simulated nodes: chunk by chunk, in virtual time, with sources that end and networks that break half-way.

What is fetched in which order, who serves it and who relays it decide the real parts (``object_store/pulling.py``, ``serving.py``). A
simulation cannot have their threads and sockets, so ``SimulatedLink`` stands for ``links.Link`` and for the threads of ``Serving``.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shoal._core.object_store import Arena
from shoal._core.object_store.client import Place
from shoal._core.object_store.links import FileRange, Targets
from shoal._core.object_store.pulls import Answer, Found, Piece
from shoal._core.object_store.serving import Serving
from shoal._core.object_store.transfer import STALL_S
from shoal._core.transport.memory import MemoryNetwork
from shoal.testing.simulation.process_loop import ProcessLoop

#: Bytes that move together. Large values of the simulation have about a thousand: so a source can end between two chunks.
CHUNK_BYTES = 300
#: Virtual seconds between two looks at a network that is cut.
_LOOK_S = 0.05


class Source(Protocol):
    """A node that has objects."""

    name: str
    dead: bool
    loop: ProcessLoop
    arena: Arena
    serving: Serving | None


class DataWay:
    """What stands where a socket of the DATA side stands: from a host to a node."""

    def __init__(self, network: MemoryNetwork, host: str, source: Source) -> None:
        self.source = source
        self._network = network
        self._host = host

    async def step(self) -> None:
        """Let one chunk's time pass; longer while the network is cut or the source stands still. Raises EOFError, TimeoutError."""
        name, loop = self.source.name, asyncio.get_running_loop()
        await asyncio.sleep(self._network.draw_delay_s(name, self._host))
        until = loop.time() + STALL_S
        while self._network.is_partitioned(name, self._host) or self._network.is_partitioned(self._host, name) or self.source.loop.paused:
            if self.source.dead:
                break
            if loop.time() >= until:
                raise TimeoutError("Nothing has come for too long.")
            await asyncio.sleep(_LOOK_S)
        if self.source.dead:
            raise EOFError("The other node has ended.")


class SimulatedLink:
    """Stands for ``links.Link``, one batch at a time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        as_relay: bool,
        on_answers: Callable[[list[Answer]], None],
        on_failure: Callable[[list[Answer], str], None],
    ) -> None:
        self._loop = loop
        self._as_relay = as_relay
        self._on_answers = on_answers
        self._on_failure = on_failure
        self._batches: deque[tuple[Sequence[Piece], Targets]] = deque()
        self._way: DataWay | None = None
        self._node_id = b""
        self._running: asyncio.Task[None] | None = None

    def start(self, way: DataWay, _trust: Any, _source: bytes, own: bytes) -> None:
        self._way, self._node_id = way, own
        self._go_on()

    def ask(self, pieces: Sequence[Piece], targets: Targets) -> None:
        self._batches.append((pieces, targets))
        self._go_on()

    def end(self) -> None:
        """Hang up. There is no thread to join."""
        if self._running is not None:
            self._running.cancel()
        self._batches.clear()

    def _go_on(self) -> None:
        if self._way is not None and self._running is None:
            self._running = self._loop.create_task(self._run(self._way))

    async def _run(self, way: DataWay) -> None:
        while self._batches:
            answers: list[Answer] = []
            pieces, targets = self._batches.popleft()
            try:
                await self._fetch(way, pieces, targets, answers)
            except (EOFError, TimeoutError) as error:
                self._on_failure(answers, str(error))
                return
            self._on_answers(answers)
        self._running = None

    async def _fetch(self, way: DataWay, pieces: Sequence[Piece], targets: Targets, answers: list[Answer]) -> None:
        """Do what a thread at each end does for a batch; ``answers`` grows."""
        source = way.source
        serving = source.serving
        assert serving is not None
        await way.step()
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        source.loop.call_soon(serving._look_up, self._node_id, pieces, self._as_relay, lambda batch: _settle(found, batch))
        while not found.done():  # a source that dies says nothing
            await asyncio.wait([found], timeout=_LOOK_S)
            if source.dead:
                raise EOFError("The other node has ended.")
        batch = found.result()
        try:
            for piece, target, answer, place in zip(pieces, targets, batch.answers, batch.places, strict=True):
                if answer.found is Found.HERE:
                    for begin in range(0, piece.length, CHUNK_BYTES):
                        await way.step()
                        _write(target, begin, _read(source.arena, place, piece.offset + begin, min(CHUNK_BYTES, piece.length - begin)))
                answers.append(answer)
        finally:
            if not source.loop.is_closed():
                source.loop.call_soon(serving._sent, self._node_id, pieces, batch)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _read(arena: Arena, place: Place, begin: int, nbytes: int) -> bytes:
    if not place.path:
        return bytes(arena.writable_range(place.offset + begin, nbytes))
    with open(place.path, "rb") as file:
        return os.pread(file.fileno(), nbytes, place.offset + begin)


def _write(target: memoryview | FileRange, begin: int, piece: bytes) -> None:
    if isinstance(target, memoryview):
        target[begin : begin + len(piece)] = piece
        return
    with open(target.path, "r+b") as file:
        os.pwrite(file.fileno(), piece, target.offset + begin)
