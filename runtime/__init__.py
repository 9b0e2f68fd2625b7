"""The process a worker lives in, and Ray, which gives it life.

holdings      who holds which KV blocks: block pool and ledger, always changed together
step_loop     runs engine steps on behalf of prefill and decode
intake        takes blocks for a prompt, with what is cached and stored of its KV
stored_prefix fills blocks from the offline store
work_check    what a worker accepts from a router
control       the gRPC server end of the router's control stream
actor         the thin Ray actor around a hosted worker
supervisor    starts, watches and replaces actors
cluster       a local or remote Ray cluster
"""
