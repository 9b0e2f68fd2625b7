"""From a URL and the `store` section of the configuration to stores that are ready for use.

Nothing here connects: a server that is down at start costs the first operations, not the start.
No message ever shows a URL, since it may hold a password.
"""

from __future__ import annotations

from random import Random
from urllib.parse import urlsplit

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import RedisError

from eastwest.clock import Clock
from eastwest.config import StoreConfig
from eastwest.errors import ConfigError
from eastwest.layout import KVSpec
from kv_store.accounts import Quotas
from kv_store.circuit import Circuit
from kv_store.codec import form_of
from kv_store.guard import Guard, StoreCounters
from kv_store.pipe import MakeConnection, Pipes
from kv_store.redis_sessions import RedisSessionStore
from kv_store.redis_store import RedisBlockStore

SCHEMES = ("redis", "rediss", "unix")
PIPES = 4  # operations under way at once, per store object


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
        Pipes(connections_to(url), PIPES),
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
        Pipes(connections_to(url), PIPES),
        _guard(config, clock, rng, counters),
        counters,
        config.namespace,
        config.session_ttl_s,
    )


def connections_to(url: str) -> MakeConnection:
    """Makes unconnected connections. Raises `ConfigError` naming the part that is wrong."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad("a port or host that cannot be read") from None
    if parts.scheme not in SCHEMES:
        raise _bad("another scheme, or none")
    if parts.scheme == "unix" and not parts.path:
        raise _bad("no path of a socket")
    if parts.scheme != "unix" and not parts.hostname:
        raise _bad("no host")
    if parts.scheme != "unix" and parts.path.strip("/") and not parts.path[1:].isdecimal():
        raise _bad("a database that is not a number")
    if port == 0:
        raise _bad("port 0")
    try:
        pool = ConnectionPool.from_url(url)
        # Deadlines are the guard's. RESP2 is what `kv_store.resp` speaks.
        fixed = {"socket_timeout": None, "socket_connect_timeout": None, "protocol": 2}
        pool.connection_kwargs.update(fixed)
        make: MakeConnection = pool.make_connection
        make()
    except (TypeError, ValueError, RedisError):
        raise _bad("an option that the client does not know") from None
    return make


def _bad(what: str) -> ConfigError:
    return ConfigError(
        f"store.url has {what}; allowed: redis://[user:password@]host[:port][/database], the same "
        "with rediss://, or unix:///path/of/socket"
    )


def _guard(config: StoreConfig, clock: Clock, rng: Random | None, counters: StoreCounters) -> Guard:
    circuit = Circuit(config.retry_after_s, rng or Random())
    return Guard(circuit, clock, config.timeout_s, counters)
