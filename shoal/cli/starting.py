"""What the commands that start something have in common: control stores and nodes as daemons, which live on when this process ends."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import click

from .node_options import read_options

if TYPE_CHECKING:
    from shoal._base.storage_place import StoragePlace
    from shoal._core.process.options import ControlOptions, HeadOptions
    from shoal._core.process.session import SessionRecord


def control_options(node_ip: str, port: int, node: HeadOptions, place: StoragePlace) -> ControlOptions:
    """Return the options of a control store beside this node. OSError: it could not listen there."""
    from shoal._core.process.options import ControlOptions
    from shoal._core.transport.addresses import TcpAddress

    _check_free(node_ip, port)
    return ControlOptions(listen=str(TcpAddress(node_ip, port)), storage=place, temp_dir=node.temp_dir, settings=node.settings)


def start_standby(options: ControlOptions) -> SessionRecord:
    """Start a control store that takes over when the one that leads is gone; return its record when it stands by. UsageError: no etcd."""
    from shoal._base.auth_token import find_token
    from shoal._core.process.start import start_control_store

    if options.storage.kind != "etcd":
        raise click.UsageError(
            "A standby shares its tables with the control store that leads: give the same --storage=etcd://... as there."
        )
    options.standby = True
    control = start_control_store(options, find_token().encode(), daemon=True)
    control.abandon()
    return control.session.read_record()


def start_cluster(control_options: ControlOptions, node_options: HeadOptions) -> SessionRecord:
    """Start a control store and its node, both or neither; return the node's record when it serves."""
    from shoal._base.auth_token import make_token
    from shoal._core.process.start import start_first_node

    control, node = start_first_node(control_options, node_options, make_token().encode(), daemon=True)
    control.abandon()
    node.abandon()
    return node.session.read_record()


def join(address: str, given: dict[str, Any]) -> SessionRecord:
    """Start a node of the cluster whose control store is at HOST:PORT; return its record when it has joined.

    ``given``: the values of ``node_options``. Raises what ``ask`` raises if no control store of this user's cluster is there.
    """
    from shoal._base.auth_token import find_token
    from shoal._base.settings import read_environment
    from shoal._core.process.asking import ask
    from shoal._core.process.discovery import clusters, live_records, resolve
    from shoal._core.process.start import start_head
    from shoal._core.transport.trust import Tokens
    from shoal._core.wire.messages import Ack, Ping

    control_address = resolve(address, clusters(live_records()))
    token = find_token().encode()
    ask(control_address, Tokens(token), Ping(0), Ack)
    options = read_options(given, given["node_ip_address"] or _address_towards(control_address), read_environment())
    options.control_address, options.is_head = control_address, False
    node = start_head(options, token, daemon=True)
    node.abandon()
    return node.session.read_record()


def _check_free(ip: str, port: int) -> None:
    """Say it here if the port is taken or the address is another machine's, with what to do about it."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise OSError(f"{ip} is no address of this machine. Give one that is as --node-ip-address.") from None
            raise OSError(
                f"The control store cannot listen on {ip}:{port}: {error.strerror}. Another cluster may run there ('shoal status'); give "
                "another --port, or 0 for a free one."
            ) from None


def _address_towards(control_address: str) -> str:
    """Return this machine's address on the way to the control store. Nothing is sent."""
    from shoal._core.control_link.addresses import split
    from shoal._core.transport.addresses import TcpAddress, parse_address

    where = parse_address(split(control_address)[0])
    assert isinstance(where, TcpAddress)
    family, _, _, _, place = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])
