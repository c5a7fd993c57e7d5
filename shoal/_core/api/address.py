"""Which session a driver joins: its address, the environment, and what runs on this machine.

    address     None                  RAY_ADDRESS, else the newest cluster that was started from a shell, else a session of its own
                "auto"                RAY_ADDRESS, else any cluster or session of this user on this machine
                "local"               a session of its own
                "HOST:PORT"           the cluster whose control store listens there, by way of a node of it on this machine

A driver needs a node on its own machine: the shared memory of its objects, and the way to the other nodes, are that node's.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal._core.process.session import SessionRecord

_VARIABLES = ("SHOAL_ADDRESS", "RAY_ADDRESS")


def find_node(address: str | None, environ: Mapping[str, str] | None = None) -> SessionRecord | None:
    """Return the node or session to join; None: the driver starts a session of its own. Blocks a few seconds at most.

    Raises:
        TypeError: the address is no string.
        ConnectionError: there is nothing to join at this address. The message tells what is there instead.
    """
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address must be a string or None, got {type(address).__name__}: {address!r}.")
    environ = os.environ if environ is None else environ
    wanted, source = address, "init(address=...)"
    if address in (None, "auto"):
        name = next((name for name in _VARIABLES if environ.get(name)), None)
        if name is not None:
            wanted, source = environ[name], name
    if wanted == "local":
        return None
    from shoal._core.process.discovery import clusters, live_records, nodes_of, resolve

    records = live_records()
    if wanted in (None, "", "auto"):
        candidates = records if wanted == "auto" else [record for record in records if record.is_daemon]
        addresses = clusters(candidates)
        if addresses:
            return nodes_of(records, addresses[0])[0]
        if wanted == "auto":
            raise ConnectionError(
                "No running cluster of this user was found on this machine, and address='auto' asks for one. Start one with "
                "'shoal start --head', join one with 'shoal start --address=HOST:PORT', or leave the address out."
            )
        return None
    assert wanted is not None
    try:
        control_address = resolve(wanted, clusters(records))
    except ValueError as error:
        raise ConnectionError(f"{wanted!r} (from {source}) cannot be used: {error}") from None
    nodes = nodes_of(records, control_address)
    if not nodes:
        raise ConnectionError(_why_unreachable(wanted, control_address, source, clusters(records)))
    return nodes[0]


def address_is_given(environ: Mapping[str, str]) -> bool:
    """Return whether the environment names a cluster."""
    return any(environ.get(name) for name in _VARIABLES)


def _why_unreachable(wanted: str, control_address: str, source: str, known: Sequence[str]) -> str:
    """Say what is at an address that no node of this machine belongs to."""
    from shoal._base.auth_token import TokenError, find_token
    from shoal._core.process.asking import ask
    from shoal._core.process.discovery import spell
    from shoal._core.transport import Tokens, WrongToken
    from shoal._core.wire.messages import Ack, Ping

    try:
        token = find_token().encode()
    except TokenError as error:
        token, no_token = secrets.token_bytes(32), str(error)  # good enough to learn whether anybody listens
    else:
        no_token = ""
    here = f" On this machine run: {', '.join(map(spell, known))}." if known else " No cluster of this user runs on this machine."
    try:
        ask(control_address, Tokens(token), Ping(0), Ack)
    except OSError as error:  # a TransportError is a ConnectionError, and TimeoutError one, too
        why = no_token if no_token and isinstance(error, WrongToken) else str(error)
        return f"No cluster can be reached at {wanted!r} (from {source}): {why}{here}"
    return (
        f"There is a cluster at {wanted!r} (from {source}), but no node of it runs on this machine, and a driver needs one. "
        f"Run 'shoal start --address={spell(control_address)}' here first.{here}"
    )
