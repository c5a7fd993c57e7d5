"""The bytes of objects between two nodes: sockets of their own, used by threads, so that no loop stands still meanwhile.

    puller                                             source
    handshake                                   ◀──▶   handshake
    object id, offset, length                    ──▶
                                                 ◀──   found or not, size of the object; the bytes
    ...                                                the socket is kept for the next object

Who speaks on them are threads of ``pulls.py`` and ``uploads.py``.
"""

from __future__ import annotations

import struct

from shoal._base.ids import OBJECT_BYTES

#: Object id, offset of the first byte wanted, number of bytes wanted.
REQUEST = struct.Struct(f"<{OBJECT_BYTES}sQQ")
#: 1 if the object is there, its size.
REPLY = struct.Struct("<BQ")
#: Seconds in which some bytes must move. A node that is only slow moves some.
STALL_S = 30.0
