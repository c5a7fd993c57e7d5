"""What a node remembers of jobs and functions."""

from __future__ import annotations

import asyncio

import pytest

from shoal._core.node_agent import job_cache
from shoal._core.node_agent.job_cache import JobCache
from shoal._core.transport.errors import RequestFailed
from shoal._core.wire.messages import FunctionBlob, GetFunction, GetJob, JobConfigRecord, JobInfo

CONFIG = JobConfigRecord({}, "/", [])


class FakeWorker:
    closed = False

    def __init__(self):
        self.got = []

    def send(self, message):
        self.got.append(message)

    def fail(self, rid, kind, message, detail=b""):
        self.got.append((rid, kind, message))


class FakeControl:
    def __init__(self):
        self.asked = []

    def request(self, message):
        future = asyncio.get_running_loop().create_future()
        self.asked.append((message, future))
        return future


def in_loop(scenario):
    async def main():
        control = FakeControl()
        cache = JobCache(lambda: control)
        await scenario(control, cache.handlers(), cache)
        cache.check()

    asyncio.run(main())


async def turn():
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_the_control_store_is_asked_once():
    async def scenario(control, handlers, cache):
        one, other = FakeWorker(), FakeWorker()
        handlers[GetFunction](one, GetFunction(3, b"f"))
        handlers[GetFunction](other, GetFunction(8, b"f"))
        handlers[GetJob](one, GetJob(4, b"j"))
        cache.check()
        assert [message for message, _ in control.asked] == [GetFunction(0, b"f"), GetJob(0, b"j")]
        control.asked[0][1].set_result(FunctionBlob(77, b"code"))
        control.asked[1][1].set_result(JobInfo(78, b"j", CONFIG))
        await turn()
        handlers[GetFunction](one, GetFunction(5, b"f"))
        handlers[GetJob](other, GetJob(9, b"j"))
        assert one.got == [FunctionBlob(3, b"code"), JobInfo(4, b"j", CONFIG), FunctionBlob(5, b"code")]
        assert other.got == [FunctionBlob(8, b"code"), JobInfo(9, b"j", CONFIG)]
        assert len(control.asked) == 2

    in_loop(scenario)


def test_an_error_is_told_to_all_who_wait_and_not_remembered():
    async def scenario(control, handlers, cache):
        one, gone = FakeWorker(), FakeWorker()
        handlers[GetJob](one, GetJob(4, b"j"))
        handlers[GetJob](gone, GetJob(5, b"j"))
        gone.closed = True
        control.asked[0][1].set_exception(RequestFailed("KeyError", "no such job"))
        await turn()
        assert one.got == [(4, "KeyError", "no such job")]
        assert gone.got == []
        handlers[GetJob](one, GetJob(6, b"j"))
        assert len(control.asked) == 2

    in_loop(scenario)


def test_with_the_job_its_description_goes_and_what_nobody_waits_for_any_more():
    async def scenario(control, handlers, cache):
        one, gone = FakeWorker(), FakeWorker()
        handlers[GetJob](one, GetJob(4, b"j"))
        control.asked[0][1].set_result(JobInfo(78, b"j", CONFIG))
        handlers[GetFunction](gone, GetFunction(3, b"never exported"))
        handlers[GetFunction](one, GetFunction(5, b"late"))
        await turn()
        gone.closed = True
        cache.forget(b"j")
        await turn()
        assert control.asked[1][1].cancelled()
        assert not control.asked[2][1].done()
        handlers[GetJob](one, GetJob(6, b"j"))
        assert len(control.asked) == 4

    in_loop(scenario)


def test_functions_that_were_used_last_are_kept_and_one_that_is_larger_than_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_cache, "KEPT_BYTES", 100)

    async def scenario(control, handlers, cache):
        worker = FakeWorker()

        async def ask(name, nbytes=40):
            before = len(control.asked)
            handlers[GetFunction](worker, GetFunction(1, name))
            if len(control.asked) > before:
                control.asked[-1][1].set_result(FunctionBlob(0, b"x" * nbytes))
                await turn()
                cache.check()
                return "asked"
            return "known"

        assert [await ask(name) for name in (b"a", b"b", b"a", b"c")] == ["asked", "asked", "known", "asked"]
        assert [await ask(name) for name in (b"a", b"c", b"b")] == ["known", "known", "asked"]
        assert [await ask(b"large", 500), await ask(b"large"), await ask(b"a")] == ["asked", "known", "asked"]

    in_loop(scenario)


def test_a_node_that_ends_says_so():
    worker = FakeWorker()
    JobCache(lambda: None).handlers()[GetJob](worker, GetJob(4, b"j"))
    assert worker.got[0][:2] == (4, "RuntimeError")
