"""Prefill: forms prompt batches, runs them through the engine, pushes their KV to decode.

scheduler  which chunk of which prompt goes into the next step
job        one prompt on its way
worker     carries jobs from command to committed transfer
"""
