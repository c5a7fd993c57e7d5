"""What the driver prints of its workers' output: prefixes, colours, and lines that many workers repeat.

    LogLines ─▶ LogOutput.lines ─▶ text, at once:  (name pid=123) text
                    └─ the same line of other workers ─▶ counted ─▶ flush_due:  (name pid=123) text [repeated 7x across cluster]

A line is "the same" when it differs in words with digits only (step 17, 0.93, pid 4711). The first one is printed at once; those of *other*
workers are counted over a window and printed once, with the newest text. A worker alone may repeat itself as it likes. Pure: the clock is
passed in.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from shoal._base.settings import Settings
from shoal._core.wire.messages import LogLines

#: Different lines that are watched for repetition at once; beyond it the oldest are let go.
WATCHED_LINES = 10_000
_HINT = " (shoal collapses repeated lines of many workers; SHOAL_DEDUP_LOGS=0 shows all.)"
_WITH_DIGITS = re.compile(r"\S*\d\S*")
_CYAN, _GREEN, _RESET = "\x1b[36m", "\x1b[32m", "\x1b[0m"
#: Prefix colours by process when RAY_COLOR_PREFIX=1.
_PALETTE = ("\x1b[35m", "\x1b[34m", "\x1b[32m", "\x1b[91m", "\x1b[36m", "\x1b[33m")


class _Repeated(msgspec.Struct):
    since: float
    first: tuple[int, str]  # (pid, ip) that wrote it first
    prefix: str
    line: str
    count: int = 0
    #: More than one process has written it.
    shared: bool = False


@dataclass
class LogOutput:
    """Turns log records into the lines to print."""

    settings: Settings
    clock: Callable[[], float]
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    #: Colour the prefix; None: when standard output is a terminal.
    colours: bool | None = None
    #: This machine's own address: not shown.
    ip: str = "127.0.0.1"

    def __post_init__(self) -> None:
        #: By canonical text, oldest window first.
        self._recent: dict[str, _Repeated] = {}
        self._hint = _HINT
        allow, skip = self.settings.dedup_logs_allow_regex, self.settings.dedup_logs_skip_regex
        self._allow = re.compile(allow) if allow else None
        self._skip = re.compile(skip) if skip else None
        choice = self.environ.get("RAY_COLOR_PREFIX", self.environ.get("SHOAL_COLOR_PREFIX"))
        self._by_process = choice == "1"
        if self.colours is None:
            self.colours = choice != "0" and (self._by_process or sys.stdout.isatty())

    def lines(self, message: LogLines) -> list[str]:
        """Return what to print now for these lines, with whatever else has become due."""
        now = self.clock()
        printed = self.flush_due(now)
        prefix = self._prefix(message)
        if not self.settings.dedup_logs:
            return printed + [f"{prefix} {line}" for line in message.lines]
        source = (message.pid, message.ip)
        for line in message.lines:
            if self._skip is not None and self._skip.search(line):
                continue
            if (self._allow is not None and self._allow.search(line)) or not self._absorb(line, prefix, source, now):
                printed.append(f"{prefix} {line}")
        return printed

    def flush_due(self, now: float) -> list[str]:
        """Return the collapsed lines whose window has ended; ``math.inf`` returns all that are left."""
        due = []
        for key, repeated in list(self._recent.items()):
            if now - repeated.since < self.settings.dedup_logs_window_s:
                break
            del self._recent[key]
            if repeated.count > 1:
                due.append(f"{repeated.prefix} {repeated.line} {self._repetition(repeated.count)}")
                # It goes on being collapsed, and moves behind the younger ones.
                repeated.since, repeated.count = now, 0
                self._recent[key] = repeated
            elif repeated.count == 1:
                due.append(f"{repeated.prefix} {repeated.line}")
        return due

    def _absorb(self, line: str, prefix: str, source: tuple[int, str], now: float) -> bool:
        """Count the line if another process has written it lately; False: it is to be printed."""
        key = " ".join(_WITH_DIGITS.sub("", line).split())
        known = self._recent.get(key)
        if known is None:
            if len(self._recent) >= WATCHED_LINES:
                del self._recent[next(iter(self._recent))]
            self._recent[key] = _Repeated(now, source, prefix, line)
            return False
        known.shared = known.shared or source != known.first
        if not known.shared:
            return False
        known.count += 1
        known.line, known.prefix = line, prefix
        return True

    def _repetition(self, count: int) -> str:
        text = f"[repeated {count}x across cluster]{self._hint}"
        self._hint = ""
        return f"{_GREEN}{text}{_RESET}" if self.colours else text

    def _prefix(self, message: LogLines) -> str:
        where = f", ip={message.ip}" if message.ip and message.ip != self.ip else ""
        name = f"{message.name} " if message.name else ""
        text = f"({name}pid={message.pid}{where})"
        if not self.colours:
            return text
        colour = _PALETTE[message.pid % len(_PALETTE)] if self._by_process else _CYAN
        return f"{colour}{text}{_RESET}"
