"""The offline store: where the KV and the words of inactive sessions rest, complete or absent.

codec           a canonical block as parts and the manifest that vouches for them
resp            the Redis protocol for large values, without I/O
pipe            connections that carry them without copies
circuit         when a store that does not answer is asked again
guard           circuit, deadline and counters around every operation
redis_store     blocks in Redis or Valkey
memory_store    blocks in this process
sessions        session records, their stored form, and sessions in this process
redis_sessions  sessions in Redis or Valkey
embedded        a Valkey server of our own
connect         from URL and configuration to open stores
"""
