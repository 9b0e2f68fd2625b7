"""Moves KV from the ranks of a prefill worker to the ranks of a decode worker, and keeps its books.

Before anything moves:
plan: who sends which layers and heads to whom, and how that is cut into frames.
negotiate: whether two workers fit together, and by which transport.
explain: the plan of a pair of layouts, in figures.

Sending, on every rank:
sender: the pushes of one rank. push: one of them. readiness: what of it may leave next.
outgoing: what it reads. convert: from one KV dtype to another.
peer, connections: the gRPC side of it. group_push: the leader's part, commit included.

Receiving, on every rank:
receiver: the open transfers of one rank; decides on every frame. coverage: what has arrived.
digest: the checksum of KV in place. closing: waits for senders that write by themselves.
service: the gRPC face; push_server: that of Push alone, at the speed of the socket. intake: the
frames of one call. transfers: the leader's part; commits when every rank has its share.

Both:
ranks: what a leader asks of each rank, wherever it runs.
frame_codec: a frame to bytes and back, checksum included.
transport: the seam to the ways that KV can travel.

Ways to travel:
grpc_delivery: in frames. push_client, push_server: those over sockets. http2: their protocol.
shared_memory: into the receiver's memory on one host. fence: keeps late writers out of it.
host_identity: who shares memory with whom.
nixl_delivery: into the receiver's memory elsewhere. nixl_pool: that memory, and the fence around
it. nixl_agent: the library behind both.

Books:
ledger: who owns which blocks, and until when. auditor: compares it with what is really held.
"""
