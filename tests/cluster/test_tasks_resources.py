"""Tasks in sessions of their own shape: one CPU, GPUs, custom resources, a small object store."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

import shoal

pytestmark = pytest.mark.timeout(90)


@shoal.remote
def count_down(n):
    return 0 if n == 0 else 1 + shoal.get(count_down.remote(n - 1))


def test_recursion_on_one_cpu(fresh_session):
    fresh_session(num_cpus=1)
    assert shoal.get(count_down.remote(20), timeout=50) == 20


def test_recursion_of_depth_200(fresh_session):
    fresh_session(num_cpus=2)
    assert shoal.get(count_down.remote(200), timeout=80) == 200


def test_gpu_ids(fresh_session):
    fresh_session(num_cpus=4, num_gpus=2)

    @shoal.remote(num_gpus=1)
    class Holder:
        def ids(self):
            return shoal.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")

    holders = [Holder.remote(), Holder.remote()]
    seen = shoal.get([holder.ids.remote() for holder in holders], timeout=30)
    assert sorted(str(ids[0]) for ids, _ in seen) == ["0", "1"]
    assert sorted(visible for _, visible in seen) == ["0", "1"]
    for holder in holders:
        shoal.kill(holder)

    @shoal.remote(num_gpus=2)
    def both():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    @shoal.remote
    def none():
        return shoal.get_gpu_ids()

    assert shoal.get(both.remote(), timeout=30) == "0,1"
    assert shoal.get(none.remote(), timeout=30) == []


def test_custom_resources_are_not_given_away_by_a_blocked_task(fresh_session):
    fresh_session(num_cpus=2, resources={"lock": 1})

    @shoal.remote(resources={"lock": 1})
    def inner():
        return 1

    @shoal.remote(resources={"lock": 1})
    def outer():
        ref = inner.remote()
        with pytest.raises(shoal.exceptions.GetTimeoutError):
            shoal.get(ref, timeout=0.5)
        return [ref]

    [ref] = shoal.get(outer.remote(), timeout=30)
    del ref


def test_spilling_three_times_the_store(fresh_session):
    fresh_session(num_cpus=2, object_store_memory=80 * 2**20)

    @shoal.remote
    def make(i):
        return os.urandom(1) * (8 * 2**20) + i.to_bytes(4, "big")

    @shoal.remote
    def digest(data):
        return hashlib.sha256(data).hexdigest()

    made = [make.remote(i) for i in range(15)]
    put = [shoal.put(bytes([i]) * (8 * 2**20)) for i in range(15)]
    digests = shoal.get([digest.remote(ref) for ref in made + put], timeout=60)
    for ref, expected in zip(reversed(made + put), reversed(digests), strict=True):
        assert hashlib.sha256(shoal.get(ref, timeout=30)).hexdigest() == expected


def test_one_get_of_more_than_the_store_holds(fresh_session):
    fresh_session(num_cpus=2, object_store_memory=80 * 2**20)

    @shoal.remote
    def make(i):
        return bytes([i]) * (8 * 2**20)

    begin = time.monotonic()
    values = shoal.get([make.remote(i) for i in range(20)], timeout=60)
    assert [value[0] for value in values] == list(range(20))
    assert time.monotonic() - begin < 8, "values that the blocked get had pinned kept the store from making room"
