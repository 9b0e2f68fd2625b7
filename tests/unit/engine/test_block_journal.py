"""What a replica says of its named blocks: in numbered batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterable

from eastwest.blocks import HASH_BYTES, BlockHash
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.types import Tier
from engine.block_journal import HASHES_MAX, BlockJournal


def hashes(numbers: Iterable[int]) -> tuple[BlockHash, ...]:
    return tuple(BlockHash(number.to_bytes(HASH_BYTES, "big")) for number in numbers)


def test_each_change_is_given_once_and_batches_are_numbered_on() -> None:
    journal = BlockJournal()
    journal.stored(hashes([1, 2]))
    journal.stored(hashes([1]), Tier.EXTERNAL)
    device, store = TierBlocks(Tier.DEVICE, hashes([1, 2])), TierBlocks(Tier.EXTERNAL, hashes([1]))
    assert journal.take() == [KvEvents(1, stored=(device, store))]
    assert journal.take() == []
    journal.removed(hashes([2]))
    gone = TierBlocks(Tier.DEVICE, hashes([2]))
    assert journal.take() == [KvEvents(2, removed=(gone,))]
    assert journal.sequence == 2


def test_of_several_changes_of_a_block_the_last_counts() -> None:
    journal = BlockJournal()
    journal.stored(hashes([1, 2]))
    journal.removed(hashes([1]))
    (events,) = journal.take()
    assert events.removed == (TierBlocks(Tier.DEVICE, hashes([1])),)
    assert events.stored == (TierBlocks(Tier.DEVICE, hashes([2])),)


def test_batches_are_bounded() -> None:
    journal = BlockJournal()
    journal.stored(hashes(range(2 * HASHES_MAX + 1)))
    batches = journal.take()
    assert [events.sequence for events in batches] == [1, 2, 3]
    assert [len(events.stored[0].hashes) for events in batches] == [HASHES_MAX, HASHES_MAX, 1]


def test_what_is_too_much_to_gather_is_dropped_and_leaves_a_gap() -> None:
    journal = BlockJournal(changes_max=3)
    journal.stored(hashes(range(4)))
    assert journal.take() == []
    assert journal.sequence == 1
    journal.stored(hashes([9]))
    assert [events.sequence for events in journal.take()] == [2]


def test_the_whole_begins_with_a_clean_slate_and_repeats_its_number() -> None:
    journal = BlockJournal()
    journal.stored(hashes([1]))
    journal.take()
    parts = journal.whole(hashes(range(HASHES_MAX + 1)))
    assert [(p.sequence, p.whole, bool(p.cleared)) for p in parts] == [
        (1, True, True),
        (1, True, False),
        (1, True, False),
    ]
    assert journal.whole(()) == parts[:1]
