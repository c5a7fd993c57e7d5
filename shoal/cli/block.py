"""``shoal start --block``: stay until the node ends or a signal comes, then end what was started.

SIGTERM ─ other nodes? ─ the node leaves in good order, DRAIN_S at most ─┬─▶ stop
a second SIGTERM, or SIGINT ─────────────────────────────────────────────┘
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from shoal._core.process.session import SessionRecord

#: Seconds that a node has to leave in good order, when it is asked to by SIGTERM: those that Kubernetes gives by default.
DRAIN_S = 30.0
#: Seconds until a control store that does not answer is not waited for.
_ASK_S = 5.0
#: Seconds after its deadline that a node has to end.
_SLACK_S = 8.0
#: Seconds that the processes have to end when they are asked to.
_GRACE_S = 30.0


def block(node: SessionRecord, *, head: bool) -> None:
    """Return when all has ended that was asked to. ClickException: the node has ended by itself."""
    from shoal._core.process.discovery import is_same_cluster, live_records
    from shoal._core.process.stopping import stop

    with end_signals() as signals:
        try:
            pidfd = os.pidfd_open(node.pid)
        except ProcessLookupError:
            raise click.ClickException(f"The node (pid {node.pid}) has ended. Its logs are in {node.session_dir}/logs.") from None
        try:
            asked = wait_for_signal(signals, pidfd, None)
            if asked == signal.SIGTERM and _drain(node):
                wait_for_signal(signals, pidfd, DRAIN_S + _SLACK_S)
            mine = [
                record
                for record in live_records()
                if record.pid == node.pid
                or (head and record.part == "control store" and is_same_cluster(record.control_address, node.control_address))
            ]
            stop(mine, _GRACE_S)
        finally:
            os.close(pidfd)
    if not asked:
        raise click.ClickException(f"The node (pid {node.pid}) has ended unexpectedly. Its logs are in {node.session_dir}/logs.")


def _drain(node: SessionRecord) -> bool:
    """Ask the node to leave in good order; return whether there is something to wait for."""
    from shoal._core.process.asking import ask
    from shoal._core.process.session import open_session
    from shoal._core.transport.errors import RequestFailed
    from shoal._core.wire.messages import DRAIN_PREEMPTION, Ack, DrainNode, ListNodes, NodeList

    session = open_session(node.session_dir)
    try:
        nodes = ask(node.control_address, session.tokens(), ListNodes(0, fresh=False), NodeList, timeout_s=_ASK_S).nodes
        mine = next((one for one in nodes if one.alive and one.address == session.agent_address), None)
        if mine is None or not any(one.takes_work for one in nodes if one is not mine):
            return False
        drain = DrainNode(0, mine.node_id, DRAIN_PREEMPTION, "it was asked to end by SIGTERM", DRAIN_S)
        ask(node.control_address, session.tokens(), drain, Ack, timeout_s=_ASK_S)
    except (OSError, RequestFailed) as error:
        click.echo(f"The node ends without leaving the cluster in good order: {error}", err=True)
        return False
    return True


@contextmanager
def end_signals() -> Iterator[int]:
    """Have SIGTERM and SIGINT arrive as bytes at the descriptor that is yielded."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous_wakeup = signal.set_wakeup_fd(writing)
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(previous_wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def wait_for_signal(signals: int, pidfd: int, timeout_s: float | None) -> int:
    """Return the signal that has come to ``signals`` (of ``end_signals``); 0: the process has ended, or time is up. Blocks."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = {descriptor for descriptor, _ in poll.poll(left)}
        if signals in ready:
            for number in os.read(signals, 1):
                if number in (signal.SIGTERM, signal.SIGINT):
                    return number
        elif pidfd in ready or (deadline is not None and not ready):
            return 0
