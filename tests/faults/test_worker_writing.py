"""SIGKILL of a worker that writes into the object store, or for which the store spills: room and files come back."""

from __future__ import annotations

import os
import signal
import time

import pytest
from meeting import first_arrival
from watch import SAFETY_S, wait_for

import shoal
from shoal import exceptions
from shoal._base import processes

pytestmark = pytest.mark.timeout(900)

MIB = 1 << 20


def kill(pid):
    os.kill(pid, signal.SIGKILL)


@shoal.remote
def length(data):
    return len(data)


def stop_while_writing(meeting, moment):
    """In a worker: from now on a large value is half written, or written and not sealed, and then nothing happens any more."""
    from shoal._core.object_store.client import StoreClient

    write = StoreClient.write

    def write_and_stop(self, place, value):
        if moment == "written":
            write(self, place, value)
        elif moment == "half-written":
            self._arena.writable_map().view(place.offset, place.nbytes // 2, readonly=False)[:] = b"?" * (place.nbytes // 2)
        StoreClient.write = write  # also for the message below
        shoal.get(meeting.arrive.remote(os.getpid()))
        time.sleep(1000)

    StoreClient.write = write_and_stop


@shoal.remote
def write_large(meeting, path, how, moment):
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) == 1:
        stop_while_writing(meeting, moment)
    if how == "put":
        return [shoal.put(b"w" * (20 * MIB))]
    return b"w" * (20 * MIB)


@pytest.mark.parametrize("how", ["put", "return"])
@pytest.mark.parametrize("moment", ["created", "half-written", "written"])
def test_mid_put(cluster, meeting, rounds, report, tmp_path, how, moment):
    for number in rounds:
        ref = write_large.remote(meeting, tmp_path / str(number), how, moment)
        victim = first_arrival(meeting, number + 1)
        facts = cluster.ask()
        assert facts["creating"] == 1
        assert facts["store"]["used_bytes"] >= 20 * MIB
        kill(victim)
        value = shoal.get(ref, timeout=SAFETY_S)
        if how == "put":
            value = shoal.get(value[0], timeout=SAFETY_S)
        assert value == b"w" * (20 * MIB)
        assert cluster.ask()["creating"] == 0
        del ref, value
        cluster.settle()
        report.round("value of the second run")


def test_mid_put_without_retries(cluster, meeting, rounds, report, tmp_path):
    """And somebody waits already for the object that is never completed."""
    for number in rounds:
        ref = write_large.options(max_retries=0).remote(meeting, tmp_path / str(number), "return", "half-written")
        reader = length.remote(ref)
        kill(first_arrival(meeting, number + 1))
        for waiting in (ref, reader):
            with pytest.raises(exceptions.WorkerCrashedError, match="SIGKILL") as caught:
                shoal.get(waiting, timeout=SAFETY_S)
        report.round(str(caught.value).splitlines()[0][:100])
        del ref, reader, waiting, caught
        cluster.settle()


@shoal.remote
def overfill(meeting, path):
    """Put two to three times the store; the first run never ends."""
    with open(path, "a") as file:
        file.write("x")
    first = os.path.getsize(path) == 1
    if first:
        shoal.get(meeting.arrive.remote(os.getpid()))
    refs = [shoal.put(bytes([number]) * (10 * MIB)) for number in range(25)]
    if first:
        time.sleep(1000)
    return refs


def test_mid_spill(cluster, meeting, rounds, report, tmp_path):
    """The worker that fills the store is killed while a file with its objects is half written."""
    import observed_head

    for number in rounds:
        gate = observed_head.Gate(cluster.directory)
        try:
            ref = overfill.remote(meeting, tmp_path / str(number))
            gate.wait()
            victim = first_arrival(meeting, number + 1)
            kill(victim)
            wait_for(lambda pid=victim: not processes.is_running(pid))
            gate.open()
        finally:
            gate.close()
        refs = shoal.get(ref, timeout=60)
        for index in reversed(range(25)):
            data = shoal.get(refs[index], timeout=SAFETY_S)
            assert len(data) == 10 * MIB
            assert data[:: MIB // 3] == bytes([index]) * len(data[:: MIB // 3])
        del ref, refs, data
        cluster.settle()
        report.round("values of the second run, read back from disk")
