"""What every store of blocks promises (`eastwest.ports.BlockStore`), for each of them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from eastwest.errors import InvalidArgument
from eastwest.ports import BlockStore
from kv_store.embedded import EmbeddedValkey
from kv_store.guard import StoreCounters
from kv_store.memory_store import MemoryBlockStore
from kv_store.redis_store import RedisBlockStore
from tests.contract.kv_store.builders import (
    ONE_PART,
    THREE_PARTS,
    TTL_S,
    ManualClock,
    a_block_store,
    a_chain,
    block_keys,
    names_of,
    payloads_of,
)

BLOCK_BYTES = THREE_PARTS.block_bytes


class BlockStoreContract(ABC):
    @pytest.fixture
    @abstractmethod
    def store(self) -> BlockStore:
        """An empty store of blocks of `BLOCK_BYTES`."""

    @pytest.fixture
    @abstractmethod
    def counters(self, store: BlockStore) -> StoreCounters:
        """Of that store."""

    async def test_an_empty_store_has_nothing(self, store: BlockStore) -> None:
        names = names_of(a_chain(3))
        assert await store.match(names) == 0
        assert await store.read(names) == []
        await store.touch(names)

    async def test_asking_for_nothing_is_allowed(self, store: BlockStore) -> None:
        assert await store.match([]) == 0
        assert await store.read([]) == []
        assert await store.write([]) == 0
        await store.touch([])

    async def test_what_was_written_is_read(self, store: BlockStore) -> None:
        chain = a_chain(5)
        assert await store.write(chain) == 5 * BLOCK_BYTES
        assert await store.match(names_of(chain)) == 5
        assert await store.read(names_of(chain)) == payloads_of(chain)

    async def test_a_block_that_is_known_is_not_written_again(self, store: BlockStore) -> None:
        chain = a_chain(4)
        await store.write(chain[:2])
        assert await store.write(chain) == 2 * BLOCK_BYTES
        assert await store.write(chain) == 0
        assert await store.read(names_of(chain)) == payloads_of(chain)

    @pytest.mark.parametrize("gap", [0, 1, 4])
    async def test_a_gap_ends_the_prefix(self, store: BlockStore, gap: int) -> None:
        chain = a_chain(5)
        await store.write([block for i, block in enumerate(chain) if i != gap])
        assert await store.match(names_of(chain)) == gap
        assert await store.read(names_of(chain)) == payloads_of(chain[:gap])

    @pytest.mark.parametrize("gap", [7, 8, 23, 24, 39, 40])
    async def test_long_chains_end_at_their_gap_too(self, store: BlockStore, gap: int) -> None:
        chain = a_chain(40)
        await store.write([block for i, block in enumerate(chain) if i != gap])
        assert await store.match(names_of(chain)) == gap
        assert len(await store.read(names_of(chain))) == gap

    async def test_chains_do_not_mix(self, store: BlockStore) -> None:
        chain, other = a_chain(2), a_chain(2, seed=1)
        await store.write(chain)
        assert await store.match(names_of(other)) == 0
        assert await store.read(names_of(other)) == []

    @pytest.mark.parametrize("change", [-1, 1])
    async def test_a_block_of_another_length_is_refused_and_nothing_written(
        self, store: BlockStore, change: int
    ) -> None:
        (good, bad) = a_chain(2)
        with pytest.raises(InvalidArgument, match=str(BLOCK_BYTES)):
            await store.write([good, (bad[0], bytes(BLOCK_BYTES + change))])
        assert await store.match([good[0]]) == 0

    async def test_any_buffer_will_do(self, store: BlockStore) -> None:
        chain = a_chain(2)
        (first, data), (second, more) = chain
        await store.write([(first, bytearray(data)), (second, memoryview(more))])
        assert await store.read(names_of(chain)) == payloads_of(chain)

    async def test_what_is_read_stays_as_it_is(self, store: BlockStore) -> None:
        chain, other = a_chain(3), a_chain(3, seed=1)
        await store.write(chain + other)
        blocks = await store.read(names_of(chain))
        await store.read(names_of(other))
        await store.close()
        assert blocks == payloads_of(chain)

    async def test_hits_misses_and_bytes_are_counted(
        self, store: BlockStore, counters: StoreCounters
    ) -> None:
        chain = a_chain(3)
        await store.write(chain[:2])
        await store.read(names_of(chain))
        assert (counters.hits, counters.misses) == (2, 1)
        assert counters.bytes_read == counters.bytes_written == 2 * BLOCK_BYTES
        assert (counters.corrupt, counters.errors) == (0, 0)

    async def test_many_tasks_share_it(self, store: BlockStore) -> None:
        chains = [a_chain(20, seed=seed) for seed in range(8)]
        await asyncio.gather(*(store.write(chain) for chain in chains))
        found = await asyncio.gather(*(store.read(names_of(chain)) for chain in chains))
        assert found == [payloads_of(chain) for chain in chains]

    async def test_closing_twice_is_allowed(self, store: BlockStore) -> None:
        await store.close()
        await store.close()


class TestMemoryBlockStore(BlockStoreContract):
    @pytest.fixture
    def store(self) -> MemoryBlockStore:
        return MemoryBlockStore(1 << 20, block_bytes=BLOCK_BYTES)

    @pytest.fixture
    def counters(self, store: MemoryBlockStore) -> StoreCounters:
        return store.counters

    async def test_blocks_expire_unless_they_are_touched(self) -> None:
        clock = ManualClock()
        store = MemoryBlockStore(1 << 20, ttl_s=TTL_S, clock=clock)
        kept, lost = a_chain(1), a_chain(1, seed=1)
        await store.write(kept + lost)
        clock.advance(TTL_S / 2)
        await store.touch(names_of(kept))
        clock.advance(TTL_S / 2)
        assert await store.match(names_of(kept)) == 1
        assert await store.match(names_of(lost)) == 0

    async def test_the_least_recently_used_leave_first(self) -> None:
        store = MemoryBlockStore(2 * BLOCK_BYTES)
        first, second, third = (a_chain(1, seed=seed) for seed in range(3))
        await store.write(first + second)
        await store.read(names_of(first))
        await store.write(third)
        assert [await store.match(names_of(c)) for c in (first, second, third)] == [1, 0, 1]


class TestRedisBlockStore(BlockStoreContract):
    @pytest.fixture(params=[ONE_PART, THREE_PARTS], ids=["one part", "three parts"])
    async def store(
        self, server: EmbeddedValkey, admin: Redis, request: pytest.FixtureRequest
    ) -> AsyncIterator[RedisBlockStore]:
        store = a_block_store(server.url, request.param)
        yield store
        await store.close()

    @pytest.fixture
    def counters(self, store: RedisBlockStore) -> StoreCounters:
        return store.counters


Steps = list[tuple[str, int, int]]
CHAIN = a_chain(6)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["write", "evict", "touch"]), st.integers(0, 5), st.integers(0, 6)
        ),
        max_size=12,
    ),
    memory=st.booleans(),
)
def test_a_store_is_a_prefix_of_a_dictionary(
    server: EmbeddedValkey, steps: Steps, memory: bool
) -> None:
    """The model: a dict of what was written and not evicted; both agree on every prefix."""

    async def run() -> None:
        redis = a_block_store(server.url)
        in_memory = MemoryBlockStore(1 << 20)
        store: BlockStore = in_memory if memory else redis
        model: set[int] = set()
        async with Redis.from_url(server.url) as admin:
            await admin.flushall()
            for action, start, stop in steps:
                chosen = range(start, stop)
                blocks = CHAIN[start:stop]
                if action == "write":
                    fresh = len(set(chosen) - model) * BLOCK_BYTES
                    assert await store.write(blocks) == fresh
                    model.update(chosen)
                elif action == "touch":
                    await store.touch(names_of(blocks))
                elif blocks and not memory:
                    keys = await block_keys(admin, blocks[0][0])
                    if keys:
                        await admin.delete(keys[stop % len(keys)])
                    model.discard(start)
                prefix = next(i for i in range(len(CHAIN) + 1) if i not in model)
                assert await store.match(names_of(CHAIN)) == prefix
                assert await store.read(names_of(CHAIN)) == payloads_of(CHAIN[:prefix])
        await redis.close()

    asyncio.run(run())
