"""The client side of the control store: how drivers, workers and node agents keep in touch with it across its restarts.

Owns: what is not answered yet, and what must be renewed over the next connection (``state``, pure). ``link`` makes the connections, to
one of ``addresses``.
Must not know: tables, leases, tasks.
"""

from __future__ import annotations

from .addresses import ControlAddresses, dial
from .link import ControlLink, Dial
from .state import LinkState

__all__ = ["ControlAddresses", "ControlLink", "Dial", "LinkState", "dial"]
