"""Who has been silent for too long, by a clock that stands still while its owner does.

    hear(key) ... hear(key) ... look(now) -> [keys that said nothing for limit_s]

Whoever looks is a process like those it looks at: stopped for a minute (SIGSTOP, a machine without time to spare), it would find everybody
silent. It looks every ``look_s``; a look that comes later than that by more than one such span gives everybody the missing time again.
"""

from __future__ import annotations


class Silence:
    """Pure: the time is passed in, seconds of a monotonic clock."""

    def __init__(self, limit_s: float, look_s: float) -> None:
        self.limit_s = limit_s
        self.look_s = look_s
        self._heard: dict[bytes, float] = {}
        #: When the last look was, if looks are under way.
        self._looked: float | None = None

    def hear(self, key: bytes, now: float, *, limit_s: float | None = None) -> None:
        """The key has given a sign of life; ``limit_s``: this once it has this long for the next one."""
        self._heard[key] = now if limit_s is None else now + limit_s - self.limit_s

    def forget(self, key: bytes) -> None:
        self._heard.pop(key, None)
        if not self._heard:
            self._looked = None

    def __bool__(self) -> bool:
        """Whether there is somebody to look at."""
        return bool(self._heard)

    def look(self, now: float) -> list[bytes]:
        """Return the keys that have been silent for the limit. To be called every ``look_s``."""
        if self._looked is not None and (missing := now - self._looked - self.look_s) > self.look_s:
            self._heard = {key: min(heard + missing, now) if heard <= now else heard for key, heard in self._heard.items()}
        self._looked = now
        return [key for key, heard in self._heard.items() if now - heard >= self.limit_s]
