"""One node: its worker processes, its resources, the objects whose owners are gone.

Owns: ``server`` (messages in, messages out) drives the pure parts: ``leases`` with ``waiting`` and ``bundles`` (who may use how much),
``pool`` (which worker serves a lease), ``hosted_actors``, ``adoption``. ``launcher`` starts the processes, ``logs`` reads what they write.
Must not know: tasks, the control store's tables, values of objects.
Runs in: the head process (one per node).
"""
