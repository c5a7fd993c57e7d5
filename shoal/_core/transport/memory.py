"""Connections within one process: inside the head, and between the many simulated processes of a test.

    end A ── encode ──▶ lane (FIFO, seeded delay, held while partitioned) ── decode ──▶ end B      and a second lane back

Messages go through the codec, so that two ends never share an object by accident; ``copy=False`` passes them as they are, for ends that
trust each other. Everything happens through the loop that is passed in, and all chance through ``rng``: the same seed gives the
same order of events under a virtual clock.

An endpoint is a process. It may lie on a host that it shares with others (``place``), and have a loop of its own, on which everything is
called that concerns it.

What a fault means: ``partition`` holds messages back, as a network does that may still heal; ``disconnect`` breaks connections, both
ends alive; ``kill`` is a SIGKILL: the dead endpoint's code is never called again, what it had sent still arrives, then its peers lose
the connection. Partitions and delays are between hosts as well as between endpoints.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from shoal._core.transport.connection import HIGH_WATER_BYTES, LOW_WATER_BYTES, Connection, OnClose, OnMessage
from shoal._core.transport.errors import ConnectFailed
from shoal._core.transport.framing import FramedConnection
from shoal._core.wire.codec import Attached, Buffer
from shoal._core.wire.messages import Message

_Payload = Buffer | list[Message | Attached] | None  # None: the end of the stream


class _Listening(NamedTuple):
    endpoint: str
    on_connection: Callable[[Connection], None]


class MemoryNetwork:
    """The network that memory transports share: who listens where, how slow it is, and what is broken.

    Args:
        rng: Draws the delays; None together with ``delay_s`` (0, 0) delivers in the next iteration of the loop.
        delay_s: Shortest and longest time that a frame takes, in seconds.
        copy: Send through the codec. False: the receiver gets the sender's message objects.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random | None = None,
        *,
        delay_s: tuple[float, float] = (0.0, 0.0),
        copy: bool = True,
    ) -> None:
        self.loop = loop
        self.copy = copy
        self._rng = rng if rng is not None else random.Random(0)
        self._delay_s = delay_s
        self._pair_delay_s: dict[frozenset[str], tuple[float, float]] = {}
        self._listening: dict[str, _Listening] = {}
        self._connections: list[tuple[MemoryConnection, MemoryConnection]] = []
        #: (from, to) of what is held back.
        self._partitioned: set[tuple[str, str]] = set()
        self._hosts: dict[str, str] = {}
        self._loops: dict[str, asyncio.AbstractEventLoop] = {}
        self._dead: set[str] = set()
        self._next_address = 0

    def place(self, endpoint: str, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """Say where an endpoint lies and which loop it runs on, before it connects or listens. By default: alone, on the network's loop."""
        self._hosts[endpoint] = host
        self._loops[endpoint] = loop

    # --- faults ---

    def partition(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Hold back what ``a`` and ``b`` send to each other (one way: ``a`` to ``b``); new connections wait, and fail after their timeout.

        Each is an endpoint or a host.
        """
        self._partitioned.add((a, b))
        if not one_way:
            self._partitioned.add((b, a))

    def heal(self, a: str, b: str) -> None:
        """End a partition, both ways: what was held back arrives, in order."""
        self._partitioned -= {(a, b), (b, a)}
        for end in self._ends_between(a, b):
            end.release()

    def delay(self, a: str, b: str, shortest_s: float, longest_s: float) -> None:
        """Set the delay of frames between ``a`` and ``b``, endpoints or hosts."""
        self._pair_delay_s[frozenset((a, b))] = (shortest_s, longest_s)

    def end_delay(self, a: str, b: str) -> None:
        """Have frames between ``a`` and ``b`` take as long as others again."""
        self._pair_delay_s.pop(frozenset((a, b)), None)

    def disconnect(self, a: str, b: str) -> None:
        """Break the connections between ``a`` and ``b``; they may connect again. What is in flight is lost."""
        for end in self._ends_between(a, b):
            end.break_off(f"the connection between {a} and {b} broke")

    def kill(self, name: str) -> None:
        """End an endpoint without warning. Its connections break, its addresses refuse, for good."""
        self._dead.add(name)
        self._listening = {address: place for address, place in self._listening.items() if place.endpoint != name}
        for pair in list(self._connections):
            for end in pair:
                if end.endpoint == name:
                    end.die()

    # --- used by transports and connections ---

    def draw_delay_s(self, a: str, b: str) -> float:
        """Draw how long the next frame between ``a`` and ``b`` takes."""
        shortest, longest = self._delay_s
        if self._pair_delay_s:
            for pair in (frozenset((a, b)), frozenset((self.host_of(a), self.host_of(b)))):
                shortest, longest = self._pair_delay_s.get(pair, (shortest, longest))
        return self._rng.uniform(shortest, longest) if longest > 0 else 0.0

    def is_partitioned(self, a: str, b: str) -> bool:
        """Whether what ``a`` sends to ``b`` is held back."""
        return bool(self._partitioned) and ((a, b) in self._partitioned or (self.host_of(a), self.host_of(b)) in self._partitioned)

    def host_of(self, endpoint: str) -> str:
        return self._hosts.get(endpoint, endpoint)

    def loop_of(self, endpoint: str) -> asyncio.AbstractEventLoop:
        return self._loops.get(endpoint, self.loop)

    def open(self, client: str, address: str) -> MemoryConnection:
        """Connect ``client`` to whoever listens at ``address``; ConnectFailed if nobody does."""
        place = self._listening.get(address)
        if place is None or client in self._dead:
            raise ConnectFailed(f"Cannot connect to {address}: nobody listens there.")
        near = MemoryConnection(self, client, place.endpoint, address)
        far = MemoryConnection(self, place.endpoint, client, client)
        near.other, far.other = far, near
        self._connections.append((near, far))
        self.loop_of(place.endpoint).call_soon(place.on_connection, far)
        return near

    def where(self, address: str) -> str:
        """Return the endpoint that listens at ``address``, "" if none."""
        place = self._listening.get(address)
        return place.endpoint if place else ""

    def bind(self, endpoint: str, address: str, on_connection: Callable[[Connection], None]) -> str:
        """Register a listener; an empty address picks one. OSError if it is taken."""
        if not address:
            self._next_address += 1
            address = f"memory:{endpoint}-{self._next_address}"
        if address in self._listening:
            raise OSError(f"The address {address} is in use by {self._listening[address].endpoint}.")
        self._listening[address] = _Listening(endpoint, on_connection)
        return address

    def unbind(self, endpoint: str, address: str) -> None:
        if self.where(address) == endpoint:
            del self._listening[address]

    def forget(self, connection: MemoryConnection) -> None:
        """Drop a pair of ends once both are over."""
        if connection.over and connection.other.over:
            self._connections = [pair for pair in self._connections if connection not in pair]

    def _ends_between(self, a: str, b: str) -> list[MemoryConnection]:
        wanted = {a, b}
        return [
            end
            for pair in self._connections
            if {one.endpoint for one in pair} == wanted or {self.host_of(one.endpoint) for one in pair} == wanted
            for end in pair
        ]


class MemoryConnection(FramedConnection):
    """One end of a connection in memory."""

    other: MemoryConnection

    def __init__(self, network: MemoryNetwork, endpoint: str, other_endpoint: str, peer: str) -> None:
        super().__init__(network.loop_of(endpoint), peer, self._put)
        self.endpoint = endpoint
        #: Where what this end sends is delivered.
        self._far_loop = network.loop_of(other_endpoint)
        self._other_endpoint = other_endpoint
        self._network = network
        #: What travels from this end to the other, oldest first. Each has one call of ``_arrive`` to come, or counted in ``_held``.
        self._lane: deque[_Payload] = deque()
        self._lane_bytes = 0
        #: Arrivals that a partition held back.
        self._held = 0
        #: When the newest entry arrives: a later one may not overtake it.
        self._arrival = 0.0
        self._dead = False

    @property
    def over(self) -> bool:
        return self._lost or self._dead

    def send_now(self, message: Message, is_valid: Callable[[], bool] | None = None, sent: Callable[[], object] | None = None) -> bool:
        if self.closed or self._finishing or self._out or (is_valid is not None and not is_valid()):
            return False
        self._transmit([message])
        if sent is not None:
            sent()
        return True

    def saturated(self) -> bool:
        self._flush()
        return self._lane_bytes > HIGH_WATER_BYTES

    def close(self) -> None:
        if self.closed:
            return
        self._flush()
        self.closed = True
        self._reason = self._reason or "this process closed it"
        self._put(None)
        self._loop.call_soon(self._finish)

    def abort(self) -> None:
        self._out = []
        self.close()

    def release(self) -> None:
        """Let arrive what a partition held back."""
        held, self._held = self._held, 0
        for _ in range(held):
            self._far_loop.call_soon(self._arrive)

    def break_off(self, reason: str) -> None:
        """Lose the connection, and all that is on its way from here."""
        self.closed = True
        self._reason = reason
        self._out = []
        self._lane = deque(None if payload is None else b"" for payload in self._lane)
        self._loop.call_soon(self._finish)

    def die(self) -> None:
        """Be the end of a killed process: never call its code again."""
        if not self.over:
            self._out = []
            self._put(None)
        self._dead = self.closed = True
        self._network.forget(self)

    def _transmit(self, messages: list[Message | Attached]) -> None:
        if self._network.copy:
            super()._transmit(messages)
        else:
            self._attached = False
            self._put(messages)

    def _put(self, payload: _Payload) -> None:
        """Send one payload on its way."""
        delay = self._network.draw_delay_s(self.endpoint, self._other_endpoint)
        now = self._loop.time()
        self._arrival = max(now + delay, self._arrival)
        self._lane.append(payload)
        if isinstance(payload, bytes | bytearray | memoryview):
            self._lane_bytes += len(payload)
        if self._arrival <= now:
            self._far_loop.call_soon(self._arrive)
        else:
            self._far_loop.call_at(self._arrival, self._arrive)

    def _arrive(self) -> None:
        """The oldest payload reaches the other end. Timers of equal time fire in any order, so which call it is does not matter."""
        if self._network.is_partitioned(self.endpoint, self._other_endpoint):
            self._held += 1
            return
        payload = self._lane.popleft()
        if isinstance(payload, bytes | bytearray | memoryview):
            self._lane_bytes -= len(payload)
            if self._drain_waiters and self._lane_bytes < LOW_WATER_BYTES:
                self._wake_drained()
        other = self.other
        if other.over:
            return
        if payload is None:
            other._reason = other._reason or "the peer ended or closed it"
            other._finish()
        elif isinstance(payload, list):
            other._dispatch(payload)
        elif len(payload):
            other.deliver(bytes(payload))

    def _finish(self) -> None:
        if not self._dead:
            self._end()
        self._network.forget(self)


class MemoryTransport:
    """The transport of one endpoint, a simulated process, of a ``MemoryNetwork``. Addresses are any strings."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self.name = name

    async def connect(self, address: str, on_message: OnMessage, on_close: OnClose | None = None, *, timeout_s: float = 5.0) -> Connection:
        """Connect to whoever listens at ``address``. Raises ConnectFailed when nobody does, or after ``timeout_s`` of partition."""
        network = self._network
        deadline = network.loop.time() + timeout_s
        await asyncio.sleep(network.draw_delay_s(self.name, network.where(address)))
        while network.is_partitioned(self.name, place := network.where(address)) or network.is_partitioned(place, self.name):
            if network.loop.time() >= deadline:
                raise ConnectFailed(f"Cannot connect to {address}: no answer within {timeout_s:g} s.")
            await asyncio.sleep(timeout_s / 100)
        connection = network.open(self.name, address)
        connection.on_message = on_message
        if on_close is not None:
            connection.on_close = on_close
        return connection

    async def listen(self, address: str, on_connection: Callable[[Connection], None]) -> MemoryListener:
        """Listen at ``address``; "" picks a free one. OSError if it is taken."""
        return MemoryListener(self._network, self.name, self._network.bind(self.name, address, on_connection))


class MemoryListener:
    """A place where connections arrive."""

    def __init__(self, network: MemoryNetwork, endpoint: str, address: str) -> None:
        self.address = address
        self._network = network
        self._endpoint = endpoint

    def close(self) -> None:
        """Stop listening; connections already made go on. Idempotent."""
        self._network.unbind(self._endpoint, self.address)
