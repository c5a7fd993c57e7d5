"""``shoal stop``."""

from __future__ import annotations

import click


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill at once (SIGKILL), without time to end in good order.")
@click.option(
    "-g", "--grace-period", type=click.FloatRange(min=0), default=16.0, show_default=True, help="Seconds until what still runs is killed."
)
@click.option("--address", metavar="HOST:PORT", help="Stop the nodes of this machine that belong to this cluster, and no others.")
@click.option("--session", metavar="NAME", help="Stop what runs in this session directory, and nothing else.")
def stop(force: bool, grace_period: float, address: str | None, session: str | None) -> None:
    """Stop all that this user has started on this machine: nodes, control stores, and the sessions of drivers.

    Other users' clusters are never touched.
    """
    from shoal._core.process.discovery import clusters, dead_control_stores, is_same_cluster, live_records, resolve
    from shoal._core.process.session import SessionRecord, open_session
    from shoal._core.process.stopping import stop as stop_processes

    control_address = resolve(address, clusters(live_records())) if address else ""

    def meant(record: SessionRecord) -> bool:
        if control_address and not is_same_cluster(record.control_address, control_address):
            return False
        return not session or _name(record) == session

    def stopped(record: SessionRecord, killed: bool) -> None:
        click.echo(f"{record.part} {_name(record)} (pid {record.pid}): {'killed' if killed else 'ended'}", err=True)

    count = 0
    # Again: a control store that had died may have been on its way back.
    while records := list(filter(meant, live_records())):
        count += stop_processes(records, 0 if force else grace_period, on_stopped=stopped)
    if not count and (address or session):
        there = ", ".join(map(_name, live_records())) or "none"
        raise click.ClickException(f"Nothing of {address or session} runs on this machine. Sessions that do: {there}.")
    for record in filter(meant, dead_control_stores()):
        if not any(is_same_cluster(record.control_address, living.control_address) for living in live_records()):
            open_session(record.session_dir).remove()
    click.echo(f"Stopped all {count} shoal processes." if count else "Did not find any active shoal processes.")


def _name(record: object) -> str:
    from pathlib import Path

    return Path(record.session_dir).resolve().name  # type: ignore[attr-defined]
