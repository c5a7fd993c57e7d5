"""``shoal start``: a control store and a node, or a node that joins.

--head      token (made the first time) ─ control store ─ node ─ next steps
--standby   token ─ a control store that takes over when the one that leads is gone; no node
--address   token ─ ask the control store, so that a wrong port or token is told at once ─ node ─ next steps
--block     the same, and stay until the node ends, or a signal asks to end it
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from .block import block as block_until_end
from .node_options import node_options, read_options
from .starting import control_options, join, start_cluster, start_standby

if TYPE_CHECKING:
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
        control = control_options(node_ip, DEFAULT_PORT if port is None else port, options, read_storage_place(storage, os.environ))
        started = start_standby(control) if standby else start_cluster(control, options)
    else:
        started = join(str(address), given)
    click.echo(_standby_steps(started) if standby else _next_steps(started, head=head))
    if block:
        block_until_end(started, head=head)


def _next_steps(node: SessionRecord, *, head: bool) -> str:
    from shoal._core.process.discovery import spell
    from shoal._core.transport.addresses import is_loopback

    address = spell(node.control_address)
    lines = [f"Local node IP: {node.node_ip}", "", "shoal runs." if head else f"This machine has joined the cluster at {address}.", ""]
    if head and is_loopback(node.node_ip):
        lines += ["To add a node on this machine:", f"  shoal start --address='{address}'", ""]
        lines += ["For other machines to join, start it with an address that they reach:", "  shoal start --head --node-ip-address=IP", ""]
    elif head:
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
