"""The composition root: everything is put together here, and nothing is decided.

replica   one worker: engine, blocks, prefill, decode, servers
hosting   makes a replica inside its Ray actor
launch    a whole deployment: store, Ray, router, workers
cli       the `eastwest` command
demo      `eastwest demo`: one question through prefill, transfer, decode, spill and resume
settings  a configuration as YAML that explains itself
quiet     keeps gRPC's own log lines off the terminal
report    tables and timings for terminals
calibrate, calibrate_cli  `eastwest calibrate`: this machine as a device of the planner
"""
