"""Limits: the same shapes without any runtime: a loop on the same sockets, a memory copy, a fork, a file.

    user thread ── deque, one wake ──▶ loop thread ══ Unix socket ══▶ loop thread ── queue ──▶ main thread
                ◀── lock released ──               ◀═══════════════               ◀── deque ──

`bare_round_trips` is the part between the two loops; `bare_round_trips_threads` is the whole way, which a call that
runs user code on a main thread cannot avoid. The frames are as large as a small call and its answer.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import queue
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Recorder, main, pss_bytes, scaled, seconds

try:
    from uvloop import new_event_loop
except ImportError:
    new_event_loop = asyncio.new_event_loop

HEADER = struct.Struct("<I")
CALL, ANSWER = b"c" * 96, b"a" * 48
ROUND_TRIPS = scaled(5000)
IN_FLIGHT = 1000
BATCHES = scaled(20)
COPIED_BYTES = scaled(800e6, 8_000_000)
SENT_BYTES = scaled(256 * 2**20, 2**20)
FILE_BYTES = scaled(256 * 2**20, 2**20)


class Framed(asyncio.Protocol):
    """Length-prefixed frames; all frames of one read are handled before one write answers them."""

    def __init__(self, on_frames: Callable[[Framed, list[bytes]], None]) -> None:
        self.on_frames = on_frames
        self.buffer = b""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def send(self, frames: list[bytes]) -> None:
        self.transport.write(b"".join(HEADER.pack(len(frame)) + frame for frame in frames))

    def data_received(self, data: bytes) -> None:
        buffer, at, frames = self.buffer + data, 0, []
        while at + 4 <= len(buffer):
            end = at + 4 + HEADER.unpack_from(buffer, at)[0]
            if end > len(buffer):
                break
            frames.append(buffer[at + 4 : end])
            at = end
        self.buffer = buffer[at:]
        self.on_frames(self, frames)


class Loop:
    """A loop in a thread of its own, with an inbox that any thread may fill."""

    def __init__(self, end: socket.socket, on_frames: Callable[[Framed, list[bytes]], None]) -> None:
        self.loop = new_event_loop()
        self.outgoing: deque[bytes] = deque()
        self.woken = False
        ready = threading.Event()

        async def start() -> None:
            _, self.framed = await self.loop.create_unix_connection(lambda: Framed(on_frames), sock=end)
            ready.set()

        def run() -> None:
            self.loop.create_task(start())
            self.loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        ready.wait()

    def post(self, frame: bytes) -> None:
        self.outgoing.append(frame)
        if not self.woken:
            self.woken = True
            self.loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self.woken = False
        frames = [self.outgoing.popleft() for _ in range(len(self.outgoing))]
        if frames:
            self.framed.send(frames)


def limit(recorder: Recorder) -> None:
    if recorder.wanted("bare_round_trips"):
        _round_trips(recorder)
    if recorder.wanted("bare_round_trips_threads", "bare_calls_in_flight"):
        _calls(recorder)
    if recorder.wanted("bare_copy"):
        _copies(recorder)
    if recorder.wanted("bare_file"):
        _files(recorder)
    if recorder.wanted("bare_sendfile"):
        _sendfile(recorder)
    recorder.rate("bare_forks", lambda: [_fork() for _ in range(scaled(100))], scaled(100))
    recorder.emit("bare_interpreter", min(seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True)) for _ in range(5)))
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
        bare.stdout.readline()
        recorder.emit("bare_interpreter_memory", pss_bytes([bare.pid]) / 2**20)
        bare.stdin.close()
        bare.wait()


def _child(body: Callable[[socket.socket], None]) -> tuple[socket.socket, int]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            body(theirs)
        finally:
            os._exit(0)
    theirs.close()
    return ours, pid


def _echo(end: socket.socket) -> None:
    loop = new_event_loop()

    async def serve() -> None:
        gone = loop.create_future()
        _, framed = await loop.create_unix_connection(lambda: Framed(lambda framed, frames: framed.send([ANSWER] * len(frames))), sock=end)
        framed.connection_lost = lambda exc: gone.set_result(None)
        await gone

    loop.run_until_complete(serve())


def _round_trips(recorder: Recorder) -> None:
    """One message there and back, from loop to loop."""
    ours, pid = _child(_echo)
    loop = new_event_loop()

    async def measure() -> None:
        done = loop.create_future()
        left = ROUND_TRIPS

        def answered(framed: Framed, frames: list[bytes]) -> None:
            nonlocal left
            left -= len(frames)
            if left > 0:
                framed.send([CALL])
            elif not done.done():
                done.set_result(None)

        transport, framed = await loop.create_unix_connection(lambda: Framed(answered), sock=ours)
        framed.send([CALL])
        await done
        transport.close()

    recorder.emit("bare_round_trips", ROUND_TRIPS / seconds(lambda: loop.run_until_complete(measure())))
    os.waitpid(pid, 0)


def _serve_calls(end: socket.socket) -> None:
    """The worker's shape: the loop hands each call to the main thread, which hands the answer back."""
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def called(framed: Framed, frames: list[bytes]) -> None:
        for frame in frames:
            calls.put(frame)

    loop = Loop(end, called)
    loop.framed.connection_lost = lambda exc: os._exit(0)
    while True:
        calls.get()
        loop.post(ANSWER)


