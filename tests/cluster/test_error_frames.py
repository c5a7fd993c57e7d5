"""Errors that come from the I/O thread hold the frames that they pass, and nothing may hold them in turn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest

import shoal
from shoal._base import runtime as holder
from shoal._core.transport.errors import RequestFailed
from shoal.testing import leak_check

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]


class Local:
    """Something in a caller's frame."""


def refused():
    future = asyncio.get_running_loop().create_future()
    future.set_exception(RequestFailed("OutOfDiskError", "of the test"))
    return future


def test_an_error_from_the_io_thread_keeps_nothing_of_the_frames_that_it_passed():
    """Not until the collector runs: it may be the references inside of a value for which the store had no room (fault seed 7281)."""
    seen = []

    def ask():
        local = Local()
        seen.append(weakref.ref(local))
        holder.current().bridge.call(refused)

    with leak_check(), shoal.init(num_cpus=1, object_store_memory=100 << 20):
        gc.disable()
        try:
            with contextlib.suppress(RequestFailed):
                ask()
            assert seen[0]() is None
        finally:
            gc.enable()
