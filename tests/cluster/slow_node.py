"""A composition for ``HeadOptions.composition``: a node whose loop is busy for a while with one step of Python code."""

from __future__ import annotations

import time

from shoal._core.process.composition import HeadParts
from shoal._core.process.composition import compose as compose_usual
from shoal._core.process.serving import HeadContext

BUSY_S = 5.0


async def compose(context: HeadContext) -> HeadParts:
    parts = await compose_usual(context)
    context.loop.call_later(0.5, _compute)
    return parts


def _compute() -> None:
    until = time.monotonic() + BUSY_S
    while time.monotonic() < until:
        sum(range(1000))
