"""The planner: from a roofline to the best layouts and split. No worker and no network is needed.

model_shape, hf_config, models   what a model is: sizes and what follows from them
precision                        number formats
hardware                         devices, their links and measured efficiency
stacks                           what a serving engine adds to the device's time
memory, network                  what fits on a device; what collectives take
cost                             time of an engine step, part by part
work, roofline, roofline_report  FLOPs and bytes of a step; what a device allows of them at best
"""
