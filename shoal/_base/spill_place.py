"""Where spilled objects go, as users write it: ``object_spilling_directory``, ``--object-spilling-directory``, Ray's spilling config.

""                      in the session's directory
/PATH                   in that directory of this machine: fast, and gone with its node
SCHEME://...            anywhere that fsspec reaches (s3://bucket/prefix, gs://..., file:///nfs/share): it outlives the node, so what lies
                        there is restored by another one when the node dies
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from shoal._base.optional import try_import

_EXAMPLES = "/mnt/disk/spill or s3://bucket/prefix"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
#: Ray's name of the configuration in ``_system_config`` and, after ``RAY_``, in the environment.
CONFIG = "object_spilling_config"


def is_url(place: str) -> bool:
    """Tell whether fsspec reaches it, rather than the file system of this machine."""
    return _SCHEME.match(place) is not None


def shown(place: str) -> str:
    """Return how the place is called in messages: without user and password."""
    return re.sub(r"://[^/@]*@", "://", place)


def directory_of(node_id: bytes) -> str:
    """Return the name of a node's own directory below a URL."""
    return f"node-{node_id.hex()}"


def read_spill_place(given: str, system_config: Mapping[str, Any] | None, environ: Mapping[str, str]) -> str:
    """Return where to spill: what was ``given``, else what Ray's configuration says, in the call or in the environment; "" for neither.

    Raises:
        ValueError: it cannot be understood, or no file system of that name is known.
        ImportError: it needs a package that is not installed; the message names the command that installs it.
    """
    place = given or _of_config(system_config, environ)
    if is_url(place):
        _check_packages(place)
        return place.rstrip("/") if not place.endswith("://") else place
    if "://" in place:
        raise ValueError(f"The spilling directory {shown(place)!r} is neither a path nor a URL, for example {_EXAMPLES}.")
    return os.path.abspath(place) if place else ""


def _check_packages(url: str) -> None:
    registry = try_import("fsspec.registry", "shoal[spill]")
    for protocol in url.partition("://")[0].split("::"):
        try:
            registry.get_filesystem_class(protocol)
        except ValueError as error:
            raise ValueError(f"The spilling directory {shown(url)!r} cannot be used: {error}. An example: {_EXAMPLES}.") from None
        except ImportError as error:
            module = registry.known_implementations.get(protocol, {}).get("class", "fsspec.").partition(".")[0]
            command = f" Install it with: pip install '{module}'" if module != "fsspec" else ""
            raise ImportError(f"The spilling directory {shown(url)!r} needs a package that is not installed: {error}.{command}") from None


def _of_config(system_config: Mapping[str, Any] | None, environ: Mapping[str, str]) -> str:
    found: Any = (system_config or {}).get("object_spilling_directory")
    if found:
        return str(found)
    found = (system_config or {}).get(CONFIG) or environ.get(f"RAY_{CONFIG}")
    if not found:
        return ""
    try:
        config = json.loads(found) if isinstance(found, str) else found
        kind, params = config["type"], config.get("params", {})
        places = params[{"filesystem": "directory_path", "smart_open": "uri"}[kind]]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f'{CONFIG} must be JSON such as {{"type": "filesystem", "params": {{"directory_path": "/mnt/disk"}}}} or '
            f'{{"type": "smart_open", "params": {{"uri": "s3://bucket/prefix"}}}}, got {found!r}.'
        ) from None
    places = [places] if isinstance(places, str) else places
    if not isinstance(places, list) or len(places) != 1 or not isinstance(places[0], str) or not places[0]:
        raise ValueError(
            f"{CONFIG} names {places!r}: objects are spilled to one place. Join several disks to one file system, or start a node for each."
        )
    return str(places[0])
