"""The same work many times from several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

THREADS = 4


def churn(count: int, once: Callable[[int], None]) -> list[BaseException]:
    """Call ``once`` with 0 to ``count - 1``, shared out to four threads; return what was raised."""
    failures: list[BaseException] = []

    def several(first: int) -> None:
        for number in range(first, count, THREADS):
            try:
                once(number)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=several, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
