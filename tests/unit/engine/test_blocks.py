"""The block pool against a plain model, step by step, and its habits one at a time.

Invariants:
1. every block is free, held or cached, and counts agree with the model's;
2. `allocate` never hands out a block that somebody holds, and names no block;
3. `share` finds exactly the longest prefix that the model knows;
4. a name means what it meant when it was published, until its block is handed out again.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eastwest.blocks import HASH_BYTES, BlockHash
from eastwest.errors import Overloaded
from engine.blocks import BlockPool

BLOCKS = 12


def a_hash(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(HASH_BYTES, "big"))


class PoolMachine(RuleBasedStateMachine):
    """Holders allocate, publish, share and release at random."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.holders: list[list[int]] = []
        self.names: dict[BlockHash, int] = {}

    def held(self) -> set[int]:
        return {block for blocks in self.holders for block in blocks}

    @rule(count=st.integers(0, BLOCKS + 1), data=st.data())
    def allocate(self, count: int, data: st.DataObject) -> None:
        after = data.draw(st.none() | st.integers(0, BLOCKS - 1))
        before = self.held()
        if count > BLOCKS - len(before):
            with pytest.raises(Overloaded):
                self.pool.allocate(count, after)
            return
        blocks = self.pool.allocate(count, after)
        assert len(set(blocks)) == count
        assert not before & set(blocks)
        self.names = {h: b for h, b in self.names.items() if b not in blocks}
        if blocks:
            self.holders.append(blocks)

    @rule(data=st.data(), number=st.integers(0, 20))
    def publish(self, data: st.DataObject, number: int) -> None:
        anonymous = sorted(self.held() - set(self.names.values()))
        if anonymous:
            block = data.draw(st.sampled_from(anonymous))
            self.pool.publish(block, a_hash(number))
            self.names.setdefault(a_hash(number), block)

    @rule(numbers=st.lists(st.integers(0, 20), max_size=5, unique=True))
    def share(self, numbers: list[int]) -> None:
        expected = []
        for number in numbers:
            if a_hash(number) not in self.names:
                break
            expected.append(self.names[a_hash(number)])
        assert self.pool.share([a_hash(n) for n in numbers]) == expected
        if expected:
            self.holders.append(expected)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.holders:
            index = data.draw(st.integers(0, len(self.holders) - 1))
            self.pool.release(self.holders.pop(index))

    @rule(numbers=st.lists(st.integers(0, 20), max_size=3))
    def forget(self, numbers: list[int]) -> None:
        self.pool.forget([a_hash(n) for n in numbers])
        for number in numbers:
            self.names.pop(a_hash(number), None)

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.pool.check_integrity()
        counts: dict[int, int] = {}
        for blocks in self.holders:
            for block in blocks:
                counts[block] = counts.get(block, 0) + 1
        assert self.pool.refcounts() == counts
        cached = set(self.names.values()) - set(counts)
        assert self.pool.cached_blocks == len(cached)
        assert self.pool.free_blocks == BLOCKS - len(counts) - len(cached)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_blocks_come_in_one_run_where_one_fits() -> None:
    pool = BlockPool(16)
    first, second = pool.allocate(4), pool.allocate(4)
    pool.allocate(2)
    pool.release(first)
    assert pool.allocate(6) == list(range(10, 16)), "the run of 4 does not fit"
    assert pool.allocate(4) == first, "the tightest run that fits"
    assert second == [4, 5, 6, 7]


def test_blocks_behind_a_sequence_are_preferred() -> None:
    pool = BlockPool(16)
    first, other = pool.allocate(4), pool.allocate(4)
    pool.release(pool.allocate(3))
    assert pool.allocate(2, after=other[-1]) == [8, 9]
    pool.release(other)
    assert pool.allocate(1, after=first[-1]) == [4]


def test_the_least_recently_used_is_evicted_and_of_a_chain_its_end() -> None:
    pool = BlockPool(4)
    old, new = pool.allocate(2), pool.allocate(2)
    for number, block in enumerate(old + new):
        pool.publish(block, a_hash(number))
    pool.release(old)
    pool.release(new)
    assert pool.allocate(1) == [old[1]]
    assert pool.share([a_hash(0), a_hash(1)]) == [old[0]]
    assert pool.share([a_hash(2), a_hash(3)]) == new


def test_too_few_blocks_are_refused_and_nothing_is_taken() -> None:
    pool = BlockPool(4)
    pool.allocate(3)
    with pytest.raises(Overloaded, match="2 KV blocks are needed; 1 are free and 0 can be"):
        pool.allocate(2)
    assert pool.free_blocks == 1


def test_a_second_copy_of_a_prefix_stays_anonymous() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.publish(first[0], a_hash(7))
    pool.publish(second[0], a_hash(7))
    pool.release(second)
    assert (pool.free_blocks, pool.cached_blocks) == (3, 0)


def test_misuse_is_caught() -> None:
    pool = BlockPool(4)
    [block] = pool.allocate(1)
    pool.release([block])
    with pytest.raises(AssertionError, match="not held"):
        pool.release([block])
    with pytest.raises(AssertionError, match="not held"):
        pool.publish(block, a_hash(1))
