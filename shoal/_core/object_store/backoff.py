"""When a node that could not be reached is tried again: the longer it lasts, the rarer."""

from __future__ import annotations

#: Seconds of the first pause; doubles each time, up to the second value.
FIRST_S, LONGEST_S = 0.1, 5.0
#: Seconds beyond its pause after which a node that nobody has tried again is forgotten.
_FORGET_S = 60.0


class Backoff:
    """Pure: times are passed in."""

    def __init__(self) -> None:
        #: Node -> (its last pause, when that is over).
        self._pauses: dict[bytes, tuple[float, float]] = {}

    def failed(self, node_id: bytes, now: float, *, known: bool = True) -> None:
        """It could not be reached. Attempts that fail during a pause, having begun before it, count with the first.

        ``known``: False for one that is dead, or so new that nobody has heard of it. That is seen without trying, so pauses stay short:
        with growing ones each object of a dead node took 15 s to be found lost.
        """
        pause_s, over = self._pauses.get(node_id, (0.0, now))
        if over <= now:
            pause_s = (min(2 * pause_s, LONGEST_S) if known else 0.0) or FIRST_S
            self._pauses[node_id] = pause_s, now + pause_s
        for other in [other for other, (_, over) in self._pauses.items() if over + _FORGET_S < now]:
            del self._pauses[other]

    def worked(self, node_id: bytes) -> None:
        self._pauses.pop(node_id, None)

    def wait_s(self, node_id: bytes, now: float) -> float:
        """Return the seconds until it may be tried."""
        return max(0.0, self._pauses.get(node_id, (0.0, now))[1] - now)
