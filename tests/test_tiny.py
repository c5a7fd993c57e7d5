"""The whole product in a few seconds, without fixtures: the first thing to run."""

from __future__ import annotations

import pytest

import shoal


@shoal.remote
def square(x: int) -> int:
    return x * x


@shoal.remote
class Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, x: int) -> int:
        self.total += x
        return self.total


@pytest.mark.cluster
def test_tasks_actors_and_objects():
    with shoal.init(num_cpus=2, log_to_driver=False):
        squares = [square.remote(i) for i in range(100)]
        assert shoal.get(squares) == [i * i for i in range(100)]
        counter = Counter.remote()
        for ref in squares:
            counter.add.remote(ref)
        assert shoal.get(counter.add.remote(0)) == sum(i * i for i in range(100))
        big = shoal.put(bytes(1_000_000))
        assert shoal.get(square.remote(shoal.get(shoal.put(3)))) == 9
        assert len(shoal.get(big)) == 1_000_000
    assert not shoal.is_initialized()
