"""Whole clusters in one process, one step at a time: many simulated processes, a virtual clock, seeded chance.

    threads.py       user threads that take turns with the loop: exactly one runs at any moment
    processes.py     a driver and workers made of the real code, with the operating system at its edge replaced
    process_loop.py  the loop of one process, which can stand still or end
    world.py         what all parts share: clock, network, chance
    hosts.py         who reaches whom between machines
    transfer.py      objects that move between nodes
    control.py       the control store, which can die and come back
    nodes.py         a node: agent, object store, and its end
    workers.py       a node's worker processes
    cluster.py       all of them, the driver, and the check that nothing is left
    faults.py        faults as data; nemesis.py carries them out
    programs.py      programs as data: what to submit, put, get, cancel, kill
    generation.py    random programs
    interpretation.py  runs a program with the public API, on simulated and on real processes alike
    expectation.py   what each get of a program may return
    campaign.py      runs programs by seed, shrinks those that fail
    real_processes.py  runs the same programs on real processes
    leftovers.py     what a process still holds, in words

Everything but the creation of processes, signals, sockets and clocks is the code that runs in production. The same seed gives the same run.

    python -m shoal.testing.simulation 4711                    run the program of this seed, and shrink it if it fails
    python -m shoal.testing.simulation 4711 --nodes 5 --faults the same on a cluster, with faults

    scale.py         thousands of nodes without processes: what scheduling costs
"""
