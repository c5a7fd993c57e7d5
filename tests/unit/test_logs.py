"""Worker output on its way: files to lines (agent), lines to text (driver)."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from shoal._base.paths import worker_logs
from shoal._base.settings import Settings
from shoal._core.node_agent.logs import WorkerLogReader
from shoal._core.wire.messages import LogLines
from shoal._core.worker.log_output import LogOutput

WORKER, OTHER, JOB = b"w" * 28, b"v" * 28, b"job1"


class Reader:
    """A reader over a temporary directory, with what it has handed on."""

    def __init__(self, path, **options):
        self.path = path
        self.told = []
        self.takes = True
        self.reader = WorkerLogReader(asyncio.get_running_loop(), path, options.pop("settings", Settings()), **options)
        self.reader.emit = self.emit

    def emit(self, lines):
        if self.takes:
            self.told.append(lines)
        return self.takes

    def write(self, text, pid=1, worker=WORKER, stream=0):
        with open(worker_logs(self.path, worker, pid)[stream], "a") as file:
            file.write(text)

    def work(self, worker=WORKER, pid=1, name="f"):
        for stream in (0, 1):
            self.write("", pid, worker, stream)
        self.reader.started(worker, pid)
        self.reader.assign(worker, JOB)
        self.reader.rename(worker, name)

    def lines(self):
        return [line for message in self.told for line in message.lines]

    async def until(self, count):
        async with asyncio.timeout(5):
            while len(self.lines()) < count:
                await asyncio.sleep(0.005)
        return self.lines()


@pytest.fixture(params=[True, False], ids=["inotify", "polling"])
def run(tmp_path, request):
    """Run an async test over a reader."""

    def run(test, **options):
        async def body():
            logs = Reader(tmp_path, inotify=request.param, **options)
            try:
                await test(logs)
            finally:
                logs.reader.close()

        asyncio.run(body())

    return run


def test_lines_arrive_whole_and_with_their_names(run):
    async def test(logs):
        logs.work()
        logs.write("one\ntw")
        assert await logs.until(1) == ["one"]
        logs.write("o\n")
        logs.write("bad\n", stream=1)
        assert sorted(await logs.until(3)) == ["bad", "one", "two"]
        assert {(told.name, told.pid, told.job_id) for told in logs.told} == {("f", 1, JOB)}
        assert [told.is_error for told in logs.told if told.lines == ["bad"]] == [True]

    run(test)


def test_output_before_the_job_is_known_waits_for_it(run):
    async def test(logs):
        logs.reader.started(WORKER, 1)
        logs.write("early\n")
        await asyncio.sleep(0.15)
        assert logs.told == []
        logs.reader.assign(WORKER, JOB)
        assert await logs.until(1) == ["early"]

    run(test)


def test_a_new_name_does_not_apply_to_older_lines(run):
    async def test(logs):
        logs.work(name="f")
        logs.write("of f\n")
        logs.reader.rename(WORKER, "g")
        logs.write("of g\n")
        await logs.until(2)
        assert [(told.name, told.lines) for told in logs.told] == [("f", ["of f"]), ("g", ["of g"])]

    run(test)


def test_a_slow_driver_gets_everything_later(run):
    async def test(logs):
        logs.work()
        logs.takes = False
        logs.write("".join(f"{i}\n" for i in range(100_000)))
        await asyncio.sleep(0.2)
        logs.takes = True
        assert await logs.until(100_000) == [str(i) for i in range(100_000)]

    run(test)


def test_the_end_of_a_worker_brings_its_last_words_and_removes_empty_files(run, tmp_path):
    async def test(logs):
        logs.work()
        logs.write("last words")
        logs.reader.ended(WORKER)
        assert logs.lines() == ["last words"]
        assert logs.reader.tail(WORKER) == ["last words"]
        assert [path.suffix for path in tmp_path.iterdir()] == [".out"]

    run(test)


def test_the_tail_prefers_standard_error(run):
    async def test(logs):
        logs.work()
        logs.write("a\nb\n")
        assert logs.reader.tail(WORKER, 1) == ["b"]
        logs.write("boom\n", stream=1)
        assert logs.reader.tail(WORKER) == ["boom"]
        assert logs.reader.tail(b"unknown") == []

    run(test)


def test_files_are_bounded(run, tmp_path):
    async def test(logs):
        logs.work()
        for i in range(5):
            logs.write("x" * 999 + "\n")
            await logs.until(i + 1)
        await asyncio.sleep(0.05)
        assert len(logs.lines()) == 5
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
        for number in range(10):
            worker = bytes([number]) * 28
            logs.work(worker, 10 + number)
            logs.write("y" * 900 + "\n", 10 + number, worker)
            logs.reader.ended(worker)
        assert len(list(tmp_path.glob("worker-0*"))) <= 4

    run(test, settings=replace(Settings(), log_rotate_bytes=2000), total_bytes=3000)


def test_nothing_is_handed_on_when_forwarding_is_off(run):
    async def test(logs):
        logs.work()
        logs.write("quiet\n")
        await asyncio.sleep(0.15)
        assert logs.told == []
        assert logs.reader.tail(WORKER) == ["quiet"]

    run(test, settings=replace(Settings(), log_to_driver=False))


# --- the driver's side ----------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def output(environ=None, colours=False, **settings):
    clock = Clock()
    return LogOutput(replace(Settings(), **settings), clock, environ or {}, colours), clock


def said(text, pid=1, name="f", ip=""):
    return LogLines(JOB, pid, name, False, text.split("\n"), ip)


def test_prefix():
    out, _ = output()
    assert out.lines(said("a\nb")) == ["(f pid=1) a", "(f pid=1) b"]
    assert out.lines(said("c", ip="10.0.0.2")) == ["(f pid=1, ip=10.0.0.2) c"]
    assert out.lines(said("d", name="")) == ["(pid=1) d"]


def test_lines_of_other_workers_are_collapsed():
    out, clock = output()
    assert out.lines(said("step 1 done", pid=1)) == ["(f pid=1) step 1 done"]
    assert [out.lines(said(f"step {n} done", pid=n)) for n in range(2, 6)] == [[]] * 4
    clock.now = 4.9
    assert out.flush_due(clock.now) == []
    clock.now = 5.0
    (line,) = out.flush_due(clock.now)
    assert line.startswith("(f pid=5) step 5 done [repeated 4x across cluster] (shoal collapses")
    assert out.lines(said("step 9 done", pid=9)) == []
    assert out.lines(said("step 9 done", pid=9)) == []
    assert out.flush_due(math.inf) == ["(f pid=9) step 9 done [repeated 2x across cluster]"]


def test_one_worker_may_repeat_itself():
    out, _ = output()
    assert [len(out.lines(said("same"))) for _ in range(3)] == [1, 1, 1]


def test_a_single_repetition_is_printed_late_but_plainly():
    out, clock = output()
    out.lines(said("hello", pid=1))
    out.lines(said("hello", pid=2))
    clock.now = 6
    assert out.flush_due(6) == ["(f pid=2) hello"]
    assert out.lines(said("hello", pid=3)) == ["(f pid=3) hello"]


def test_switches():
    out, _ = output(dedup_logs=False)
    assert [len(out.lines(said("same", pid=n))) for n in range(3)] == [1, 1, 1]
    out, _ = output(dedup_logs_allow_regex="^keep", dedup_logs_skip_regex="drop")
    assert [len(out.lines(said("keep me", pid=n))) for n in range(3)] == [1, 1, 1]
    assert out.lines(said("drop me")) == []


def test_colours():
    out, _ = output(colours=True)
    assert out.lines(said("a")) == ["\x1b[36m(f pid=1)\x1b[0m a"]
    out, _ = output({"RAY_COLOR_PREFIX": "1"}, colours=None)
    first, second = out.lines(said("a", pid=1)), out.lines(said("b", pid=2))
    assert first[0][:5] != second[0][:5]
    out, _ = output({"RAY_COLOR_PREFIX": "0"}, colours=None)
    assert out.lines(said("a")) == ["(f pid=1) a"]
