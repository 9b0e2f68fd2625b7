"""The planner: from a roofline to the best layouts and split. No worker and no network is needed.

model_shape, hf_config, models   what a model is: sizes and what follows from them
precision                        number formats
hardware                         devices, their links and measured efficiency
stacks                           what a serving engine adds to the device's time
memory, network                  what fits on a device; what collectives take
cost                             time of an engine step, part by part
work, roofline, roofline_report  FLOPs and bytes of a step; what a device allows of them at best
closed_loop                      latency under a fixed number of clients, as engines are measured
workload, traces                 what is asked: distributions of lengths, and how requests arrive
queueing                         waiting, at a percentile
layouts, links                   layouts worth trying; KV between pools
replicas                         what one replica can do: prompts, decode steps, or a mixture
pairing, search                  how many of each: the best split for each way of serving
steps                            FLOPs, bytes and parts of a split's typical steps
fit                              figures of a device or an engine from measured times
split, planning, advice, spares  the answer: the split, its frontier, what changes it, and why
ask                              all of it in one call, by names

    from planner import ask, plan
    answer = plan(ask("llama-3.1-70b", "h100", devices=32, isl=4000, osl=500,
                      ttft_s=0.6, tpot_s=0.0167))
    print(answer.advice)
"""

from planner.ask import ask
from planner.planning import Plan, Question, plan
from planner.split import Mode, Pool, Split, Targets
from planner.workload import Workload

__all__ = [
    "Mode", "Plan", "Pool", "Question", "Split", "Targets", "Workload", "ask", "plan",
]  # fmt: skip
