"""Local mode: ``init(local_mode=True)`` runs everything in the driver's process, for debugging and for tests without processes.

A second ``Runtime`` beside the cluster's. Same values, same errors, same copies: arguments, results and functions pass through
serialization, so what a task changes is not seen outside. What differs, on purpose:

- a task or a call of a plain actor runs *inside* ``.remote()``, on the calling thread, so breakpoints and prints are where one
  expects them; ``.remote()`` waits for references among the arguments;
- an actor with ``async def`` methods has a thread with an event loop, where its calls overlap as in the cluster;
- resources, placement and runtime environments are accepted and have no effect; nothing is ever killed by a signal;
- a generator runs to its end at once, unless ``_generator_backpressure_num_objects`` lets it pause.

    runtime.py   the Runtime: submission, get, wait
    objects.py   the table of objects and their counts
    calls.py     one call: arguments in, function run, results stored
    streams.py   generators
    actors.py    actor instances
    control.py   what a control store answers: names, groups, nodes, key-values
"""

from __future__ import annotations

from .runtime import LocalRuntime

__all__ = ["LocalRuntime"]
