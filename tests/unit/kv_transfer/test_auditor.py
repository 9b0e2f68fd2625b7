"""What the auditor finds when the three accounts disagree."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kv_transfer.auditor import Audit, audit
from kv_transfer.ledger import Ledger, Owner, OwnerKind

SEQUENCE = Owner(OwnerKind.SEQUENCE, "r1")
SESSION = Owner(OwnerKind.SESSION, "s1")


def a_ledger() -> Ledger:
    """Two owners that share block 1."""
    ledger = Ledger()
    ledger.open(SEQUENCE, (1, 2), lease_until_ns=None)
    ledger.open(SESSION, (1, 3), lease_until_ns=None)
    return ledger


def audited(
    refcounts: Mapping[int, int],
    live: Collection[Owner] = (SEQUENCE, SESSION),
    *,
    free_blocks: int = 6,
) -> Audit:
    return audit(
        a_ledger(), refcounts, live, num_blocks=10, free_blocks=free_blocks, cached_blocks=1
    )


def test_accounts_that_agree_give_no_finding() -> None:
    result = audited({0: 0, 1: 2, 2: 1, 3: 1})
    assert result.findings == ()
    assert (result.held_blocks, result.leaked_blocks) == (3, 0)
    assert result.owners == ("sequence r1: 2 blocks", "session s1: 2 blocks")


def test_a_reference_that_nobody_owns_is_a_leak() -> None:
    result = audited({1: 3, 2: 1, 3: 1})
    assert result.leaked_blocks == 1
    assert result.findings == ("referenced more often than owned: block 1",)


def test_a_block_outside_the_ledger_is_a_leak() -> None:
    result = audited({1: 2, 2: 1, 3: 1, 7: 1}, free_blocks=5)
    assert result.leaked_blocks == 1
    assert result.findings == ("referenced more often than owned: block 7",)


def test_what_a_dead_owner_holds_has_leaked() -> None:
    result = audited({1: 2, 2: 1, 3: 1}, live=(SESSION,))
    assert result.leaked_blocks == 2
    assert result.findings == ("sequence r1 is not alive and holds 2 blocks",)


def test_an_owner_that_the_ledger_does_not_know_is_named() -> None:
    stranger = Owner(OwnerKind.PREFILL, "r9")
    result = audited({1: 2, 2: 1, 3: 1}, live=(SEQUENCE, SESSION, stranger))
    assert result.leaked_blocks == 0
    assert result.findings == ("prefill r9 is alive and not in the ledger",)


def test_a_reference_given_back_too_early_is_named() -> None:
    result = audited({1: 1, 2: 1, 3: 1})
    assert result.leaked_blocks == 0
    assert result.findings == ("owned more often than referenced: block 1",)


def test_blocks_that_are_nowhere_are_noticed() -> None:
    result = audited({1: 2, 2: 1, 3: 1}, free_blocks=5)
    assert result.findings == ("5 free, 1 cached and 3 held blocks are not all 10 blocks",)


def test_long_lists_are_shortened() -> None:
    result = audit(
        Ledger(),
        dict.fromkeys(range(12), 1),
        (),
        num_blocks=12,
        free_blocks=0,
        cached_blocks=0,
    )
    assert result.leaked_blocks == 12
    assert result.findings == (
        "referenced more often than owned: blocks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more",
    )
