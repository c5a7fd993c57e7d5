"""Which cluster a command is about: ``--address``, else RAY_ADDRESS, else the one that runs on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from shoal._core.transport.trust import Tokens

address_option = click.option(
    "--address", metavar="HOST:PORT", help="The cluster's control store. [default: RAY_ADDRESS, else the cluster on this machine]"
)


def find_cluster(address: str | None) -> tuple[str, Tokens]:
    """Return the control store's transport address and the tokens to use with it.

    Raises:
        ConnectionError: no address is given and none or several clusters run here.
        ValueError: the address is none.
        TokenError: the cluster runs elsewhere, and there is no token for it.
    """
    from shoal._base.auth_token import find_token
    from shoal._core.process.discovery import clusters, live_records, nodes_of, resolve, spell
    from shoal._core.process.session import open_session
    from shoal._core.transport.trust import Tokens

    wanted = address or os.environ.get("SHOAL_ADDRESS") or os.environ.get("RAY_ADDRESS")
    records = live_records()
    known = clusters(records)
    if wanted and wanted != "auto":
        control_address = resolve(wanted, known)
    else:
        started = clusters([record for record in records if record.is_daemon]) or known
        if not started:
            raise ConnectionError(
                "No cluster of this user runs on this machine. Start one with 'shoal start --head', or name one with --address=HOST:PORT."
            )
        if len(started) > 1:
            raise ConnectionError(
                f"{len(started)} clusters run on this machine: {', '.join(map(spell, started))}. Say which one is meant, with "
                "--address=HOST:PORT or in RAY_ADDRESS."
            )
        control_address = started[0]
    nodes = nodes_of(records, control_address)
    return control_address, open_session(nodes[0].session_dir).tokens() if nodes else Tokens(find_token().encode())


def ask(address: str | None, message: Any, reply: Any, timeout_s: float = 5.0) -> Any:
    """Ask the cluster's control store. Raises as ``find_cluster`` and ``process.asking.ask``."""
    from shoal._core.process import asking

    control_address, tokens = find_cluster(address)
    return asking.ask(control_address, tokens, message, reply, timeout_s=timeout_s)
