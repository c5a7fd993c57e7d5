"""Tests start their sessions in a directory of their own: a cluster that runs on this machine is none of theirs, nor they of it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

import pytest


def end_run(signum, _frame):
    """SIGTERM ends the run. With the handler of a session it would end a test, and the run would go on."""
    pytest.exit(f"ended by signal {signum}", returncode=128 + signum)


def pytest_configure(config):
    signal.signal(signal.SIGTERM, end_run)
    os.register_at_fork(
        after_in_child=lambda: signal.getsignal(signal.SIGTERM) is end_run and signal.signal(signal.SIGTERM, signal.SIG_DFL)
    )
    for name in ("SHOAL_ADDRESS", "RAY_ADDRESS", "SHOAL_AUTH_TOKEN", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    config.shoal_dir = tempfile.mkdtemp(prefix="s-", dir="/tmp")  # short: socket paths have 107 bytes, and tests look at them
    os.chmod(config.shoal_dir, 0o755)  # what lies in it protects itself; tests look whether it does
    os.environ["SHOAL_TMPDIR"] = config.shoal_dir
    os.environ["SHOAL_AUTH_TOKEN_PATH"] = f"{config.shoal_dir}/auth_token"


def pytest_sessionfinish(session, exitstatus):
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        shutil.rmtree(session.config.shoal_dir, ignore_errors=True)


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    if os.path.isdir(config.shoal_dir):
        terminalreporter.write_line(f"The logs of the sessions are in {config.shoal_dir}.")
