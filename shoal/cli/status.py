"""``shoal status`` and ``shoal health-check``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from .place import address_option, ask

if TYPE_CHECKING:
    from shoal._core.wire.messages import Demand, GroupDemand, NodeRecord

_RULE = "-" * 63
_BYTES = ("memory", "object_store_memory")


@click.command()
@address_option
@click.option("-v", "--verbose", is_flag=True, help="Also what each node has and uses.")
def status(address: str | None, verbose: bool) -> None:
    """Show the cluster's nodes, what they have, what is in use, and what waits for it."""
    from shoal._core.wire.messages import ListNodes, NodeList

    found = ask(address, ListNodes(0, fresh=True, demands=True), NodeList)
    click.echo("\n".join(render(found.nodes, time.time(), found.demands, found.groups, verbose=verbose)))


@click.command("health-check")
@address_option
@click.option("--component", help="Accepted for Ray's sake: the control store is what is asked.", hidden=True)
@click.option("--timeout", type=click.FloatRange(min=0.01), default=5.0, show_default=True, help="Seconds to wait for the answer.")
def health_check(address: str | None, component: str | None, timeout: float) -> None:
    """Leave with exit status 0 if the cluster's control store answers, with 1 if not."""
    from shoal._core.wire.messages import Ack, Ping

    ask(address, Ping(0), Ack, timeout_s=timeout)


def render(
    nodes: Iterable[NodeRecord],
    now: float,
    demands: Iterable[Demand] = (),
    groups: Iterable[GroupDemand] = (),
    *,
    verbose: bool = False,
) -> list[str]:
    """Return the lines of the report. Pure; ``now``: seconds since the epoch."""
    nodes = list(nodes)
    alive = [node for node in nodes if node.alive]
    idle = [node for node in alive if not _used(node)]
    failed = [node for node in nodes if not node.alive and node.death_reason and not node.draining]
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
    lines = [f"======== Autoscaler status: {stamp} ========", "Node status", _RULE]
    lines += _section("Active", [f" 1 {_name(node)}{_leaves(node, now)}" for node in alive if node not in idle], " (no active nodes)")
    lines += _section("Idle", [f" 1 {_name(node)}{_leaves(node, now)}" for node in idle], " (no idle nodes)")
    lines += _section("Pending", [], " (no pending nodes)")
    lines += _section("Recent failures", [f" {_name(node)}: {node.death_reason}" for node in failed], " (no failures)")
    lines += ["", "Resources", _RULE, *_section("Total Usage", _usage(alive), " (no resources)")]
    lines += ["", *_section("From request_resources", [], " (none)")]
    waiting = [f" {_demand(one)}: {one.count}+ pending tasks/actors" for one in demands]
    waiting += [f" {_bundles(one)} ({one.strategy}): {one.count}+ pending placement groups" for one in groups]
    lines += _section("Pending Demands", waiting, " (no resource demands)")
    if verbose:
        for node in alive:
            lines += [
                "",
                f"Node: {_name(node)} {node.endpoint.removeprefix('tcp:')}".rstrip(),
                *_section(" Usage", _usage([node]), "  (nothing)"),
            ]
    return lines


def _demand(demand: Demand) -> str:
    selector = dict(demand.label_selector)
    return f"{_floats(demand.resources)}" + (f" where {selector}" if selector else "")


def _bundles(group: GroupDemand) -> str:
    """Return ``{'CPU': 1.0} * 2, {'GPU': 1.0} * 1``."""
    counts: dict[str, int] = {}
    for bundle in group.bundles:
        text = str(_floats(bundle))
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(f"{text} * {count}" for text, count in counts.items())


def _floats(resources: Iterable[tuple[str, int]]) -> dict[str, float]:
    return {name: amount / 10_000 for name, amount in resources}


def _section(title: str, lines: list[str], otherwise: str) -> list[str]:
    return [f"{title}:", *(lines or [otherwise])]


def _name(node: NodeRecord) -> str:
    return f"node_{node.node_id.hex()}" + (f" ({node.name})" if node.name and node.name != node.ip else "")


def _leaves(node: NodeRecord, now: float) -> str:
    return f" leaves within {max(0.0, node.leaves_at - now):.0f} s ({node.draining})" if node.draining else ""


def _used(node: NodeRecord) -> dict[str, int]:
    return {name: total - node.available.get(name, 0) for name, total in node.total.items() if total > node.available.get(name, 0)}


def _usage(nodes: list[NodeRecord]) -> list[str]:
    """Return one line per resource: used and total, over all nodes. What only names a node is left out."""
    total: dict[str, int] = {}
    used: dict[str, int] = {}
    for node in nodes:
        for name, amount in node.total.items():
            if not name.startswith("node:"):
                total[name] = total.get(name, 0) + amount
        for name, amount in _used(node).items():
            used[name] = used.get(name, 0) + amount
    return [f" {_amount(name, used.get(name, 0))}/{_amount(name, total[name])} {name}" for name in sorted(total)]


def _amount(name: str, fixed: int) -> str:
    amount = fixed / 10_000
    if name not in _BYTES:
        return f"{amount:g}" if amount % 1 else f"{amount:.1f}"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if amount >= size:
            return f"{amount / size:.2f}{unit}"
    return f"{amount:.0f}B"
