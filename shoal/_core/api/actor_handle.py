"""Handles: how any process calls an actor.

A handle of an actor that is not detached holds the actor's token, a counted reference: the actor ends when no token is left anywhere. The
token is pickled along with the handle, so handles are counted by the rules of references.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from shoal._base import runtime as holder
from shoal._base.ids import ActorID
from shoal._base.references import ObjectRef
from shoal._base.suggestions import did_you_mean
from shoal._core.wire.messages import ActorSpec

from .actor_facts import ActorFacts, decode_methods
from .actor_method import ActorMethod, BoundCall, make_template

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ActorFacts)


class ActorHandle(Generic[T]):
    """A handle to a live actor: ``handle.method.remote(...)``. Can be passed, returned, stored in objects and pickled.

    Handles compare and hash by actor id.
    """

    def __init__(self, facts: ActorFacts, token: ObjectRef[Any] | None) -> None:
        self._facts = facts
        #: None: a detached actor, or the actor's own handle to itself; neither keeps it alive.
        self._token = token
        self._runtime = runtime = holder._current
        self._methods = decode_methods(bytes(facts.methods))
        #: What was called through this handle, by method name, or by (method name, options).
        self._calls: dict[Any, BoundCall] = {}
        self._limit: Any = None
        if runtime is not None:
            self._limit = runtime.know_actor(facts.actor_id, out_of_order=facts.out_of_order, max_pending_calls=facts.max_pending_calls)

    def __getattr__(self, name: str) -> ActorMethod:
        call = self._calls.get(name)
        return ActorMethod(self, call if call is not None else self._bind(name))

    def _bind(self, name: str) -> BoundCall:
        method = self._methods.get(name)
        if method is None:
            raise AttributeError(
                f"Actor {self._facts.class_name} has no method {name!r}.{did_you_mean(name, self._methods)} "
                "Attributes and properties of an actor can only be read by its methods.",
                name=name,
            )
        call = self._calls[name] = BoundCall(self._facts, method, make_template(self._facts, method, {}))
        return call

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._facts.actor_id)

    @property
    def _ray_actor_id(self) -> ActorID:
        return ActorID(self._facts.actor_id)

    def __dir__(self) -> list[str]:
        return sorted(self._methods)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._facts.actor_id == self._facts.actor_id

    def __hash__(self) -> int:
        return hash(self._facts.actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._facts.class_name}, {self._facts.actor_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        token = self._token
        if token is None and not self._facts.detached and self._runtime is not None:
            token = self._runtime.actor_token(self._facts.actor_id, self._facts.owner)
        return _restore, (_encoder.encode(self._facts), token)


def _restore(facts: bytes, token: ObjectRef[Any] | None) -> ActorHandle[Any]:
    return ActorHandle(_decoder.decode(facts), token)


def encode_facts(facts: ActorFacts) -> bytes:
    """Return the bytes that stand in ``ActorSpec.handle``."""
    return _encoder.encode(facts)


def handle_from_spec(spec: ActorSpec, *, keep_alive: bool = True) -> ActorHandle[Any]:
    """Build a handle from what the control store keeps; ``keep_alive=False`` for an actor's handle to itself."""
    facts = _decoder.decode(spec.handle)
    token = None
    if keep_alive and not facts.detached:
        token = holder.current().actor_token(facts.actor_id, facts.owner)
    return ActorHandle(facts, token)
