"""A head with its tables in etcd and a standby, from a shell; the user's password stays out of sight."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from etcd_server import SAFETY_S, unique_prefix

from shoal._core.process.discovery import live_records
from shoal.testing import wait_for
from tests.cluster.test_cli import SMALL, head, shell, short_path  # noqa: F401  fixtures

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


def control_stores(shell):  # noqa: F811
    return [record for record in live_records(shell.tmp) if record.part == "control store"]


def test_head_standby_takeover_stop(shell, etcd):  # noqa: F811
    storage = etcd.url + unique_prefix()
    access = {"SHOAL_ETCD_USER": "", "SHOAL_ETCD_PASSWORD": "unguessable", "SHOAL_LEADER_LEASE_S": "2"}
    address = head(shell, "--storage", storage, **access)
    assert "Standing by at" in shell("start", "--head", "--standby", "--port", "0", "--storage", storage, **access)
    leader, standby = control_stores(shell)
    assert leader.control_address == f"tcp:{address}"
    for record in live_records(shell.tmp):
        seen = Path(f"/proc/{record.pid}/cmdline").read_bytes() + Path(f"/proc/{record.pid}/environ").read_bytes()
        assert b"unguessable" not in seen
    both = f"{address},{standby.control_address.removeprefix('tcp:')}"
    assert shell("health-check", "--address", both) == ""
    wait_for(
        lambda: [one.control_address for one in live_records(shell.tmp) if one.part == "node" and "," in one.control_address],
        SAFETY_S,
        "the word of the standby",
    )
    # The node restarts the control store beside it, unless that is stopped for good: its machine is gone.
    os.kill(leader.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: _answers(shell, standby.control_address.removeprefix("tcp:")), SAFETY_S, "the standby's first answer")
        assert shell("health-check", "--address", both) == ""
        assert shell("health-check") == "", "the node has written down where else to look"
    finally:
        os.kill(leader.pid, signal.SIGCONT)
    assert shell("status", "--address", both).count(" 1 node_") == 1
    assert "Stopped all 3 shoal processes" in shell("stop")


def _answers(shell, address):  # noqa: F811
    try:
        shell("health-check", "--address", address)
    except AssertionError:
        return False
    return True


def test_a_standby_needs_etcd_and_the_clusters_token(shell, etcd):  # noqa: F811
    assert "give the same --storage=etcd://" in shell("start", "--head", "--port=0", "--standby", status=2)
    wrong = shell("start", "--head", "--port=0", "--standby", f"--storage={etcd.url}/x", *SMALL, status=1)
    assert "token" in wrong
    assert "Traceback" not in wrong
