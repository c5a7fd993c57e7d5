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
    from shoal._core.process.discovery import clusters, is_same_cluster, live_records, resolve
    from shoal._core.process.session import SessionRecord
    from shoal._core.process.stopping import stop as stop_processes

    records = live_records()
    if address:
        control_address = resolve(address, clusters(records))
        records = [record for record in records if is_same_cluster(record.control_address, control_address)]
    if session:
        records = [record for record in records if _name(record) == session]
    if (address or session) and not records:
        there = ", ".join(map(_name, live_records())) or "none"
        raise click.ClickException(f"Nothing of {address or session} runs on this machine. Sessions that do: {there}.")

    def stopped(record: SessionRecord, killed: bool) -> None:
        click.echo(f"{record.part} {_name(record)} (pid {record.pid}): {'killed' if killed else 'ended'}", err=True)

    count = stop_processes(records, 0 if force else grace_period, on_stopped=stopped)
    click.echo(f"Stopped all {count} shoal processes." if count else "Did not find any active shoal processes.")


def _name(record: object) -> str:
    from pathlib import Path

    return Path(record.session_dir).resolve().name  # type: ignore[attr-defined]
