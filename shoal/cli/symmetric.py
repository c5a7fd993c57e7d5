"""``shoal symmetric-run``: one command line for all machines of a job; the one that owns the address becomes the head."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .block import end_signals, wait_for_signal
from .node_options import node_options, read_options
from .starting import control_options, join, start_cluster

if TYPE_CHECKING:
    from shoal._core.process.session import SessionRecord

_STEP_S = 0.1
#: Seconds between two questions whether the head is still there, and until one counts as not answered.
_LOOK_S, _ANSWER_S = 1.0, 2.0
#: Seconds that the processes have to end when they are asked to.
_GRACE_S = 16.0
#: Seconds that a machine waits for the head to come up, and the head for the others.
_PATIENCE_S = 300.0


@click.command("symmetric-run", context_settings={"ignore_unknown_options": False})
@click.option(
    "--address", metavar="HOST:PORT", required=True, help="Where the head's control store is to listen: an address of one of the machines."
)
@click.option(
    "--min-nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes that must be there before the command runs."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=_PATIENCE_S,
    show_default=True,
    help="Seconds to wait for the head, or for the nodes.",
)
@node_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def symmetric_run(address: str, min_nodes: int, timeout: float, command: tuple[str, ...], **given: Any) -> None:
    """Run the same line on every machine: the head waits for the nodes and runs COMMAND, the others serve until it has ended.

    Leaves with the exit status of COMMAND.

    Example: shoal symmetric-run --address 10.0.0.1:6379 --min-nodes 4 -- python train.py
    """
    from shoal._core.process.discovery import resolve
    from shoal._core.transport.addresses import TcpAddress, parse_address

    where = parse_address(resolve(address, []))
    assert isinstance(where, TcpAddress)
    places = {str(found[4][0]) for found in socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)}
    if min_nodes > 1 and all(place == "::1" or place.startswith("127.") for place in places):
        raise click.UsageError(
            f"{address} is this machine's own loopback, which no other machine can reach, and --min-nodes is {min_nodes}."
        )
    mine = next((place for place in sorted(places) if _is_mine(place)), None)
    if mine is not None:
        raise click.exceptions.Exit(_lead(mine, where.port, min_nodes, timeout, list(command), given))
    follow(str(where), timeout, given)


def _lead(ip: str, port: int, min_nodes: int, timeout_s: float, command: list[str], given: dict[str, Any]) -> int:
    """Be the head: wait for the nodes, run the command, end the cluster. Returns the command's exit status."""
    from shoal._base.settings import read_environment
    from shoal._base.storage_place import StoragePlace
    from shoal._core.process.discovery import is_same_cluster, live_records, spell
    from shoal._core.process.stopping import stop

    options = read_options(given, given["node_ip_address"] or ip, read_environment())
    node = start_cluster(control_options(ip, port, options, StoragePlace()), options)
    try:
        _wait_for_nodes(node.control_address, min_nodes, timeout_s)
        click.echo(f"{min_nodes} nodes are there. Running: {' '.join(command)}", err=True)
        process = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": spell(node.control_address)}, check=False)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode
    finally:
        stop([record for record in live_records() if is_same_cluster(record.control_address, node.control_address)], _GRACE_S)


def follow(control_address: str, timeout_s: float, given: dict[str, Any]) -> None:
    """Be one of the others: join when the head is there, serve until it has gone, or SIGTERM or SIGINT comes. Blocks until then.

    Raises ConnectionError: the head did not come up within ``timeout_s``; ClickException: the node has ended, and the head has not.
    """
    from shoal._base.settings import read_environment
    from shoal._core.process.discovery import live_records, spell
    from shoal._core.process.stopping import stop

    limit_s, is_silent = read_environment().node_timeout_s, False
    deadline = time.monotonic() + timeout_s
    while (problem := _problem(control_address)) is not None:
        if time.monotonic() > deadline:
            raise ConnectionError(f"The head at {spell(control_address)} did not come up within {timeout_s:g} s: {problem}")
        time.sleep(_STEP_S)
    with end_signals() as signals:
        node = join(spell(control_address), given)
        click.echo(f"Joined {spell(control_address)}; serving until the head ends.", err=True)
        pidfd = os.pidfd_open(node.pid)
        try:

            def goes_on() -> bool:
                return not wait_for_signal(signals, pidfd, _LOOK_S) and node.is_running()

            def answers() -> bool:
                nonlocal is_silent
                was_silent, is_silent = is_silent, not _answers(node)
                if is_silent and not was_silent:
                    click.echo(f"The head does not answer. This machine waits {limit_s:g} s for it.", err=True)
                return not is_silent

            serve_until_silent(answers, goes_on, limit_s)
            ended_alone = not node.is_running()
        finally:
            os.close(pidfd)
            stop([record for record in live_records() if record.pid == node.pid], _GRACE_S)
    if ended_alone:
        raise click.ClickException(f"The node (pid {node.pid}) has ended before the head. Its logs are in {node.session_dir}/logs.")


def serve_until_silent(
    answers: Callable[[], bool], goes_on: Callable[[], bool], limit_s: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Return when the head has not answered for ``limit_s``, or ``goes_on``, which waits a while between two questions, says no.

    One question without an answer says nothing: a control store that died is started again, or another one takes over.
    """
    from shoal._core.transport.silence import Silence

    silence = Silence(limit_s, _LOOK_S + _ANSWER_S)
    silence.hear(b"head", clock())
    while goes_on():
        if answers():
            silence.hear(b"head", clock())
        if silence.look(clock()):
            return


def _answers(node: SessionRecord) -> bool:
    """Whether one of the cluster's control stores answers, by the addresses and the token that the node knows now."""
    from shoal._core.process.asking import ask
    from shoal._core.process.session import open_session
    from shoal._core.transport.errors import RequestFailed
    from shoal._core.wire.messages import Ack, Ping

    session = open_session(node.session_dir)
    try:
        ask(session.read_record().control_address, session.tokens(), Ping(0), Ack, timeout_s=_ANSWER_S)
    except (OSError, RequestFailed):  # whatever it is, it will pass, or be the end
        return False
    return True


def _problem(control_address: str) -> str | None:
    """Ask the control store for a sign of life; return what is wrong, None if nothing is. What waiting does not help is raised."""
    from shoal._base.auth_token import find_token
    from shoal._core.process.asking import ask
    from shoal._core.transport.errors import HandshakeError, HandshakeTimeout
    from shoal._core.transport.trust import Tokens
    from shoal._core.wire.messages import Ack, Ping

    try:
        ask(control_address, Tokens(find_token().encode()), Ping(0), Ack)
    except HandshakeTimeout as error:
        return str(error)
    except HandshakeError:
        raise
    except OSError as error:  # nobody listens yet, or it did not answer in time
        return str(error)
    return None


def _wait_for_nodes(control_address: str, count: int, timeout_s: float) -> None:
    from shoal._base.auth_token import find_token
    from shoal._core.process.asking import ask
    from shoal._core.transport.trust import Tokens
    from shoal._core.wire.messages import ListNodes, NodeList

    deadline = time.monotonic() + timeout_s
    while True:
        nodes = ask(control_address, Tokens(find_token().encode()), ListNodes(0, fresh=False), NodeList).nodes
        alive = sum(node.alive for node in nodes)
        if alive >= count:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{alive} of {count} nodes were there after {timeout_s:g} s. Run the same command on the other machines.")
        time.sleep(_STEP_S)


def _is_mine(ip: str) -> bool:
    """Return whether this machine has the address: it can be bound to."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
