"""Actors by name, and their end."""

from __future__ import annotations

from typing import Any

from shoal._base import runtime as holder
from shoal._core.wire.messages import GetNamedActor, ListNamedActors

from .actor_handle import ActorHandle, handle_from_spec
from .actor_method import lost_handle
from .lifecycle import ensure_runtime


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """Return a handle to a live named actor.

    Args:
        namespace: where to look; None means this job's namespace.

    Raises:
        ValueError: no live actor has the name, or a name is empty.
    """
    if not name:
        raise ValueError("Please supply a non-empty value to get_actor")
    if not isinstance(name, str):
        raise TypeError(f"An actor's name is a string, got {type(name).__name__}: {name!r}.")
    if not isinstance(namespace, str | None):
        raise TypeError(f"A namespace is a string, got {type(namespace).__name__}: {namespace!r}.")
    if namespace == "":
        raise ValueError('"" is not a valid namespace. Leave it out for the namespace of this job.')
    runtime = ensure_runtime()
    where = runtime.namespace if namespace is None else namespace
    try:
        spec = runtime.request_control_store(GetNamedActor(0, name, where)).spec
    except ValueError:
        raise ValueError(
            f"Failed to look up actor {name!r} in namespace {where!r}: nobody made it, or it has died. shoal.util.list_named_actors("
            "all_namespaces=True) shows what there is."
        ) from None
    return handle_from_spec(spec)


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Return the names of the live actors of this namespace, or of all as ``{"name": ..., "namespace": ...}``."""
    runtime = ensure_runtime()
    names = runtime.request_control_store(ListNamedActors(0, runtime.namespace, bool(all_namespaces))).names
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in names]
    return [name for _, name in names]


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """Kill the actor's process at once: running calls fail, ``atexit`` does not run. Idempotent.

    Args:
        no_restart: False lets it restart if ``max_restarts`` allows.

    Raises:
        ValueError: ``actor`` is not a handle.
        ActorHandleNotFoundError: the handle is of an earlier session.
    """
    if not isinstance(actor, ActorHandle):
        raise ValueError(f"kill() takes an actor handle; for tasks use shoal.cancel(). Got {type(actor).__name__}: {actor!r}.")
    runtime = holder._current
    if runtime is None or runtime is not actor._runtime:
        raise lost_handle(actor)
    runtime.kill_actor(actor._facts.actor_id, bool(no_restart))


def exit_actor() -> None:
    """End the actor whose method calls this, after that call; its caller and the calls still queued get ActorDiedError. No restart.

    Raises:
        TypeError: not called inside an actor.
    """
    runtime = holder._current
    context = runtime.task_context() if runtime is not None else None
    if runtime is None or context is None or not context.actor_id:
        raise TypeError("exit_actor() can only be called inside a method of an actor.")
    runtime.exit_actor()
