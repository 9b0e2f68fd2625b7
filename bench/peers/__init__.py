"""Other systems' ways to move 256 MiB between two processes, each a script of its own.

A script runs in an environment that has that system and nothing of ours: it imports only numpy
and the system. It takes the two cores as arguments, reads ``contiguous`` or ``scattered`` (64 KiB
pieces in random order on both sides) from its standard input, and answers each with seconds.
"""
