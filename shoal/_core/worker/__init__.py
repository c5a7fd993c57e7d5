"""The runtime inside every driver and worker process: ownership, submission, execution.

Owns: the objects this process made and their counts, its tasks and their lineage, the leases it holds, its calls to actors, and
in workers the run queue. Must not know: how the node agent or the control store work inside; it meets them through wire messages
alone. Runs in: drivers and workers. One I/O thread owns all state; user threads talk to it through ``inbox.Inbox``.

    api -> runtime.py (any thread) -> inbox -> core.py (I/O thread) -> ownership.py, submission.py, actor_calls.py (pure)
                                                    |
                                                    +-> execution/ (workers: main thread, thread pools, asyncio)
"""
