"""The cluster's truth: jobs, nodes, actors and their names, placement groups, functions, key-values, published changes.

Owns: these tables, in memory and in a ``Storage``. Must not know: tasks, objects, leases, worker processes. Runs in the head.

    jobs nodes actors placement placement_groups functions key_values publication     pure state, one file per noun
        |  return instructions (instructions.py): Change a row, Start, Stop, Announce...
    *_service.py    carry them out: one service per group of messages
        |
    outbox.py       commits all rows of one loop iteration in one transaction, then lets the messages go
        |
    server.py       connections and the table message type -> method
"""

from __future__ import annotations
