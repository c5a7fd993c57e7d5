"""Numbers and names that travel in templates and that both ends agree on."""

from __future__ import annotations

#: ``num_returns`` on the wire: a stream of items; one object that holds references to all items.
STREAMING, DYNAMIC = -1, -2

#: ``retry_exceptions`` on the wire: none, all; otherwise a pickled tuple of classes.
RETRY_NONE, RETRY_ALL = b"", b"*"

#: Methods that every actor has; the executor knows them by name.
READY, CALL, TERMINATE = "__ray_ready__", "__ray_call__", "__ray_terminate__"
