"""What tests and benchmarks share. Nothing here serves.

builders       valid values of the shared words
checkers       promises that hold in every test
simulated      a SIMULATED worker in virtual time, and the agenda it lives by
engine         a SIMULATED engine whose tokens depend on its KV
kv_memory      a paged KV in plain numpy
faults         a network that damages, loses and repeats KV frames
proxy          a TCP proxy that cuts, delays, holds back and damages
audits         what workers in other processes say that they hold
worker_server  SIMULATED workers behind a real control stream
gates          waiting for what a test made happen
"""
