"""``shoal drain-node``: a node leaves in good order."""

from __future__ import annotations

import click

from .place import address_option, ask

#: Ray's names of the reasons.
_REASONS = {"DRAIN_NODE_REASON_IDLE_TERMINATION": "idle termination", "DRAIN_NODE_REASON_PREEMPTION": "preemption"}
#: Seconds to wait for the node's answer.
_TIMEOUT_S = 10.0


@click.command("drain-node", hidden=True)
@address_option
@click.option("--node-id", metavar="HEX", required=True, help="The node, as 'shoal status' and shoal.nodes() name it.")
@click.option(
    "--reason",
    type=click.Choice(list(_REASONS)),
    required=True,
    help="IDLE_TERMINATION is refused unless the node is idle; PREEMPTION never is.",
)
@click.option("--reason-message", metavar="TEXT", required=True, help="Why, for people.")
@click.option(
    "--deadline-remaining-seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds after which what still runs there is killed. Asked again, the deadline can only come forward.",
)
def drain_node(address: str | None, node_id: str, reason: str, reason_message: str, deadline_remaining_seconds: float) -> None:
    """Let a node leave: no new work, running tasks finish, actors and objects move to other nodes.

    Leaves with exit status 0 when it has begun, with 1 and a line that says why when it is refused. Does not wait for the end.
    """
    from shoal._base.ids import NODE_BYTES
    from shoal._core.transport.errors import RequestFailed
    from shoal._core.wire.messages import Ack, DrainNode

    try:
        wanted = bytes.fromhex(node_id)
    except ValueError:
        wanted = b""
    if len(wanted) != NODE_BYTES:
        raise click.BadParameter(f"{node_id!r} is no node id: it has {2 * NODE_BYTES} hexadecimal digits.", param_hint="--node-id")
    try:
        message = DrainNode(0, wanted, _REASONS[reason], reason_message, deadline_remaining_seconds)
        ask(address, message, Ack, timeout_s=_TIMEOUT_S)
    except RequestFailed as error:
        raise click.ClickException(error.message) from None
