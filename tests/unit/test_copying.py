"""Large copies: every byte arrives, however many threads share the work."""

from __future__ import annotations

import random

import pytest

from shoal._core.serialization import copying


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("extra", [-1, 0, 1, 12_345])
def test_every_byte_arrives(monkeypatch, threads, extra):
    monkeypatch.setattr(copying, "_THREADS", threads)
    monkeypatch.setattr(copying, "STRIP_BYTES", 1 << 20)
    source = random.Random(threads).randbytes((4 << 20) + extra)
    target = bytearray(len(source) + 2)
    copying.copy_into(memoryview(target)[1:-1], source)
    assert target[0] == target[-1] == 0
    assert target[1:-1] == source


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="equal size"):
        copying.copy_into(memoryview(bytearray(2 << 20)), bytes((2 << 20) + 1))
