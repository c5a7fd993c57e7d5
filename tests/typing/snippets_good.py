"""What type checkers infer from the public API. Read by mypy in ``test_typing.py``; never run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

import shoal
from shoal import ObjectRef, ObjectRefGenerator
from shoal.actor import ActorHandle, ActorProxy


@shoal.remote
def length(text: str) -> int:
    return len(text)


@shoal.remote(num_cpus=2)
def double(x: float) -> float:
    return 2 * x


@shoal.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


class Counter:
    def __init__(self, start: int) -> None:
        self.n = start

    def add(self) -> int:
        return self.n


class Plain:
    @shoal.method
    def size(self) -> int:
        return 1

    @shoal.method(num_returns=1)
    def name(self, prefix: str) -> str:
        return prefix + str(self.size())

    @shoal.method
    async def later(self) -> bytes:
        return b""


assert_type(length.remote("a"), ObjectRef[int])
assert_type(double.remote(1.0), ObjectRef[float])
assert_type(length.options(num_cpus=1).remote("a"), ObjectRef[int])
assert_type(count.remote(3), ObjectRefGenerator[int])
assert_type(shoal.get(length.remote("a")), int)
assert_type(shoal.get([length.remote("a")]), list[int])
assert_type(shoal.put("x"), ObjectRef[str])
assert_type(next(count.remote(1)), ObjectRef[int])


async def wait() -> None:
    assert_type(await length.remote("a"), int)


handle = shoal.remote(Counter).remote(1)
ready, rest = shoal.wait([length.remote("a")])
assert_type(ready, list[ObjectRef[int]])
shoal.kill(handle)
shoal.get(handle.add.remote())


assert_type(handle, ActorHandle[Counter])


def use(proxy: ActorProxy[Plain], plain: ActorHandle[Plain]) -> None:
    shoal.get(proxy.size.remote())
    shoal.kill(plain)


pair: list[ObjectRef[int]] = [length.remote("a"), length.remote("b")]
