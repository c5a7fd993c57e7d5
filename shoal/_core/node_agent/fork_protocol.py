"""What launcher and template say to each other, over a socket that preserves packets.

launcher -> template    the ids of up to ``BATCH`` workers to fork
template -> launcher    ``HELLO`` once it can fork; then one packet of reports per packet of ids
"""

from __future__ import annotations

import struct

from shoal._base.ids import WORKER_BYTES

#: Worker id, pid (0: none), errno of the fork that failed (0: none).
REPORT = struct.Struct(f"<{WORKER_BYTES}sii")
#: Worker ids per packet at most, so that the last one does not wait for too many forks.
BATCH = 16
HELLO = b"+"
