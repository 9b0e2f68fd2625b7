"""A real server: one for all tests that leave it in order, one of one's own for the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from kv_store.embedded import EmbeddedValkey

MEMORY_BYTES = 256 << 20


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(MEMORY_BYTES) as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(MEMORY_BYTES) as server:
        yield server


@pytest.fixture
async def admin(server: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A client beside the store's, on an empty server."""
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield client
