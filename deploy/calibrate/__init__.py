"""`eastwest calibrate`: this machine as a device of the planner, by running the real parts.

repeated  how a piece of work is timed on a machine that is busy with other things too
peaks     arithmetic and memory of one process
links     two processes: collectives, and KV by each transport
steps     the engine's steps over a grid of prompts, batches and contexts
machine   all of these, and the fit, as a device
report    predictions beside what was measured
"""
