"""Tests with a real etcd, which they start themselves: skipped, with the reason, where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# What these tests share.
sys.path.insert(0, str(Path(__file__).parent))

from etcd_server import MISSING, running_etcd


@pytest.fixture(scope="session")
def etcd(tmp_path_factory):
    """One member, for all tests that leave it running and keep to a prefix of their own."""
    if MISSING:
        pytest.skip(MISSING)
    with running_etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture
def own_etcd(tmp_path):
    """One member for a test that kills it."""
    if MISSING:
        pytest.skip(MISSING)
    with running_etcd(tmp_path) as running:
        yield running
