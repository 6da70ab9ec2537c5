"""``agentd demo``: the main job, shown on a small real repository, in a place of its own that is taken away afterwards.

:mod:`agentd.demo.stage` is that place: commands as one would type them, and what is left when it is over.
:mod:`agentd.demo.story` is what is shown, in order, and what must be true of it. :mod:`agentd.demo.shop` is the
repository, and what the model says where a script plays it.
"""
