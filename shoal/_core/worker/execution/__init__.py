"""Runs tasks and actor calls inside a worker.

    inbound.py     I/O thread: what owners push, cancel, and take back
    calls.py       one call: its arguments, its context, its reply
    tasks.py       main thread: one task at a time
    actors.py      an actor instance: sync, threaded or asyncio
    generators.py  streaming results

Owns: the run queue and the instance of the actor. Must not know: leases, resources, other workers.
"""
