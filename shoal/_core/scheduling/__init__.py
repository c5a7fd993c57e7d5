"""Where work may run: resources, labels, strategies, node choice and bundle placement.

Owns: the arithmetic of resources and every answer to "would it fit?", for leases, placement groups and the autoscaler alike.
Must not know: sockets, processes, clocks. All functions here are pure, or change only the object they are called on.
Runs in: every process (options are parsed in the driver, leases are counted in the node agent, actors placed by the control store).
"""
