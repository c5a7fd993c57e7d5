"""Processes of a session: how they start, who watches whom, and how nothing is left behind.

Owns: the session directory, the head process, the template from which workers are forked. Must not know: tasks, objects, leases.

    start.py          driver: start a head, stop it
    head.py           the head's start, up to the fork of the template
    serving.py        the head's loop: watch the driver, end
    composition.py    what the head is made of: node agent, object store, wired together
    local_control_store.py   ... and the control store of a session of one node
    node.py           the first lines of one that is part of a cluster
    template.py       the warm single-threaded process that forks workers, and the janitor when the head is gone
    bootstrap.py      the first lines that a fresh interpreter runs
    session.py        the session directory; what is left of earlier ones
    discovery.py      the user's sessions on this machine
    stopping.py       end daemons, and what is left of them
    asking.py         one question to a control store, for those who are no part of the cluster
"""
