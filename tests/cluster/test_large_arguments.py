"""Arguments too large for a message become objects, which only the call holds."""

from __future__ import annotations

import numpy as np
import pytest

import shoal

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60), pytest.mark.usefixtures("session")]


@shoal.remote
def length(value):
    return len(value)


@shoal.remote
class Keeper:
    def __init__(self, value):
        self.size = len(value)

    def length(self, value):
        return self.size, len(value)


class PutsWhilePickled:
    """Pickled as a reference that is made on the way."""

    def __reduce__(self):
        return _Got, (shoal.put(np.zeros(100_000)),)


class _Got:
    def __init__(self, ref):
        self.ref = ref

    def __len__(self):
        return len(shoal.get(self.ref))


@pytest.mark.parametrize("value", [b"x" * 300_000, "y" * 300_000, list(range(200_000))], ids=["bytes", "text", "list"])
def test_arguments_of_tasks_and_actors(value):
    n = len(value)
    assert shoal.get([length.remote(value) for _ in range(5)]) == [n] * 5
    keeper = Keeper.remote(value)
    assert shoal.get(keeper.length.remote(value)) == (n, n)


def test_reference_made_while_the_argument_is_pickled():
    assert shoal.get([length.remote(PutsWhilePickled()) for _ in range(5)], timeout=30) == [100_000] * 5
