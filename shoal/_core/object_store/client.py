"""The object store as a worker or driver sees it.

    loop thread   create ─▶ (any thread: write) ─▶ seal          pin ─▶ (any thread: read) ─▶ unpin
    any thread    last view dies ─▶ append, wake ─▶ (loop thread) flush_releases ─▶ UnpinObjects

A process pins an object once, however many readers it has; here they are counted as *holds*. A place that ``pin`` returns is one hold,
until ``unpin``; ``read``, called in between, adds one that ends with the last array, table or memoryview over its view.

Finalizers may run anywhere, inside a lock, in the middle of an allocation; so they append to a deque and call ``wake``, and nothing else.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shoal._core.object_store.arena import Arena, Writable
from shoal._core.object_store.mapping import Mapping
from shoal._core.object_store.spilling import parse_location
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import (
    AbortObject,
    Address,
    CancelRequest,
    CreateObject,
    FreeObjects,
    Message,
    ObjectCreated,
    ObjectRefInfo,
    ObjectsPinned,
    PinObjects,
    SealObject,
    UnpinObjects,
)  # fmt: skip

_LOST, _ON_DISK = -1, -2


class Place(NamedTuple):
    """Where an object lies: at ``offset`` of the arena, or of the file ``path``."""

    offset: int
    nbytes: int
    path: str = ""


class _Hold:
    """One reader. The views share it; when the last is gone, or ``drop`` is called, the reader is gone. Safe in ``__del__``."""

    __slots__ = ("_client", "_object_id")

    def __init__(self, client: StoreClient, object_id: bytes) -> None:
        self._client: StoreClient | None = client
        self._object_id = object_id

    def __call__(self) -> None:
        """A view is gone; what counts is that the last of them drops this object."""

    def __del__(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client._reader_gone(self._object_id)


class _Pin:
    """An object that this process has pinned, or has asked to."""

    __slots__ = ("holds", "object_id", "place", "refusal", "request")

    def __init__(self, object_id: bytes, request: _PinRequest) -> None:
        self.object_id = object_id
        #: None once its answer has arrived.
        self.request: _PinRequest | None = request
        self.place: Place | None = None
        self.refusal: RequestFailed | None = None
        self.holds = 0


class _PinRequest:
    """A PinObjects that is not answered yet."""

    __slots__ = ("message", "pins", "reply")

    def __init__(self, message: PinObjects, reply: asyncio.Future[Any]) -> None:
        self.message = message
        self.reply = reply
        self.pins = [_Pin(object_id, self) for object_id in message.object_ids]


class StoreClient:
    """One process's side of its node's object store.

    Args:
        arena: opened by this process; stays the caller's.
        send: queue a one-way message to the node agent. Loop thread.
        request: send a request; the future ends with the reply or raises RequestFailed, ConnectionLost. Loop thread.
        wake: make the loop call ``flush_releases`` soon. Called from any thread, inside ``__del__`` too: it may append to a deque and
            write to an eventfd, it may not take a lock.
        node_id: of this node.
    """

    def __init__(
        self,
        arena: Arena,
        send: Callable[[Message], None],
        request: Callable[[Message], asyncio.Future[Any]],
        wake: Callable[[], None],
        node_id: bytes = b"",
    ) -> None:
        self._arena = arena
        self._node_id = node_id
        self._send = send
        self._request = request
        self._wake = wake
        self._pins: dict[bytes, _Pin] = {}
        #: (object id, +1 or -1) in the order in which holds came and went; appended by any thread, emptied on the loop.
        self._changes: deque[tuple[bytes, int]] = deque()
        self._woken = False
        self._closed = False

    # --- writing: create, write, seal or abort ---

    def create(self, object_id: bytes, nbytes: int, owner: Address) -> asyncio.Future[Place]:
        """Ask for room. Waits while the store is full.

        Raises RequestFailed: ObjectStoreFullError, OutOfDiskError, or ObjectExists when the object is sealed already (a task that was run
        again). Cancelling the future gives the room back.
        """
        result: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        reply = self._request(CreateObject(0, object_id, nbytes, owner))

        def created(done: asyncio.Future[Any]) -> None:
            error = _error_of(done)
            if result.done():
                if error is None:
                    self.abort(object_id)
            elif error is not None:
                result.set_exception(error)
            else:
                message: ObjectCreated = done.result()
                result.set_result(Place(message.offset, nbytes, message.path))

        reply.add_done_callback(created)
        return result

    def write(self, place: Place, value: Writable) -> None:
        """Copy the value into its place. Any thread; the interpreter lock is released while large buffers are copied."""
        if not place.path:
            self._arena.write(place.offset, value)
            return
        fd = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            value.write_to(fd, place.offset)
        finally:
            os.close(fd)

    def seal(self, object_id: bytes, refs: Sequence[ObjectRefInfo] = ()) -> None:
        """The value is complete: from now on it can be read, by everybody, until it is freed."""
        self._send(SealObject(object_id, list(refs)))

    def abort(self, object_id: bytes) -> None:
        """Give up an object that is not sealed."""
        self._send(AbortObject(object_id))

    def free(self, object_ids: Sequence[bytes]) -> None:
        """Its owner needs the objects no more. Views stay valid."""
        self._send(FreeObjects(list(object_ids)))

    # --- reading: pin, read, unpin ---

    def pin(
        self, object_ids: Sequence[bytes], sources: Sequence[tuple[bytes, int]] = (), urgency: int = 0
    ) -> asyncio.Future[list[Place | None]]:
        """Make objects readable and hold them; None in the result: lost, and not held.

        Waits for objects that are being written, for the disk, and for other nodes. Call ``unpin`` once for each place. If the future fails
        or is cancelled, nothing is held, and what nobody else waits for is not fetched any more. Raises RequestFailed when this node has no
        room for a copy (ObjectStoreFullError, OutOfDiskError).

        Args:
            sources: node of the primary copy and bytes, for each object; () if all are of this node.
            urgency: see PinObjects.
        """
        result: asyncio.Future[list[Place | None]] = asyncio.get_running_loop().create_future()
        self.flush_releases()
        ask = [object_id for object_id in dict.fromkeys(object_ids) if object_id not in self._pins]
        if ask:
            where = dict(zip(object_ids, sources, strict=True)) if any(node_id != self._node_id for node_id, _ in sources) else {}
            self._ask(ask, [where[object_id] for object_id in ask] if where else [], urgency)
        pins = [self._pins[object_id] for object_id in object_ids]
        replies = {pin.request.reply for pin in pins if pin.request is not None}
        for pin in pins:
            pin.holds += 1
        if not replies:
            result.set_result([pin.place for pin in pins])
            return result
        missing = len(replies)

        def arrived(done: asyncio.Future[Any]) -> None:
            nonlocal missing
            missing -= 1
            if result.cancelled():
                return
            refused = [pin.refusal for pin in pins if pin.refusal is not None]
            error = _error_of(done) or (refused[0] if refused else None)
            if error is not None and not result.done():
                result.set_exception(error)
            if missing:
                return
            if result.done():
                self._drop(pins)
                return
            places = [pin.place for pin in pins]
            self._drop([pin for pin in pins if pin.place is None])
            result.set_result(places)

        def given_up(done: asyncio.Future[Any]) -> None:
            if done.cancelled():
                self._drop(pins)

        for reply in replies:
            reply.add_done_callback(arrived)
        result.add_done_callback(given_up)
        return result

    def unpin(self, object_id: bytes) -> None:
        """Give back one place that ``pin`` returned. Loop thread, after every ``read`` of that place. Views that were read stay."""
        self.flush_releases()
        pin = self._pins.get(object_id)
        if pin is not None:
            self._drop([pin])

    def hold_if_here(self, object_id: bytes) -> Place | None:
        """Add a hold without asking the store, if this process has the object pinned. Any thread; end it with ``release``.

        The hold is announced before the look, and the loop looks at what was announced after it has forgotten a pin and before it tells
        the store; so one of the two always sees the other.
        """
        self._changes.append((object_id, 1))
        pin = self._pins.get(object_id)
        if pin is not None and pin.request is None and pin.place is not None:
            return pin.place
        self._changes.append((object_id, -1))
        return None

    def release(self, object_id: bytes) -> None:
        """End a hold of ``hold_if_here``. Any thread."""
        self._reader_gone(object_id)

    def read(self, object_id: bytes, place: Place) -> tuple[memoryview, Callable[[], memoryview]]:
        """Return a read-only view of a held place, and a function that makes writable private views. Any thread, before ``unpin``.

        It adds a hold that ends when all views, and the function, are gone. Changes through a private view are seen by nobody else.
        """
        self._changes.append((object_id, 1))
        hold = _Hold(self, object_id)
        if place.path:
            fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                view = Mapping(fd, max(place.nbytes, 1), place.offset, writable=False).view(0, place.nbytes, hold)
            finally:
                os.close(fd)
        else:
            view = self._arena.view(place.offset, place.nbytes, hold)

        def private_view() -> memoryview:
            if not place.path:
                return self._arena.private_view(place.offset, place.nbytes, hold)
            fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                mapping = Mapping(fd, max(place.nbytes, 1), place.offset, writable=True, private=True)
            finally:
                os.close(fd)
            return mapping.view(0, place.nbytes, hold, readonly=False)

        return view, private_view

    def flush_releases(self) -> None:
        """Count what readers have taken and given back, and tell the store. Loop thread; ``wake`` asks for it."""
        self._woken = False
        changes = self._changes
        dropped: list[_Pin] = []
        while changes:
            object_id, change = changes.popleft()
            pin = self._pins.get(object_id)
            if pin is None:
                continue
            if change > 0:
                pin.holds += 1
            else:
                dropped.append(pin)
        if dropped:
            self._drop(dropped)

    def held(self) -> int:
        """Objects that this process pins."""
        return len(self._pins)

    def close(self) -> None:
        """The connection ends, and with it all pins. Views stay readable, but the store may use their memory again."""
        self._closed = True
        self._pins.clear()
        self._changes.clear()

    # --- inside ---

    def _ask(self, object_ids: list[bytes], sources: list[tuple[bytes, int]], urgency: int) -> None:
        message = PinObjects(0, object_ids, sources, urgency)
        request = _PinRequest(message, self._request(message))
        self._pins.update(zip(object_ids, request.pins, strict=True))

        def pinned(done: asyncio.Future[Any]) -> None:
            answer: ObjectsPinned | None = None if _error_of(done) is not None else done.result()
            unwanted: list[bytes] = []
            for index, pin in enumerate(request.pins):
                pin.request = None
                pin.place = None if answer is None else _place(answer, index)
                if self._pins.get(pin.object_id) is not pin:  # given up meanwhile
                    unwanted += [pin.object_id] * (pin.place is not None)
                elif pin.place is None:
                    # Lost: the store counts nothing, and the next pin asks again.
                    del self._pins[pin.object_id]
            if answer is not None:
                for index, kind, text in answer.refused:
                    request.pins[index].refusal = RequestFailed(kind, text)
            if unwanted and not self._closed:
                self._send(UnpinObjects(unwanted))

        # Added first, so it runs before those who wait for the reply look at the places.
        request.reply.add_done_callback(pinned)

    def _drop(self, pins: Sequence[_Pin]) -> None:
        """End one hold of each; unpin what nobody holds any more."""
        unpinned: list[bytes] = []
        for pin in pins:
            pin.holds -= 1
            if pin.holds or self._pins.get(pin.object_id) is not pin:
                continue
            if pin.request is not None:
                self._give_up(pin.request)
                continue
            del self._pins[pin.object_id]
            if (pin.object_id, 1) in tuple(self._changes):  # a reader came in this moment: see hold_if_here
                self._pins[pin.object_id] = pin
            else:
                unpinned.append(pin.object_id)
        if unpinned and not self._closed:
            self._send(UnpinObjects(unpinned))

    def _give_up(self, request: _PinRequest) -> None:
        """If nobody waits for any of it: tell the store, which answers with what it has got. Whoever wants one of them now asks again."""
        if any(pin.holds for pin in request.pins):
            return
        for pin in request.pins:
            if self._pins.get(pin.object_id) is pin:
                del self._pins[pin.object_id]
        if not self._closed:
            self._send(CancelRequest(request.message.rid))

    def _reader_gone(self, object_id: bytes) -> None:
        """Any thread, also inside a finalizer."""
        self._changes.append((object_id, -1))
        if not self._woken and not self._closed:
            self._woken = True
            self._wake()


def _place(answer: ObjectsPinned, index: int) -> Place | None:
    offset, nbytes = answer.places[index]
    if offset == _LOST:
        return None
    if offset == _ON_DISK:
        path, start = parse_location(answer.paths[index])
        return Place(start, nbytes, path)
    return Place(offset, nbytes)


def _error_of(done: asyncio.Future[Any]) -> BaseException | None:
    return asyncio.CancelledError() if done.cancelled() else done.exception()
