"""SIMULATED serving in virtual time: the scheduler, workers, ledgers and leases that are deployed,
around engines and links whose time is computed. One thread, no sockets; a seed reproduces a run.

virtual_loop   an event loop whose clock jumps to the next timer
engine         steps that take the cost model's time, and tokens that anybody can check
links          transfers and control streams with delays, capacities and faults
replica        the real prefill and decode worker over a simulated engine
router         the real scheduler, its timer and its clients
cluster        a whole deployment, its faults, and what is checked after every event
replay         a trace of requests against a cluster, and what they saw
decisions      a router's decision log, asked again of the same policy or of another

    python -m sim chaos --seeds 200          faults at random times; a failing seed is printed
    python -m sim decisions FILE             whether the policy would answer the same
"""
