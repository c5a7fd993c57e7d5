"""cloudpickle, which pickles what pickle cannot: functions and classes of the driver's script, lambdas, closures.

References and actor handles survive it. A reference that is pickled here leaves the sight of shoal, so its object is kept until
its owner ends.
"""

from __future__ import annotations

from cloudpickle import (
    CloudPickler,
    Pickler,
    dump,
    dumps,
    load,
    loads,
    register_pickle_by_value,
    unregister_pickle_by_value,
)

__all__ = [
    "CloudPickler",
    "Pickler",
    "dump",
    "dumps",
    "load",
    "loads",
    "register_pickle_by_value",
    "unregister_pickle_by_value",
]
