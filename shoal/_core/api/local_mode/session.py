"""What the parts of a local session share: its identity, objects, functions, and the actors that live in it."""

from __future__ import annotations

import os
from typing import Any, Protocol

from shoal._base import ids
from shoal._base.references import ObjectRef
from shoal._core.serialization import serialize, serialize_system_error, unpickle_function
from shoal._core.wire.messages import ActorSpec, Address, Cause
from shoal.exceptions import ObjectLostError

from .objects import LocalObject, LocalObjects
from .streams import LocalStream

#: What stands after an actor's id in the id of its token.
TOKEN_SUFFIX = b"\xff" * (ids.OBJECT_BYTES - ids.ACTOR_BYTES)


class Inhabitant(Protocol):
    """An actor, as the session knows it."""

    spec: ActorSpec

    def end(self, cause: Cause) -> None: ...


class LocalSession:
    """The state of one session."""

    def __init__(self, node_ip: str, temp_dir: str) -> None:
        self.job_id = (1).to_bytes(ids.JOB_BYTES, "big")
        self.worker_id = os.urandom(ids.WORKER_BYTES)
        self.node_id = os.urandom(ids.NODE_BYTES)
        self.node_ip = node_ip
        self.session_dir = os.path.join(temp_dir or "/tmp", f"local_{os.getpid()}_{self.worker_id[:4].hex()}")
        self.address = Address(self.worker_id, self.node_id, "local")
        self.ids = ids.TaskIdSource(ids.JobId(self.job_id))
        self.objects = LocalObjects(self._unreferenced)
        self.streams: dict[bytes, LocalStream] = {}
        self.actors: dict[bytes, Inhabitant] = {}
        #: Live named actors by (namespace, name).
        self.names: dict[tuple[str, str], Inhabitant] = {}
        self.closed = False
        self._blobs: dict[bytes, bytes] = {}
        self._functions: dict[bytes, Any] = {}

    def store(self, value: Any) -> ObjectRef[Any]:
        """Add an object that is ready."""
        serialized = serialize(value)
        entry = self.objects.create(ids.object_id(self.ids.next(), 0))
        ref: ObjectRef[Any] = ObjectRef(entry.object_id, _runtime=self)
        self.objects.complete(entry, serialized)
        return ref

    def entry_of(self, ref: ObjectRef[Any]) -> LocalObject:
        """Return the object; an ObjectLostError in its place if it is not of this session."""
        entry = self.objects.entries.get(ref._id)
        if entry is None:
            entry = LocalObject(ref._id)
            entry.error = serialize_system_error(ObjectLostError(ref.hex(), message=f"{ref!r} is not an object of this session."))
        return entry

    def keep_function(self, function_id: bytes, pickled: bytes) -> None:
        self._blobs.setdefault(function_id, pickled)

    def load_function(self, function_id: bytes) -> Any:
        """Return the function or class, as a worker would read it; once per session."""
        function = self._functions.get(function_id)
        if function is None:
            function = self._functions[function_id] = unpickle_function(self._blobs[function_id])
        return function

    def actor_ended(self, actor: Inhabitant) -> None:
        """The actor is dead: its name is free."""
        name = (actor.spec.namespace, actor.spec.name)
        if self.names.get(name) is actor:
            del self.names[name]

    def _unreferenced(self, object_id: bytes) -> None:
        if object_id.endswith(TOKEN_SUFFIX):
            actor = self.actors.get(object_id[: ids.ACTOR_BYTES])
            if actor is not None and not self.closed:
                actor.end(Cause("out_of_scope"))
