"""From what ``@shoal.remote`` made back to what the user wrote."""

from __future__ import annotations

from typing import Any

from shoal._core.api.actor_class import ActorClass
from shoal._core.api.remote_function import RemoteFunction


def plain(remote: Any) -> Any:
    """Return the plain function of a remote function, or the plain class of an actor class: to call it here, without any session.

    TypeError for anything else.

    Example:
        >>> @shoal.remote
        ... def square(x):
        ...     return x * x
        >>> plain(square)(3)
        9
    """
    if not isinstance(remote, RemoteFunction | ActorClass):
        raise TypeError(f"A remote function or an actor class was expected, got {type(remote).__name__}: {remote!r}.")
    return remote._export.target
