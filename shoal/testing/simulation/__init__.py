"""Whole sessions in one process, one step at a time: many simulated processes, a virtual clock, seeded chance.

    threads.py       user threads that take turns with the loop: exactly one runs at any moment
    processes.py     a driver and workers made of the real code, with the operating system at its edge replaced
    cluster.py       a head (control store, node agent, object store), its workers, faults, and the check that nothing is left
    programs.py      programs as data: what to submit, put, get, cancel, kill
    generation.py    random programs
    interpretation.py  runs a program with the public API, on simulated and on real processes alike
    expectation.py   what each get of a program may return
    campaign.py      runs programs by seed, shrinks those that fail
    real_processes.py  runs the same programs on real processes
    leftovers.py     what a process still holds, in words

Everything but the creation of processes, signals, sockets and clocks is the code that runs in production. The same seed gives the same run.

    python -m shoal.testing.simulation 4711          run the program of this seed, and shrink it if it fails
"""
