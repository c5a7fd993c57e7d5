"""A driver in a process of its own, whose end or whose session's end is the test. It says what it sees, a line at a time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from watch import SAFETY_S, Session

BEGIN = """
import os, signal, subprocess, sys, threading, time
sys.path.insert(0, {here!r})
import observed_head
observed_head.install()
import shoal
from meeting import Meeting

def say(*words):
    os.write(3, (" ".join(map(str, words)).replace("\\n", " | ") + "\\n").encode())

def attempt(what, call):
    try:
        say(what, "gave", call())
    except BaseException as error:
        say(what, "raised", type(error).__name__, str(error))

@shoal.remote
def add(a, b):
    return a + b

@shoal.remote(num_cpus=0.01)
def litter(meeting):
    '''Leaves a subprocess, a fork, and a daemon that nobody is the parent of; then sleeps.'''
    child = subprocess.Popen(["sleep", "1000"])
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)
            time.sleep(1000)
        os._exit(0)
    os.close(writer)
    daemon = int(os.read(reader, 20))
    shoal.get(meeting.arrive.remote(os.getpid(), child.pid, daemon))
    time.sleep(1000)

def make_busy():
    '''Running tasks with children, queued tasks, actors, stored and spilled objects, a blocked parent: a bit of everything.'''
    global kept
    meeting = Meeting.remote()
    arrays = [shoal.put(bytes(10 << 20)) for _ in range(10)]
    running = [litter.remote(meeting) for _ in range(2)]
    @shoal.remote
    def parent():
        shoal.get(litter.remote(meeting))
    waiting = [parent.remote()] + [add.remote(running[0], 1) for _ in range(5)]
    pids = shoal.get(meeting.wait.remote(9))
    kept = meeting, arrays, running, waiting
    return pids

options = dict(num_cpus=2, object_store_memory=100 << 20)
"""


class Driver:
    """Run ``code`` after the definitions above and ``shoal.init(**options)``; with ``init=False`` it does that itself.

    ``session``: the first thing that it says is the session directory.
    """

    def __init__(self, code, *, init=True, session=None, environment=None):
        here = str(Path(__file__).parent)
        begin = BEGIN.format(here=here)
        if init:
            begin += "context = shoal.init(**options)\nsay(context.address_info['session_dir'])\n"
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", f"import os; os.dup2({writer}, 3); os.closerange(4, 50)\n" + begin + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            env={**os.environ, **(environment or {})},
        )
        os.close(writer)
        self._lines = reader
        self._read = b""
        self.session = Session(self.line()) if init or session else None

    def line(self, timeout_s=3 * SAFETY_S):
        """Return the next thing that the driver says; "" when it has ended."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._read:
            assert select.select([self._lines], [], [], max(0, deadline - time.monotonic()))[0], "the driver says nothing"
            data = os.read(self._lines, 65536)
            if not data:
                return ""
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def hear(self, expected):
        """The next line must contain this."""
        line = self.line()
        assert expected in line, f"expected {expected!r}, heard {line!r}" + ("" if line else f"; it wrote {self.output()}")
        return line

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return time.monotonic()

    def say(self):
        """Give it a line, which it may be waiting for."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def go_on(self):
        """End its standard input, which it may be waiting for."""
        self.process.stdin.close()
        self.process.stdin = None
        return time.monotonic()

    def output(self):
        """What it wrote by itself; waits for its end."""
        return self.process.communicate(timeout=SAFETY_S)[0].decode()

    def end(self):
        """Kill it if the test has failed before its end; close what is ours."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._lines)
