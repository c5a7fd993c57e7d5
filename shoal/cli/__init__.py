"""The command ``shoal``: what users do in a shell. Each command asks or signals what runs; none of them is part of a cluster.

    main.py          the group of commands, and how errors end
    start.py         start --head, start --address
    stop.py          stop
    status.py        status, health-check
    drain.py         drain-node
    token.py         get-auth-token, rotate-auth-token
    symmetric.py     symmetric-run
    node_options.py  what describes a node, as options of the commands that start one
    place.py         which cluster a command is about

Modules import what they need inside their functions: a command answers before the rest of the runtime would be imported.
"""
