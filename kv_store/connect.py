"""From the `store` section of the configuration to stores that are ready for use.

Nothing here connects: a server that is down at start costs the first operations, not the start.
"""

from __future__ import annotations

from random import Random

from eastwest.clock import Clock
from eastwest.config import StoreConfig
from eastwest.layout import KVSpec
from kv_store.accounts import Quotas
from kv_store.address import StoreAddress
from kv_store.circuit import Circuit
from kv_store.codec import form_of
from kv_store.guard import Guard, StoreCounters
from kv_store.redis_sessions import RedisSessionStore
from kv_store.redis_store import RedisBlockStore

PIPES = 4  # operations under way at once with a server, per store object


def open_block_store(
    config: StoreConfig,
    url: str,
    spec: KVSpec,
    block_tokens: int,
    fingerprint: str,
    clock: Clock,
    rng: Random | None = None,
) -> RedisBlockStore:
    """A store of blocks of this model. Raises `ConfigError` for a URL that cannot be used."""
    counters = StoreCounters()
    return RedisBlockStore(
        StoreAddress.parse(url, config.password_file).pipes(PIPES),
        _guard(config, clock, rng, counters),
        counters,
        form_of(spec, block_tokens, fingerprint),
        config.namespace,
        config.ttl_s,
        Quotas.of_config(config),
    )


def open_session_store(
    config: StoreConfig, url: str, clock: Clock, rng: Random | None = None
) -> RedisSessionStore:
    """A store of sessions. Raises `ConfigError` for a URL that cannot be used."""
    counters = StoreCounters()
    return RedisSessionStore(
        StoreAddress.parse(url, config.password_file).pipes(PIPES),
        _guard(config, clock, rng, counters),
        counters,
        config.namespace,
        config.session_ttl_s,
    )


def _guard(config: StoreConfig, clock: Clock, rng: Random | None, counters: StoreCounters) -> Guard:
    circuit = Circuit(config.retry_after_s, rng or Random())
    return Guard(circuit, clock, config.timeout_s, counters)
