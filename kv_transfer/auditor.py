"""Compares what the ledger says with what is really held. It judges; it repairs nothing.

Three accounts must agree: the block pool's reference counts, the ledger's holders, and the
owners that the worker's own tables say are alive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from kv_transfer.ledger import Ledger, Owner

_NAMED_MAX = 8


@dataclass(frozen=True, slots=True)
class Audit:
    """The fields of ``AuditReport`` in ``worker.proto`` that concern blocks.

    held_blocks: referenced at least once. leaked_blocks: referenced more often than live owners
    account for. owners: one line an owner. findings: what does not add up; empty when all is well.
    """

    num_blocks: int
    free_blocks: int
    cached_blocks: int
    held_blocks: int
    leaked_blocks: int
    owners: tuple[str, ...]
    findings: tuple[str, ...]


def audit(
    ledger: Ledger,
    refcounts: Mapping[int, int],
    live: Collection[Owner],
    *,
    num_blocks: int,
    free_blocks: int,
    cached_blocks: int,
) -> Audit:
    """`refcounts` maps a block to its references (blocks without any may be absent)."""
    owners = ledger.owners()
    alive = set(live)
    dead = [owner for owner in owners if owner not in alive]
    of_dead = Counter(block for owner in dead for block in ledger.blocks(owner))
    held = {block for block, count in refcounts.items() if count > 0}
    holders = ledger.holders()
    above = sorted(b for b in held if refcounts[b] > holders.get(b, 0))
    below = sorted(b for b, count in holders.items() if refcounts.get(b, 0) < count)
    leaked = {b for b in held if refcounts[b] > holders.get(b, 0) - of_dead[b]}

    findings = [f"{o} is not alive and holds {len(ledger.blocks(o))} blocks" for o in dead]
    unknown = sorted(alive.difference(owners), key=str)
    findings += [f"{owner} is alive and not in the ledger" for owner in unknown]
    if above:
        findings.append(f"referenced more often than owned: {_name(above)}")
    if below:
        findings.append(f"owned more often than referenced: {_name(below)}")
    if free_blocks + cached_blocks + len(held) != num_blocks:
        findings.append(
            f"{free_blocks} free, {cached_blocks} cached and {len(held)} held blocks "
            f"are not all {num_blocks} blocks"
        )
    return Audit(
        num_blocks,
        free_blocks,
        cached_blocks,
        len(held),
        len(leaked),
        tuple(f"{owner}: {len(ledger.blocks(owner))} blocks" for owner in owners),
        tuple(findings),
    )


def _name(blocks: Iterable[int]) -> str:
    names = [str(block) for block in blocks]
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    noun = "block" if len(names) == 1 else "blocks"
    return f"{noun} {', '.join(names[:_NAMED_MAX])}{more}"
