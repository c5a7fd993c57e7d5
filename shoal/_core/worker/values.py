"""Values that this process puts: small ones are an entry and nothing else, large ones are written into the object store.

put           serialize; small: an entry. Large: create, write on this thread, seal
load          a value of an entry that is readable here, views into the arena for what is stored
"""

from __future__ import annotations

import asyncio
from typing import Any

from shoal import exceptions
from shoal._base.ids import ObjectId, TaskIdSource
from shoal._base.references import ObjectRef
from shoal._base.runtime import Runtime
from shoal._core.object_store import ArenaClosed
from shoal._core.serialization import Serialized, deserialize, serialize, serialize_system_error
from shoal._core.transport import ConnectionLost, RequestFailed
from shoal._core.wire import messages as m

from .bridge import Bridge
from .core import Core
from .entries import FAILED, INLINE, STORED, Entry, Stored
from .objects import error_bytes


class Values:
    """User threads' way to make objects and to read those that are here."""

    def __init__(self, core: Core, bridge: Bridge, runtime: Runtime, ids: TaskIdSource) -> None:
        self._core = core
        self._bridge = bridge
        self._runtime = runtime
        self._ids = ids
        self._entries = core.objects.own.entries
        self._inline_limit = core.settings.inline_limit_bytes

    def put(self, value: Any) -> ObjectRef[Any]:
        self._bridge.check_open()
        return self.put_serialized(serialize(value))

    def put_serialized(self, serialized: Serialized) -> ObjectRef[Any]:
        object_id = ObjectId(self._ids.next() + b"\0\0\0\0")
        entry = Entry(object_id, 1)
        if serialized.nbytes <= self._inline_limit:
            entry.data = serialized.to_bytes()
            entry.kind = INLINE
        else:
            self.store_object(object_id, serialized, self._core.me)
            entry.data = Stored(self._core.me.node_id, serialized.nbytes)
            entry.kind = STORED
        if serialized.refs:
            self._bridge.post(self._hold_inner, (entry, [ref._id for ref in serialized.refs]))
        self._entries[object_id] = entry
        return ObjectRef(object_id, None, counted=True, _runtime=self._runtime)

    def _hold_inner(self, held: tuple[Entry, list[bytes]]) -> None:
        entry, object_ids = held
        inner = [self._core.objects.own.lookup(object_id, None) for object_id in object_ids]
        for each in inner:
            each.count += 1
        entry.inner = inner

    def store_object(self, object_id: bytes, serialized: Serialized, owner: m.Address) -> bool:
        """Write a large value into the object store; blocks while it is full. Raises ObjectStoreFullError, OutOfDiskError.

        Return False if an earlier attempt of the same task has stored the same object there, which is kept.
        """
        try:
            place = self._bridge.call(lambda: self._core.store.create(object_id, serialized.nbytes, owner))
        except RequestFailed as error:
            if error.kind == "ObjectExists":
                return False
            raise self._bridge.as_exception(error) from None
        try:
            self._core.store.write(place, serialized)
        except ArenaClosed:
            raise self._core.head_ended() from None
        except BaseException:
            self._bridge.post(self._core.store.abort, object_id)
            raise
        refs = [m.ObjectRefInfo(ref.binary(), ref._owner or self._core.me) for ref in serialized.refs]
        self._bridge.post(lambda _: self._core.store.seal(object_id, refs), None)
        return True

    def load(self, entry: Entry | None, places: dict[bytes, Any]) -> Any:
        if entry is None:
            raise exceptions.RaySystemError("An object vanished while it was being read.")
        if entry.kind == STORED:
            try:
                view, private = self._core.store.read(entry.object_id, places[entry.object_id])
                return deserialize(view, private)
            except ArenaClosed:
                raise self._core.head_ended() from None
        return deserialize(entry.data)

    def promise(self, message: Any, value: Any) -> ObjectRef[Any]:
        """Return a reference to ``value`` that becomes ready when the control store acks ``message``, or to its error."""
        object_id = ObjectId(self._ids.next() + b"\0\0\0\0")
        entry = Entry(object_id, 1)
        self._entries[object_id] = entry
        data = serialize(value).to_bytes()

        def start(_arg: None) -> None:
            def acked(done: asyncio.Future[Any]) -> None:
                error = None if done.cancelled() else done.exception()
                if error is None:
                    self._core.objects.complete(entry, INLINE, data)
                elif isinstance(error, ConnectionLost):
                    self._core.objects.complete(entry, FAILED, serialize_system_error(self._core.head_ended()))
                else:
                    self._core.objects.complete(entry, FAILED, error_bytes(error, entry))

            self._core.control_store.request(message).add_done_callback(acked)

        self._bridge.post(start, None)
        return ObjectRef(object_id, None, counted=True, _runtime=self._runtime)
