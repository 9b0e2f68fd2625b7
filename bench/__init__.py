"""Benchmarks of the live system and of its parts: ``python -m bench list``.

Each benchmark is a module with ``run(quick) -> list[dict]``, whose rows have the keys metric,
value, unit, against, against_value, ratio, goal and met. `against` is a peer or a physical limit
measured in the same run, alternating, medians.

engine       the engine against transformers, same dtype and threads
kv_transfer  KV by each transport against a raw socket, a plain copy and peers
kv_store     the offline store against a raw socket to the same server
resume       a stored session against recomputing it, and both at once from the two ends
serving      disaggregated against aggregated, on the same cores
policies     placement policies on the same trace, simulated; what one placement costs
prefix_index the router's index of a million blocks: memory, lookups, intake of events
router       the router's speed beside Dynamo, vllm-router and smg, over workers that take no time
sim          simulated serving: storms by seed, and an hour of a trace
operate      what a client that has gone still costs, in engine steps and until its blocks are free
planner      predictions against measured rows and published deployments; time of a plan
"""
