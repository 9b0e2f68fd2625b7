"""Decode: makes room for sequences, takes their KV in, runs decode steps, rests what is done.

scheduler  which sequences decode in the next step; appends tokens and finds endings
residency  which sessions rest on the device, since when, and which goes first
spiller    carries resting sessions to the offline store
sequence   one request on its way
in_place   reservations that the same replica prefills
worker     carries requests from reservation to their last token
"""
