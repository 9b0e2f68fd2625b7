"""What the index forgets, and when. That it answers right: `tests/property/test_prefix_index`."""

from __future__ import annotations

from collections.abc import Iterable

from eastwest.blocks import HASH_BYTES, BlockHash
from eastwest.types import Tier
from router.prefix_index import PrefixIndex


def hashes(numbers: Iterable[int]) -> list[BlockHash]:
    """Distinct ones, spread over the shards as real ones are."""
    return [
        BlockHash((number * 0x9E3779B97F4A7C15 % 2**128).to_bytes(HASH_BYTES, "big"))
        for number in numbers
    ]


def test_the_oldest_are_forgotten_but_for_those_that_were_asked_for() -> None:
    index = PrefixIndex(1)
    holder = index.join()
    first, second, third = hashes([1, 2, 3])
    index.add(holder, [first])
    index.add(holder, [second])
    assert not index.match([first])
    assert index.match([second])
    index.add(holder, [third])
    assert index.match([second]), "it was asked for"
    assert not index.match([third])


def test_a_full_index_keeps_what_is_used() -> None:
    index = PrefixIndex(4096)
    holder = index.join()
    hot = hashes(range(100))
    index.add(holder, hot)
    for start in range(100, 50_000, 1000):
        assert index.match(hot) == {holder: 100}
        index.add(holder, hashes(range(start, start + 1000)))
        index.check_integrity()
    assert len(index) <= 4096


def test_bits_of_those_who_have_left_are_given_again_once_they_are_swept_out() -> None:
    index = PrefixIndex(1000)
    chain = hashes(range(500))
    first = index.join()
    index.add(first, chain)
    bit = first.bit
    index.leave(first)
    second = index.join()
    assert second.bit != bit
    assert not index.match(chain), "at once"
    while index.sweep():
        index.check_integrity()
    assert len(index) == 0
    assert index.join().bit == bit


def test_holders_that_come_and_go_leave_nothing_behind() -> None:
    index = PrefixIndex(1000)
    chain = hashes(range(50))
    bits = set()
    for _ in range(500):
        holder = index.join()
        bits.add(holder.bit)
        index.add(holder, chain)
        index.leave(holder)
    assert len(bits) < 200
    index.check_integrity()


def test_a_chain_may_lie_on_several_tiers_of_a_holder() -> None:
    index = PrefixIndex(100)
    one, other = index.join(), index.join()
    chain = hashes(range(6))
    index.add(one, chain[:3])
    index.add(one, chain[3:5], Tier.HOST)
    index.add(other, chain[1:])
    assert index.match(chain) == {one: 5}
    assert index.holders(chain[3]) == {one: (Tier.HOST,), other: (Tier.DEVICE,)}
    index.add(one, chain[3:4])
    index.remove(one, chain[3:4], Tier.HOST)
    assert index.match(chain) == {one: 5}
    index.remove(one, chain[3:4])
    assert index.match(chain) == {one: 3}
