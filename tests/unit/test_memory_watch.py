"""Who dies when memory is short; how memory, CPUs and GPUs are found."""

from __future__ import annotations

import mmap
import os

import pytest

from shoal._core.node_agent.devices import Accelerators, cpu_count, find_gpus
from shoal._core.node_agent.memory import (
    SETTLE_S,
    Candidate,
    MemorySample,
    MemoryWatch,
    choose_victim,
    group_memory,
    private_memory,
    read_capacity,
    read_memory,
)

GB = 10**9
FULL, CALM = MemorySample(96 * GB, 100 * GB), MemorySample(50 * GB, 100 * GB)


def worker(number, used=GB, retriable=True, started=None):
    return Candidate(bytes([number]), 1000 + number, f"task{number}", retriable, float(number if started is None else started), used)


def test_nobody_dies_while_memory_suffices():
    assert MemoryWatch(0.95).handle(CALM, [worker(1)], 0.0) is None
    assert MemoryWatch(0.95).handle(FULL, [], 0.0) is None


@pytest.mark.parametrize(
    ("workers", "victim"),
    [
        ([worker(1), worker(3), worker(2)], 3),  # the newest
        ([worker(1), worker(2, retriable=False)], 1),  # one that can be retried, though older
        ([worker(1, retriable=False), worker(2, retriable=False)], 2),
        ([worker(1, used=30 * GB), worker(2, used=GB)], 1),  # the hog, not its small, newer neighbour
        ([worker(1, used=30 * GB, retriable=False), worker(2, used=GB)], 1),
        ([worker(1, used=30 * GB), worker(2, used=20 * GB), worker(3, used=GB)], 2),
        ([worker(1, used=0), worker(2, used=0)], 2),  # not measured: already gone
    ],
)
def test_the_victim(workers, victim):
    assert choose_victim(workers).worker_id == bytes([victim])


def test_a_kill_gets_time_to_take_effect():
    watch = MemoryWatch(0.95)
    assert watch.handle(FULL, [worker(1), worker(2)], 0.0).worker_id == b"\x02"
    assert watch.handle(FULL, [worker(1)], SETTLE_S / 2) is None
    assert watch.handle(FULL, [worker(1)], SETTLE_S).worker_id == b"\x01"


def test_the_reason_names_figures_and_users():
    reason = MemoryWatch(0.95, "The node abc").handle(FULL, [worker(1, used=30 * GB), worker(2, used=2 * 10**6)], 0.0).reason
    assert reason.startswith("The node abc ran out of memory: 96.00 GB of 100.00 GB used (96.0%), more than the threshold of 95%.")
    assert "task1 (pid 1001) was killed to free its 30.00 GB." in reason
    assert "task1 (pid 1001) 30.00 GB; task2 (pid 1002) 2.0 MB" in reason


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n"


def test_memory_of_the_machine(tmp_path):
    write(tmp_path, proc__meminfo=MEMINFO)
    assert read_memory(tmp_path) == read_capacity(tmp_path) == MemorySample(600 * 1024, 1000 * 1024)


def test_memory_of_a_cgroup_v2(tmp_path):
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/a/b\n")
    group = tmp_path / "sys/fs/cgroup/a"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("200000\n")
    (group / "memory.current").write_text("180000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 30000\n")
    assert read_memory(tmp_path) == read_capacity(tmp_path) == MemorySample(150000, 200000)


def test_memory_of_a_cgroup_v1(tmp_path):
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="4:memory:/a\n0::/\n")
    group = tmp_path / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("500000\n")
    (group / "memory.usage_in_bytes").write_text("100000\n")
    (group / "memory.stat").write_text("total_inactive_file 40000\n")
    assert read_capacity(tmp_path) == MemorySample(60000, 500000)
    assert read_memory(tmp_path).total_bytes == 1000 * 1024  # fuller than the group


def test_cpus_of_a_cgroup(tmp_path):
    write(tmp_path, proc__self__cgroup="0::/a\n")
    (tmp_path / "sys/fs/cgroup/a").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/a/cpu.max").write_text("max 100000\n")
    assert cpu_count(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "sys/fs/cgroup/a/cpu.max").write_text("50000 100000\n")
    assert cpu_count(tmp_path) == 1


def test_memory_of_this_process_is_found():
    before = private_memory(os.getpid())
    # Fresh pages: a bytearray may be cut from memory that this process already has.
    block = mmap.mmap(-1, 50 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, 50 << 20, mmap.PAGESIZE):
        block[page] = 1
    assert private_memory(os.getpid()) - before > 40 << 20
    assert group_memory([os.getpgrp()])[os.getpgrp()] >= len(block)
    assert private_memory(1 << 22) == 0


def test_gpus(tmp_path):
    assert find_gpus({}, tmp_path) == Accelerators()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        write(tmp_path, **{f"dev__{name}": ""})
    write(tmp_path, proc__driver__nvidia__gpus__0000__information="Model: \t NVIDIA H200\nIRQ: 1\n")
    assert find_gpus({}, tmp_path) == Accelerators("nvidia", ("0", "1"), "H200")
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path).ids == ("1",)
    assert find_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path).ids == ()
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "GPU-ab,-1,3"}, tmp_path).ids == ("GPU-ab",)


def test_visible_devices():
    assert Accelerators("nvidia", ("3", "5")).environment([1]) == {"CUDA_VISIBLE_DEVICES": "5"}
    assert Accelerators("nvidia", ("3", "5")).environment([]) == {"CUDA_VISIBLE_DEVICES": ""}
