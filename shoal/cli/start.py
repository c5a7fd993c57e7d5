"""``shoal start``: a control store and a node, or a node that joins.

--head      token (made the first time) ─ control store ─ node ─ next steps
--standby   token ─ a control store that takes over when the one that leads is gone; no node
--address   token ─ ask the control store, so that a wrong port or token is told at once ─ node ─ next steps
--block     the same, and stay until the node ends, or a signal asks to end it
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import click

from .block import block as block_until_end
from .node_options import node_options, read_options

if TYPE_CHECKING:
    from shoal._base.storage_place import StoragePlace
    from shoal._core.process.options import ControlOptions, HeadOptions
    from shoal._core.process.session import SessionRecord

DEFAULT_PORT = 6379


@click.command()
@click.option("--head", is_flag=True, help="Start a new cluster: its control store and its first node.")
@click.option("--address", metavar="HOST:PORT[,HOST:PORT]", help="Join the cluster whose control store listens there, or at one of these.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=None,
    help=f"The control store's port; 0: a free one. With --head. [default: {DEFAULT_PORT}]",
)
@click.option(
    "--storage",
    metavar="URL",
    help="Where the cluster's tables lie: sqlite:///PATH, with which a later start goes on, or etcd://HOST:PORT[,HOST:PORT]/PREFIX, which "
    "outlives this machine (user and certificates: SHOAL_ETCD_USER, _PASSWORD, _CA, _CERT, _KEY). With --head. "
    "[default: SHOAL_STORAGE, else the session's directory, until 'shoal stop']",
)
@click.option(
    "--standby", is_flag=True, help="Start a control store that takes over when the one that leads is gone. With --head, and etcd."
)
@click.option("--block", is_flag=True, help="Stay in the foreground; SIGTERM lets the node leave in good order, within 30 s.")
@node_options
def start(head: bool, address: str | None, port: int | None, storage: str | None, standby: bool, block: bool, **given: Any) -> None:
    """Start the head of a new cluster on this machine, or a node that joins one."""
    from shoal._base.settings import read_environment
    from shoal._base.storage_place import read_storage_place

    if head == bool(address):
        raise click.UsageError("Give one of --head and --address=HOST:PORT.")
    if address and port is not None:
        raise click.UsageError("--port is the control store's: give it with --head. The node's own is --node-port.")
    if not head and (storage or standby):
        raise click.UsageError("--storage and --standby are the control store's: give them with --head.")
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        click.echo(f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} has no effect: nobody gets in without the token.", err=True)
    settings = read_environment()
    if head:
        node_ip = given["node_ip_address"] or "127.0.0.1"
        options = read_options(given, node_ip, settings)
        control = _control_options(node_ip, DEFAULT_PORT if port is None else port, options, read_storage_place(storage, os.environ))
        started = _start_standby(control) if standby else _start_head(control, options)
    else:
        started = _join(str(address), given)
    click.echo(_standby_steps(started) if standby else _next_steps(started, head=head))
    if block:
        block_until_end(started, head=head)


def _control_options(node_ip: str, port: int, options: HeadOptions, place: StoragePlace) -> ControlOptions:
    from shoal._core.process.options import ControlOptions
    from shoal._core.transport.addresses import TcpAddress

    _check_free(node_ip, port)
    return ControlOptions(listen=str(TcpAddress(node_ip, port)), storage=place, temp_dir=options.temp_dir, settings=options.settings)


def _start_standby(control_options: ControlOptions) -> SessionRecord:
    from shoal._base.auth_token import find_token
    from shoal._core.process.start import start_control_store

    if control_options.storage.kind != "etcd":
        raise click.UsageError(
            "A standby shares its tables with the control store that leads: give the same --storage=etcd://... as there."
        )
    control_options.standby = True
    control = start_control_store(control_options, find_token().encode(), daemon=True)
    control.abandon()
    return control.session.read_record()


def _start_head(control_options: ControlOptions, options: HeadOptions) -> SessionRecord:
    from shoal._base.auth_token import make_token
    from shoal._core.process.start import start_control_store, start_head

    token = make_token().encode()
    control = start_control_store(control_options, token, daemon=True)
    try:
        options.control_address, options.control_session_dir = control.ready.control_address, control.ready.session_dir
        node = start_head(options, token, daemon=True)
    except BaseException:
        control.stop()
        raise
    control.abandon()
    node.abandon()
    return node.session.read_record()


def _join(address: str, given: dict[str, Any]) -> SessionRecord:
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


def _next_steps(node: SessionRecord, *, head: bool) -> str:
    from shoal._core.process.discovery import spell

    address = spell(node.control_address)
    lines = [f"Local node IP: {node.node_ip}", "", "shoal runs." if head else f"This machine has joined the cluster at {address}.", ""]
    if head:
        lines += ["On another machine, to add it:", f"  shoal start --address='{address}'", ""]
    lines += [
        "In Python, on this machine:", "  import shoal", "  shoal.init()", "",
        "To see it:", "  shoal status", "",
        "To end it:", "  shoal stop", "",
        f"Logs: {node.session_dir}/logs",
    ]  # fmt: skip
    return "\n".join(lines)


def _standby_steps(control: SessionRecord) -> str:
    from shoal._core.process.discovery import spell

    lines = [
        f"Standing by at {spell(control.control_address)}, to take over when the control store that leads is gone.", "",
        "To end it:", "  shoal stop", "",
        f"Logs: {control.session_dir}/logs",
    ]  # fmt: skip
    return "\n".join(lines)
