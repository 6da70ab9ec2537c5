"""What agentd costs, measured beside its alternatives: scripts/bench runs this.

One module a measurement; each has ``measure(lab) -> Result``, and :data:`bench.__main__.MEASUREMENTS` lists them all.
Alternatives are interleaved (A B A B), never run in blocks, so that a machine that warms up or gets busy does so for
all of them.
"""
