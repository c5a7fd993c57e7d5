"""Orders to fail, from a test to the workers of its session: one file each, which one call takes by renaming it.

    test      order ──▶ faults/orders/<function>/<number>      written whole, then renamed into place
    worker    the next call of the function renames it to faults/taken/<number>: one call gets it, whatever dies meanwhile
    worker    faults/running/<pid>: what runs there now

Functions are named as the user writes them: ``f``, ``Counter.add``, ``Counter.__init__``.
"""

from __future__ import annotations

import itertools
import mmap
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal._core.serialization import deserialize, serialize

from .waiting import wait_for

DIRECTORY = "faults"
#: Bytes of a file that tells what a worker runs.
RUNNING_BYTES = 4096


@dataclass(frozen=True)
class Raise:
    error: BaseException | type[BaseException]


@dataclass(frozen=True)
class Crash:
    number: int


@dataclass(frozen=True)
class Delay:
    seconds: float


@dataclass(frozen=True)
class HoldAt:
    fifo: str


Action = Raise | Crash | Delay | HoldAt


def label_of(function: Any) -> str:
    """Return the name of a function as orders use it: of a remote function, an actor class (its ``__init__``), a handle's method, a string.

    Functions inside of functions go by their own name, so two of the same name in one test cannot be told apart.
    """
    if isinstance(function, str):
        return function
    call = getattr(function, "_call", None)
    if call is not None and hasattr(call, "template"):
        return str(call.template.name)
    name = str(getattr(function, "__qualname__", "")).rpartition("<locals>.")[2]
    if not name:
        raise TypeError(
            f"A remote function, an actor class, a handle's method or a name like 'Counter.add' was expected, got {function!r}."
        )
    is_class = isinstance(function, type) or hasattr(function, "_is_async")
    return f"{name}.__init__" if is_class else name


class FaultBox:
    """The directory through which a test and its workers meet. Both sides."""

    def __init__(self, session_dir: str | Path) -> None:
        self.directory = Path(session_dir) / DIRECTORY
        self._orders = self.directory / "orders"
        self._taken = self.directory / "taken"
        self._running = self.directory / "running"

    # --- the test's side ---

    def create(self) -> None:
        for directory in (self._orders, self._taken, self._running):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def order(self, label: str, number: int, action: Action) -> Path:
        """Let a call of ``label`` meet ``action``; the lowest number goes first. Return the file that says so until it is taken."""
        directory = self._orders / label
        directory.mkdir(mode=0o700, exist_ok=True)
        partial = self.directory / f".{number:08d}"
        partial.write_bytes(serialize(action).to_bytes())
        target = directory / partial.name[1:]
        partial.rename(target)
        return target

    def is_taken(self, number: int) -> bool:
        return (self._taken / f"{number:08d}").exists()

    def told(self, pid: int) -> list[str]:
        """Return what a worker says of itself: the class of its actor ("" without), then the calls that it runs, the oldest first."""
        try:
            data = (self._running / str(pid)).read_bytes()
        except FileNotFoundError:
            data = b""  # it has not come so far yet
        return data.rstrip(b"\0").decode(errors="replace").split("\n")

    # --- the workers' side ---

    def take(self, label: str) -> Action | None:
        """Return what the call that begins now meets, None for nothing. About 3 us when there is nothing."""
        directory = self._orders / label
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return None
        for name in sorted(names):
            taken = self._taken / name
            try:
                os.rename(directory / name, taken)
            except FileNotFoundError:
                continue  # another call was faster
            action: Action = deserialize(taken.read_bytes())
            return action
        return None

    def map_running(self, pid: int) -> mmap.mmap:
        """Map the file in which a worker tells what it runs. It stays readable when the worker is killed."""
        fd = os.open(self._running / str(pid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, RUNNING_BYTES)
            return mmap.mmap(fd, RUNNING_BYTES)
        finally:
            os.close(fd)


class Fault:
    """Calls that will meet a fault. ``taken``: how many have."""

    def __init__(self, box: FaultBox, numbers: itertools.count[int], label: str, action: Action, times: int) -> None:
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times}.")
        self.label = label
        self._box = box
        self._numbers = [next(numbers) for _ in range(times)]
        self._files = [box.order(label, number, action) for number in self._numbers]

    @property
    def taken(self) -> int:
        """Calls that have met the fault."""
        return sum(self._box.is_taken(number) for number in self._numbers)

    def wait_taken(self, count: int = 1, timeout_s: float = 10.0) -> None:
        """Block until ``count`` calls have met the fault. TimeoutError after ``timeout_s`` seconds."""
        wait_for(lambda: self.taken >= count, timeout_s, f"Fault {count} of {len(self._files)} in {self.label} (taken: {self.taken})")

    def withdraw(self) -> None:
        """Call it off for those that have not met it."""
        for file in self._files:
            file.unlink(missing_ok=True)


class Hold(Fault):
    """Calls that wait where they begin, until ``release()`` or the end of the ``with`` block. Then they run as they would have."""

    def __init__(self, box: FaultBox, numbers: itertools.count[int], label: str, times: int) -> None:
        self._fifo = box.directory / f"gate-{next(numbers)}"
        os.mkfifo(self._fifo, 0o600)
        # Readers wait for as long as this end is open. Opened for both ways: that never blocks.
        self._gate = os.open(self._fifo, os.O_RDWR | os.O_CLOEXEC)
        super().__init__(box, numbers, label, HoldAt(str(self._fifo)), times)

    def release(self) -> None:
        """Let all of them go on, and those that have not come yet pass. Idempotent."""
        self.withdraw()
        if self._gate >= 0:
            self._fifo.unlink(missing_ok=True)
            gate, self._gate = self._gate, -1
            os.close(gate)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class Faults:
    """All orders of one session."""

    def __init__(self, session_dir: str | Path) -> None:
        self.box = FaultBox(session_dir)
        self.box.create()
        self._numbers = itertools.count(1)
        self._holds: list[Hold] = []

    def fail(self, function: Any, error: BaseException | type[BaseException], times: int) -> Fault:
        serialize(error)  # what cannot travel is refused here, not in a worker
        return Fault(self.box, self._numbers, label_of(function), Raise(error), times)

    def crash(self, function: Any, times: int, number: int = signal.SIGKILL) -> Fault:
        return Fault(self.box, self._numbers, label_of(function), Crash(number), times)

    def delay(self, function: Any, seconds: float, times: int) -> Fault:
        return Fault(self.box, self._numbers, label_of(function), Delay(seconds), times)

    def hold(self, function: Any, times: int) -> Hold:
        hold = Hold(self.box, self._numbers, label_of(function), times)
        self._holds.append(hold)
        return hold

    def close(self) -> None:
        """Let go whatever is held."""
        for hold in self._holds:
            hold.release()


def wait_at(fifo: str) -> None:
    """Worker: wait until the test lets go, or is gone."""
    try:
        # Without blocking: when the test lets go at this moment, nobody would ever open the other end.
        gate = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.set_blocking(gate, True)
        os.read(gate, 1)  # nothing is ever written; it ends when nobody holds the other end
    finally:
        os.close(gate)


__all__: Sequence[str] = ["Fault", "FaultBox", "Faults", "Hold", "label_of"]
