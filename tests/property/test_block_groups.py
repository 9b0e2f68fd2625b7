"""The blocks of several data-parallel groups: a sequence never spans two of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.blocks import BlockHash, block_hashes, hash_seed
from eastwest.errors import Overloaded
from engine.block_groups import BlockGroups

SEED = hash_seed("model", "")


@given(
    groups=st.integers(1, 4),
    group_blocks=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_blocks_are_taken_from_one_group_and_given_back_to_it(
    groups: int, group_blocks: int, seed: int
) -> None:
    rng = random.Random(seed)
    pool = BlockGroups(groups * group_blocks, groups)
    held: list[list[int]] = []
    told: set[BlockHash] = set()
    for _ in range(60):
        if held and rng.random() < 0.4:
            pool.release(held.pop(rng.randrange(len(held))))
            continue
        prompt = [rng.randrange(2) for _ in range(4 * rng.randrange(4))]
        hashes = block_hashes(prompt, 4, SEED)
        total = len(hashes) + rng.randrange(3)
        try:
            shared, fresh = pool.take(hashes, total)
        except Overloaded:
            continue
        blocks = [*shared, *fresh]
        assert len(blocks) == len(set(blocks)) == total
        assert len({block // group_blocks for block in blocks}) <= 1
        for block, block_hash in zip(blocks, hashes, strict=False):
            pool.publish(block, block_hash)
        held.append(blocks)
        pool.check_integrity()
        if rng.random() < 0.5:
            for events in pool.journal.take():
                told -= {h for gone in events.removed for h in gone.hashes}
                told |= {h for here in events.stored for h in here.hashes}
            assert told == set(pool.names())
    assert sum(pool.refcounts().values()) == sum(map(len, held))
    for blocks in held:
        pool.release(blocks)
    assert not pool.refcounts()
    assert pool.free_blocks + pool.cached_blocks == pool.num_blocks


def test_a_known_prefix_is_shared_where_it_lies_and_else_the_emptiest_group_is_taken() -> None:
    pool = BlockGroups(16, groups=2)
    hashes = block_hashes(range(8), 4, SEED)
    _, first = pool.take(hashes, 3)
    for block, block_hash in zip(first, hashes, strict=False):
        pool.publish(block, block_hash)
    _, other = pool.take(block_hashes(range(100, 108), 4, SEED), 3)
    assert pool.group_of(other) != pool.group_of(first), "the emptier group"
    shared, fresh = pool.take(hashes, 4)
    assert shared == first[:2]
    assert pool.group_of(fresh) == pool.group_of(first)


def test_a_full_group_does_not_keep_a_prefix_from_being_computed_in_another() -> None:
    pool = BlockGroups(8, groups=2)
    hashes = block_hashes(range(8), 4, SEED)
    _, first = pool.take(hashes, 4)
    for block, block_hash in zip(first, hashes, strict=False):
        pool.publish(block, block_hash)
    shared, fresh = pool.take(hashes, 3)
    assert shared == []
    assert pool.group_of(fresh) != pool.group_of(first)
    with pytest.raises(Overloaded):
        pool.take(hashes, 3)


def test_more_than_one_group_holds_is_refused_even_where_the_replica_has_it() -> None:
    with pytest.raises(Overloaded):
        BlockGroups(8, groups=2).take((), 5)
