"""Spill files behind a URL: what fsspec reaches, such as a bucket of S3, or a directory that several machines share.

    URL/node-<id>/00000001.spill     one directory per node, so that what a dead one left can be told from the rest

They outlive the node. Nothing here can be mapped or read in place: a reader that finds no memory gets a copy on the local disk. Networks
fail for a while: writing is tried again by the store, which keeps the bytes until it succeeds; reading is tried again here.

Owns: its threads. All that blocks runs through ``run``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import posixpath
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shoal._base.optional import try_import
from shoal._base.spill_place import shown
from shoal._core.object_store.arena import Arena
from shoal._core.object_store.disk import PAUSE_S, Piece, format_bytes
from shoal._core.object_store.threads import Threads

log = logging.getLogger("shoal.object_store")

T = TypeVar("T")

#: Network, not disk: a thread mostly waits for answers.
_THREADS = 8
#: Bytes asked for, or given, at a time: a request each.
_STEP_BYTES = 16 << 20
#: Seconds for which a read is tried again, and between two tries.
READ_PATIENCE_S = 20.0
_RETRY_S = 0.5
#: Seconds that ``close`` waits for what is under way.
_CLOSE_S = 0.2
#: Seconds that a node waits at its start for the place to answer.
_PROBE_S = 20.0
_PROBE = b"shoal writes this once, to see whether it can.\n"


class RemoteUnreachable(ConnectionError):
    """The place did not answer as it should for a while. What lies there is not lost."""


class RemoteFiles:
    """Files below one URL, named relative to it: ``node-<id>/NAME``.

    Args:
        url: as the user gave it.
        directory: of this node, below it; this object alone writes there.
    """

    #: The store does not refuse what must wait for it: it may answer again soon.
    refuses_at_once = False
    is_remote = True

    def __init__(self, url: str, directory: str) -> None:
        self.url = url
        self.directory = directory
        fsspec = try_import("fsspec", "shoal[spill]")
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._threads = Threads(_THREADS, "shoal-spill")
        self._closing = threading.Event()
        self._error = ""
        self._error_until = self._failing_since = -math.inf

    # --- on the loop ---

    def run(self, loop: asyncio.AbstractEventLoop, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run a function in one of the threads."""
        return self._threads.run(loop, function, *args)

    def name_of(self, file: str) -> str:
        """Return the name of a file of this node."""
        return f"{self.directory}/{file}"

    def location(self, name: str) -> str:
        """Return where a file lies, for other nodes."""
        return f"{self.url}/{name}"

    def name_at(self, location: str) -> str:
        """Return the name of a file that another node, with the same URL, has told of; "" if it lies elsewhere."""
        prefix = f"{self.url}/"
        return location.removeprefix(prefix) if location.startswith(prefix) else ""

    def refusal(self, nbytes: int, now: float) -> str:
        """Say why nothing can be written just now, or return the empty string."""
        if now >= self._error_until:
            return ""
        return (
            f"Objects are spilled to {shown(self.url)}, which cannot be written for {now - self._failing_since:.0f} s: {self._error}. What "
            "is in memory stays there, and it is tried again. Check the network, the credentials and the room there."
        )

    def is_lost(self, error: BaseException) -> bool:
        """Whether a failed read says that the bytes are gone, rather than out of reach."""
        return isinstance(error, FileNotFoundError)

    def note_error(self, error: BaseException, now: float) -> None:
        """A write failed: ``refusal`` says so for the next ``PAUSE_S``."""
        if self._closing.is_set():
            return
        if now > self._error_until + 5 * PAUSE_S:
            self._failing_since = now
            log.error("cannot spill to %s, which is tried again: %s", shown(self.url), _text(error))
        self._error, self._error_until = _text(error), now + PAUSE_S

    async def check(self, loop: asyncio.AbstractEventLoop) -> None:
        """See whether the place can be used. ConnectionError: it cannot, and why."""
        try:
            await asyncio.wait_for(self.run(loop, self._probe), _PROBE_S)
        except TimeoutError:
            raise ConnectionError(
                f"Objects cannot be spilled to {shown(self.url)}: it did not answer within {_PROBE_S:g} s. Check the address, and the "
                "network of this node; or leave out the spilling directory, to use the local disk."
            ) from None

    async def close(self) -> None:
        """Begin nothing more. What is under way removes what it has written."""
        self._closing.set()
        await self._threads.close(_CLOSE_S)

    # --- in a thread ---

    def _probe(self) -> None:
        """Write, read and delete a small file. ConnectionError: the place cannot be used, and why."""
        name, step = self.name_of("probe"), "making the directory"
        try:
            for directory in (self._root, self._path(self.directory)):
                self._make_directory(directory)
            step = "writing a file there"
            with self._files.open(self._path(name), "wb") as file:
                file.write(_PROBE)
            step = "reading it back"
            found = self._files.cat_file(self._path(name))
            if found != _PROBE:
                raise OSError(f"{len(found)} other bytes came back")
            step = "deleting it"
            self._files.rm_file(self._path(name))
        except Exception as error:  # each kind of file system has errors of its own
            raise ConnectionError(
                f"Objects cannot be spilled to {shown(self.url)}: {step} failed: {_text(error)}. Check the address, that what it names "
                "exists, and the credentials in the environment of this node; or leave out the spilling directory, to use the local disk."
            ) from error

    def write(self, arena: Arena, name: str, pieces: Sequence[Piece]) -> None:
        """Write pieces of the arena into a new file. On failure the file does not exist."""
        try:
            with self._files.open(self._path(name), "wb") as file:
                end = 0
                for piece in pieces:
                    file.write(bytes(piece.file_offset - end))
                    for start in range(0, piece.nbytes, _STEP_BYTES):
                        self._check_open()
                        file.write(arena.view(piece.arena_offset + start, min(_STEP_BYTES, piece.nbytes - start)))
                    end = piece.file_offset + piece.nbytes
            self._check_open()
        except BaseException:
            self.remove(name)
            raise

    def read(self, arena: Arena, name: str, piece: Piece) -> None:
        """Copy from a file into the arena. FileNotFoundError: the bytes are gone. RemoteUnreachable."""
        target = arena.writable_map().view(piece.arena_offset, piece.nbytes, readonly=False)
        self._copy(name, piece.file_offset, piece.nbytes, lambda start, data: _put(target, start, data))

    def read_bytes(self, name: str, offset: int, nbytes: int) -> bytes:
        parts: list[bytes] = []
        self._copy(name, offset, nbytes, lambda _start, data: parts.append(data))
        return b"".join(parts)

    def fetch(self, name: str, offset: int, nbytes: int, path: str) -> None:
        """Copy from a file into one of this machine, which is there already and has that size."""
        with open(path, "r+b", buffering=0) as file:
            self._copy(name, offset, nbytes, lambda start, data: _pwrite(file.fileno(), data, start))

    def remove(self, name: str) -> None:
        try:
            self._files.rm_file(self._path(name))
        except FileNotFoundError:
            pass
        except Exception as error:  # the directory goes with the cluster
            log.warning("cannot delete %s: %s", shown(self.location(name)), _text(error))

    def sweep(self, directory: str, keep: set[str]) -> list[str]:
        """Delete the files of a dead node's directory, but for those to ``keep``; return those that are left. Names relative to the URL."""
        self._files.invalidate_cache()
        try:
            found = [f"{directory}/{posixpath.basename(path)}" for path in self._files.find(self._path(directory))]
        except FileNotFoundError:
            return []
        left = [name for name in found if name in keep]
        if not left:
            self._remove_tree(directory)
        else:
            for name in set(found) - keep:
                self._files.rm_file(self._path(name))
        return left

    def _remove_tree(self, directory: str) -> None:
        try:
            self._files.rm(self._path(directory), recursive=True)
        except FileNotFoundError:
            pass

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _make_directory(self, path: str) -> None:
        # Not the parents: for a bucket that is misspelled, that would make a bucket.
        try:
            if not self._files.isdir(path):
                self._files.mkdir(path, create_parents=False)
        except FileExistsError:
            pass

    def _copy(self, name: str, offset: int, nbytes: int, put: Callable[[int, bytes], None]) -> None:
        for start in range(0, nbytes, _STEP_BYTES):
            length = min(_STEP_BYTES, nbytes - start)
            data = self._read_patiently(name, offset + start, length)
            if len(data) != length:
                raise FileNotFoundError(errno.ENOENT, f"the file ends {length - len(data)} bytes early", self.location(name))
            put(start, data)

    def _read_patiently(self, name: str, start: int, length: int) -> bytes:
        deadline = time.monotonic() + READ_PATIENCE_S
        while True:
            try:
                data: bytes = self._files.cat_file(self._path(name), start=start, end=start + length)
                return data
            except FileNotFoundError:
                raise
            except Exception as error:
                if time.monotonic() > deadline or self._closing.wait(_RETRY_S):
                    raise RemoteUnreachable(
                        f"{format_bytes(length)} could not be read from {shown(self.location(name))} within {READ_PATIENCE_S:g} s: "
                        f"{_text(error)}. They are not lost: try again when the place can be reached; check network and credentials."
                    ) from error

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise OSError(errno.ECANCELED, "the object store is closing")


def remove_directories(url: str, directories: Sequence[str], timeout_s: float) -> None:
    """Delete what nodes have spilled, at the end of their cluster. Gives up, with a warning, after ``timeout_s``."""

    def remove() -> None:
        try:
            remote = RemoteFiles(url, "")
            for directory in directories:
                remote._remove_tree(directory)
        except Exception as error:
            log.warning("cannot delete what was spilled to %s (%s): %s", shown(url), ", ".join(directories), _text(error))

    thread = threading.Thread(target=remove, name="shoal-spill", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        log.warning("%s did not answer within %g s: what was spilled there is left (%s).", shown(url), timeout_s, ", ".join(directories))


def _put(target: memoryview, start: int, data: bytes) -> None:
    target[start : start + len(data)] = data


def _pwrite(fd: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, start)
        view, start = view[done:], start + done


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
