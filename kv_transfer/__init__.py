"""Moves KV from the ranks of a prefill worker to the ranks of a decode worker, and keeps its books.

plan: who sends which layers and heads to whom, and how that is cut into frames.
frame_codec: a frame to bytes and back, checksum included.
coverage: what of a transfer has arrived at one rank.
receiver: the open transfers of one rank; decides on every frame, commit and abort.
service: the gRPC face of a receiver.
sender: pushes the KV of one rank while it is being computed, and commits.
peer: the sender's connection to one receiving address.
ledger: who owns which blocks, and until when.
auditor: compares the ledger with what is really held.
"""
