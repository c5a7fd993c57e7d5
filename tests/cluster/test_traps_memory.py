"""What values and queued tasks cost in memory: readers share one copy, and a waiting task is a small record that goes away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shoal

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

REPOSITORY = Path(__file__).parents[2]
ARRAY_BYTES = 200 << 20
PATIENCE_S = 60


@shoal.remote(num_cpus=0)
class Reader:
    """Holds an array and has looked at every page of it."""

    def __init__(self):
        self.array = np.zeros(1)
        self.array.sum()

    def read(self, array):
        self.array = array
        return float(array.sum())

    def memory(self):
        """Bytes of this process that no other shares: (written pages, anonymous memory)."""
        return private_dirty(), anonymous()


def private_dirty():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) << 10


def anonymous():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def test_four_readers_share_one_array(fresh_session):
    """Each adds less than a tenth of the array to what it alone occupies; so does the driver, which made and reads it."""
    fresh_session(num_cpus=1, object_store_memory=ARRAY_BYTES + (100 << 20))
    readers = [Reader.remote() for _ in range(4)]
    shoal.get([reader.read.remote(np.ones(100_000)) for reader in readers], timeout=PATIENCE_S)
    before = shoal.get([reader.memory.remote() for reader in readers], timeout=PATIENCE_S)
    ref = shoal.put(np.ones(ARRAY_BYTES // 8))
    mine = anonymous()
    array = shoal.get(ref)
    assert array.sum() == ARRAY_BYTES / 8
    sums = shoal.get([reader.read.remote(ref) for reader in readers], timeout=PATIENCE_S)
    assert sums == [ARRAY_BYTES / 8] * 4
    after = shoal.get([reader.memory.remote() for reader in readers], timeout=PATIENCE_S)
    added = [(now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True)]
    assert max(max(each) for each in added) < ARRAY_BYTES / 10, added
    assert anonymous() - mine < ARRAY_BYTES / 10


#: Queues 50,000 tasks behind one that waits, twice, and prints: bytes per task; bytes that the second round added; records left.
QUEUE = """
import gc, os, sys, time
import shoal
from shoal._base import runtime as holder
from shoal._core.worker.records import TaskRecord

COUNT = 50_000

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon:"))

@shoal.remote(num_cpus=1)
def wait_for_word(path):
    open(path).read()
    return -1

@shoal.remote(num_cpus=1)
def number(x):
    return x

shoal.init(num_cpus=1, object_store_memory=100 << 20)
assert shoal.get([number.remote(i) for i in range(1000)])[-1] == 999
def records():
    return sum(type(found) is TaskRecord for found in gc.get_objects())

own = holder.current().core.objects.own
peaks = []

def one_round():
    fifo = sys.argv[1]
    blocker = wait_for_word.remote(fifo)
    gc.collect()
    before = anonymous()
    refs = [number.remote(i) for i in range(COUNT)]
    # The I/O thread has taken all of them over when it answers this.
    shoal.available_resources()
    peaks.append(anonymous())
    assert len(own.entries) >= COUNT
    assert records() >= COUNT
    with open(fifo, "w"):
        pass
    assert shoal.get(refs) == list(range(COUNT))
    assert shoal.get(blocker) == -1
    return (peaks[-1] - before) / COUNT

per_task = one_round()

def left():
    "What remains once the I/O thread has done its part, which nobody waits for otherwise."
    deadline = time.monotonic() + 30
    while own.entries and time.monotonic() < deadline:
        time.sleep(0.01)
    gc.collect()
    return len(own.entries) + records()

first_left = left()
one_round()
print(per_task, peaks[1] - peaks[0], first_left, left())
shoal.shutdown()
"""


def test_queued_tasks_cost_little_and_go_away(tmp_path):
    """50,000 waiting tasks cost less than a kilobyte each in their owner; afterwards there is no record of them, and no growth."""
    os.mkfifo(tmp_path / "word")
    done = subprocess.run(
        [sys.executable, "-c", QUEUE, str(tmp_path / "word")],
        capture_output=True, text=True, timeout=110, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    per_task, growth, *left = map(float, done.stdout.split())
    print(f"{per_task:.0f} bytes per queued task")
    assert per_task < 1024
    assert growth < 50_000 * 100, "the second round fits into what the first one used"
    assert left == [0, 0]
