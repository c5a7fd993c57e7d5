"""Actor classes, handles and methods under the module where Ray's users look for them.

``ActorProxy[T]`` annotates a handle to an actor of the plain class ``T``: type checkers then know its methods, those decorated with
``@shoal.method`` with their results.
"""

from __future__ import annotations

from typing import TypeVar

from ._core.api.actor_class import ActorClass, ActorClassInheritanceException
from ._core.api.actor_facts import method
from ._core.api.actor_handle import ActorHandle
from ._core.api.actor_method import ActorMethod
from ._core.api.named_actors import exit_actor, list_named_actors

_T = TypeVar("_T")

ActorProxy = ActorHandle[_T] | type[_T]

__all__ = [
    "ActorClass",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorMethod",
    "ActorProxy",
    "exit_actor",
    "list_named_actors",
    "method",
]

for _public in (ActorClass, ActorClassInheritanceException, ActorHandle, ActorMethod, exit_actor, list_named_actors):
    _public.__module__ = __name__
del _public