def _calls(recorder: Recorder) -> None:
    ours, pid = _child(_serve_calls)
    waiting: deque[threading.Lock] = deque()

    def answered(framed: Framed, frames: list[bytes]) -> None:
        for _ in frames:
            waiting.popleft().release()

    loop = Loop(ours, answered)

    def call() -> threading.Lock:
        lock = threading.Lock()
        lock.acquire()
        waiting.append(lock)
        loop.post(CALL)
        return lock

    def batch() -> None:
        for lock in [call() for _ in range(IN_FLIGHT)]:
            lock.acquire()

    recorder.one_at_a_time("bare_round_trips_threads", lambda: call().acquire(), ROUND_TRIPS)
    recorder.rate("bare_calls_in_flight", lambda: [batch() for _ in range(BATCHES)], IN_FLIGHT * BATCHES)
    loop.loop.call_soon_threadsafe(loop.framed.transport.close)
    os.waitpid(pid, 0)


def _copies(recorder: Recorder) -> None:
    source = np.ones(COPIED_BYTES // 8)

    def fresh() -> mmap.mmap:
        fd = os.memfd_create("bare")
        os.ftruncate(fd, source.nbytes)
        mapped = mmap.mmap(fd, source.nbytes)
        os.close(fd)
        return mapped

    def into(mapped: mmap.mmap) -> None:
        np.copyto(np.frombuffer(mapped, dtype=source.dtype), source)

    warm = fresh()
    recorder.emit("bare_copy_fresh", source.nbytes / 1e9 / seconds(lambda: into(warm)))
    recorder.rate("bare_copy", lambda: into(warm), source.nbytes / 1e9, repeat=5)


def _files(recorder: Recorder) -> None:
    data = memoryview(np.ones(FILE_BYTES // 8)).cast("B")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        buffer = bytearray(len(data))

        def read() -> None:
            with path.open("rb", buffering=0) as file:
                file.readinto(buffer)

        recorder.rate("bare_file_write", lambda: path.write_bytes(data), len(data) / 1e9)
        recorder.rate("bare_file_read", read, len(data) / 1e9)


def _memory_file(nbytes: int) -> tuple[int, mmap.mmap]:
    """A memory file whose pages are there."""
    fd = os.memfd_create("bare")
    os.ftruncate(fd, nbytes)
    mapped = mmap.mmap(fd, nbytes)
    np.frombuffer(mapped, dtype=np.uint8)[:] = 1
    return fd, mapped


def _sendfile(recorder: Recorder) -> None:
    """What `core_transfer.py` does, without a runtime: one process sends from a memory file, this one receives into another."""
    listener = socket.create_server(("127.0.0.1", 0))
    pid = os.fork()
    if pid == 0:
        _send_what_is_asked(socket.create_connection(listener.getsockname()))
        os._exit(0)
    sock, _ = listener.accept()
    _, mapped = _memory_file(SENT_BYTES)
    target = memoryview(mapped)

    def fetch(nbytes: int) -> None:
        sock.sendall(HEADER.pack(nbytes))
        done = 0
        while done < nbytes:
            done += sock.recv_into(target[done:nbytes], nbytes - done, socket.MSG_WAITALL)

    recorder.rate("bare_sendfile", lambda: fetch(SENT_BYTES), SENT_BYTES / 1e9)
    recorder.rate("bare_sendfile_128_kib", lambda: [fetch(2**17) for _ in range(scaled(2000))], scaled(2000))
    sock.close()
    listener.close()
    os.waitpid(pid, 0)


def _send_what_is_asked(sock: socket.socket) -> None:
    fd, _ = _memory_file(SENT_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while asked := sock.recv(HEADER.size, socket.MSG_WAITALL):
        nbytes, done = HEADER.unpack(asked)[0], 0
        while done < nbytes:
            done += os.sendfile(sock.fileno(), fd, done, nbytes - done)


def _fork() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"1")
        os._exit(0)
    os.read(reader, 1)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"limit": limit})
