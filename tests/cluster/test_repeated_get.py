"""A stored object that this process reads already is read again without asking the store."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import shoal
from shoal._base import runtime

pytestmark = pytest.mark.cluster


def test_many_threads_read_and_drop_one_object_and_no_pin_is_left(session):
    ref = shoal.put(np.arange(1 << 20))
    wrong: list[int] = []

    def read() -> None:
        for _ in range(2_000):
            value = shoal.get(ref)
            if value[12345] != 12345:
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    # A question to the node agent comes back after the releases that were queued before it.
    shoal.get(shoal.put(np.zeros(1 << 18)))
    current = runtime.current()
    current.bridge.call(lambda: current.core.store.pin([]))
    assert current.core.store.held() <= 1
