"""A million queued tasks fit in 4 GB of driver memory and finish."""

from __future__ import annotations

import os
import time

import pytest

import shoal
from tests.soak.measures import MIB, SCALE, check_driver, owned_objects, resident_bytes, sample, scaled

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MILLION = scaled(1_000_000, 10_000)
#: For a million, and for their results.
LIMIT_BYTES = int(4e9 * SCALE) + 100 * MIB
CPUS = 2


@shoal.remote
def same(number):
    return number


@shoal.remote
def occupy(gate):
    """Hold a CPU until somebody opens the pipe's other end: unlike a task that waits in ``get``, which lends its CPU."""
    with open(gate) as pipe:
        return pipe.read()


def test_a_million_queued_tasks(soak_session, progress, tmp_path):
    context = soak_session(num_cpus=CPUS)
    assert shoal.get(same.remote(0)) == 0
    before, resident, began = sample(context), resident_bytes(), time.monotonic()
    gates = [tmp_path / f"gate{number}" for number in range(CPUS)]
    for gate in gates:
        os.mkfifo(gate)
    occupied = [occupy.remote(gate) for gate in gates]
    refs = [same.remote(number) for number in range(MILLION)]
    assert owned_objects() == MILLION + CPUS
    queued = resident_bytes() - resident
    progress(f"{MILLION} queued in {time.monotonic() - began:.1f} s: {queued / MIB:.0f} MiB, {queued / MILLION:.0f} B each")
    opened = time.monotonic()
    for gate in gates:
        gate.write_text("open")
    assert sum(shoal.get(refs)) == MILLION * (MILLION - 1) // 2
    assert shoal.get(occupied) == ["open"] * CPUS
    done = resident_bytes() - resident
    rate = MILLION / (time.monotonic() - opened)
    progress(f"all done, {rate:.0f}/s: {done / MIB:.0f} MiB with all results held")
    assert max(queued, done) < LIMIT_BYTES
    del refs, occupied
    after = sample(context)
    progress(f"references dropped: {after}")
    check_driver()
    assert after.owned <= before.owned
    assert after.driver.anonymous_bytes - before.driver.anonymous_bytes < max(queued / 2, 16 * MIB)
