"""What runs on this machine, for this user: read from the records of his session directories, never by looking at processes.

A record counts while its process lives. Another user's directories are not looked at, and could not be read.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from shoal._base import paths
from shoal._core.control_link.addresses import split
from shoal._core.transport.addresses import TcpAddress, parse_address

from .session import SessionRecord, read_record


def live_records(temp_dir: str | Path | None = None) -> list[SessionRecord]:
    """Return the records of this user's running sessions, nodes and control stores, the oldest first."""
    found = [record for record in _records(Path(temp_dir) if temp_dir else paths.temp_dir()) if record.is_running()]
    return sorted(found, key=lambda record: record.started_at)


def dead_control_stores() -> list[SessionRecord]:
    """Return the records of this user's control stores that have died: their nodes start them again, if any are left."""
    return [record for record in _records(paths.temp_dir()) if record.part == "control store" and not record.is_running()]


def nodes_of(records: list[SessionRecord], control_address: str) -> list[SessionRecord]:
    """Return those through which a driver can join the cluster of this control store: its head first, then the oldest."""
    nodes = [record for record in records if record.part != "control store" and is_same_cluster(record.control_address, control_address)]
    return sorted(nodes, key=lambda record: not record.is_head)


def clusters(records: list[SessionRecord]) -> list[str]:
    """Return the control stores' addresses of what a driver can join: those started from a shell first, of these the newest first."""
    nodes = sorted((record for record in records if record.part != "control store"), key=lambda r: (r.is_daemon, r.started_at))
    found: list[str] = []
    for record in reversed(nodes):
        if not any(is_same_cluster(record.control_address, address) for address in found):
            found.append(record.control_address)
    return found


def is_same_cluster(one: str, other: str) -> bool:
    """Whether two nodes that look for their control store at these addresses belong together: one may know of more standbys."""
    return not set(split(one)).isdisjoint(split(other))


def resolve(text: str, known: Sequence[str]) -> str:
    """Return the transport address of what users write as HOST:PORT: a known one, if it is the same place.

    Several, with commas between them, are the places of one cluster's control stores; so are those known, to which others are added.
    ValueError if it is no address. Blocks while the system looks up names.
    """
    if text in known:
        return text
    if "://" in text:
        raise ValueError("shoal has no client protocol of its own. Give HOST:PORT of the control store.")
    wanted = [_parse(part.strip()) for part in text.split(",")]
    for address in known:
        others = [str(where) for where in wanted if not any(_is_same(where, one) for one in split(address))]
        if len(others) < len(wanted):
            return ",".join([address, *others])
    return ",".join(map(str, wanted))


def spell(address: str) -> str:
    """Return an address as users write it: HOST:PORT; what is no TCP address stays as it is."""
    return ",".join(one.removeprefix("tcp:") for one in split(address))


def _records(temp_dir: Path) -> list[SessionRecord]:
    """Return the records of this user's session directories; none if somebody else has made the directory above them."""
    parent = temp_dir / f"shoal-{os.getuid()}"
    try:
        if os.lstat(parent).st_uid != os.getuid():
            return []
    except OSError:
        return []
    return [record for directory in parent.glob("session_*") if (record := read_record(directory)) is not None]


def _parse(text: str) -> TcpAddress:
    try:
        where = parse_address("tcp:" + text.removeprefix("tcp:"))
    except ValueError:
        where = None
    if not isinstance(where, TcpAddress) or not where.port:
        raise ValueError("it is no address. Give HOST:PORT of the control store, for example 10.0.0.1:6379 or [fd00::1]:6379.")
    return where


def _is_same(where: TcpAddress, address: str) -> bool:
    other = parse_address(address)
    if not isinstance(other, TcpAddress) or other.port != where.port:
        return False
    return bool(_addresses_of(where.host) & _addresses_of(other.host))


def _addresses_of(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return {host}
