"""What users call: ``init``, the decorator, options and their checks, handles, ``get``/``put``/``wait``/``cancel``.

Owns: the meaning of every public name of the core, and the wire records (templates, shapes, actor specs) made from options.
Must not know: how a runtime works. It speaks to ``_base.runtime.Runtime`` alone, of which there are two: the cluster's (``worker``) and
``local_mode``, which runs everything in the driver.
Runs in: drivers and workers; ``lifecycle`` acts in drivers only.

    decorator -> remote_function | actor_class -> options, shapes, signatures, exports -> runtime.submit_task / create_actor
                 actor_handle -> actor_method  ------------------------------------------> runtime.submit_actor_call
    objects, context, placement -------------------------------------------------------> runtime
"""
