"""URLs: the good ones open without I/O, the bad ones are told apart and never shown."""

from __future__ import annotations

import pytest

from eastwest.clock import SystemClock
from eastwest.config import StoreConfig
from eastwest.errors import ConfigError
from kv_store.address import StoreAddress
from kv_store.connect import open_block_store, open_session_store
from tests.contract.kv_store.builders import SPEC

SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:pw@localhost:6380/3",
        "rediss://cache.example:6379/0?ssl_cert_reqs=none",
        "unix:///run/valkey.sock",
        "unix://:pw@/run/valkey.sock?db=2",
        "redis://[::1]:6379",
        "redis+cluster://user:pw@a:7000,b:7001",
        "rediss+cluster://a?ssl_cert_reqs=none",
        "redis+sentinel://a,b:26380,[::1]:26379/main/3",
        "rediss+sentinel://:pw@a/main",
    ],
)
async def test_a_good_url_opens_stores_that_no_server_is_needed_for(url: str) -> None:
    blocks = open_block_store(StoreConfig(), url, SPEC, 4, "model", SystemClock())
    sessions = open_session_store(StoreConfig(), url, SystemClock())
    assert blocks.available
    assert sessions.available
    await blocks.close()
    await sessions.close()


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "scheme"),
        ("localhost:6379", "scheme"),
        (f"http://:{SECRET}@localhost", "scheme"),
        (f"redis:/:{SECRET}@localhost", "host"),
        (f"redis://:{SECRET}@", "host"),
        (f"redis://:{SECRET}@localhost:port", "port"),
        (f"redis://:{SECRET}@localhost:99999", "port"),
        (f"redis://:{SECRET}/x@localhost:1", "port"),
        (f"redis://:{SECRET}@localhost:0", "port 0"),
        (f"redis://:{SECRET}@localhost/zero", "database"),
        (f"redis://:{SECRET}@[::1", "host"),
        (f"unix://:{SECRET}@", "path"),
        (f"redis://:{SECRET}@localhost?wrong={SECRET}", "option"),
        (f"redis://:{SECRET}@localhost?db={SECRET}", "option"),
        (f"rediss://:{SECRET}@localhost?ssl_cert_reqs=maybe", "option"),
        (f"unix+cluster://:{SECRET}@/path", "scheme"),
        (f"redis+cluster://:{SECRET}@a,b:0", "port 0"),
        (f"redis+cluster://:{SECRET}@a,b:x", "port"),
        (f"redis+cluster://:{SECRET}@a/1", "a Cluster has one"),
        (f"redis+cluster://:{SECRET}@", "host"),
        (f"redis+sentinel://:{SECRET}@a", "service"),
        (f"redis+sentinel://:{SECRET}@a/main/x", "database"),
    ],
)
def test_a_bad_url_is_a_config_error_that_shows_no_password(url: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        StoreAddress.parse(url)
    assert SECRET not in str(caught.value)
    assert "allowed:" in caught.value.message
    assert caught.value.__context__ is None or caught.value.__suppress_context__
