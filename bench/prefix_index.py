"""The router's prefix index at a million blocks over 64 workers: memory, lookups, intake of events.

Each worker holds an equal share of the blocks; a prompt of 100,000 tokens is held in full by half
of the workers, and in part by the others, so that a lookup cannot end early. Memory is that of a
process of its own, by what the kernel counts as resident.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eastwest.blocks import HASH_BYTES, BlockHash, block_hashes, hash_seed
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.types import Tier
from eastwest.v1 import worker_pb2
from eastwest.wire import event_from_wire, event_to_wire
from router.prefix_index import Holder, PrefixIndex

BLOCKS = 1_000_000
WORKERS = 64
PROMPT_TOKENS = 100_000
BLOCK_TOKENS = 16
MEMORY_GOAL_MIB = 300
LOOKUP_GOAL_MS = 1.0
_EVENT_HASHES = 1024


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows as `bench` describes them."""
    rounds = 5 if quick else 30
    memory, churned = _memory_mib()
    index, holders = _filled(BLOCKS)
    prompt = tuple(7 * token % 50_000 for token in range(PROMPT_TOKENS))
    chain = _chain(prompt)
    for number, holder in enumerate(holders):
        index.add(holder, chain if number % 2 else chain[: len(chain) * number // WORKERS])
    lookup, unknown, plain = _lookups(index, chain, rounds)
    per_thousand = 1000 / len(chain)
    hashing = _median_ms(lambda: _chain(prompt), rounds) * per_thousand
    sweep = _sweep_ms(index, holders[-1])
    return [
        _row("memory of 1,000,000 blocks over 64 workers", memory, "MiB", "goal", MEMORY_GOAL_MIB,
             met=memory < MEMORY_GOAL_MIB),
        _row("memory after four million more, held twice, some asked for", churned, "MiB", "goal",
             MEMORY_GOAL_MIB, met=churned < MEMORY_GOAL_MIB),
        _row("lookup, per thousand blocks", lookup * per_thousand, "ms", "goal", LOOKUP_GOAL_MS,
             met=lookup * per_thousand < LOOKUP_GOAL_MS),
        _row("lookup, against one dict probe a block", lookup, "ms", "dict.get", plain),
        _row("lookup of a prompt that nobody holds", unknown * 1000, "µs"),
        _row("hashing of a prompt, per thousand blocks", hashing, "ms"),
        _row("events taken in: blocks off the wire into the index", _intake(rounds), "blocks/s"),
        _row("events taken in by a full index, which forgets", _intake(rounds, full=True),
             "blocks/s"),
        _row("longest pause to sweep out a worker that has died", sweep, "ms"),
    ]  # fmt: skip


def _filled(blocks_max: int) -> tuple[PrefixIndex, list[Holder]]:
    rng = random.Random(1)
    index = PrefixIndex(blocks_max)
    holders = [index.join() for _ in range(WORKERS)]
    share = BLOCKS // WORKERS
    for holder in holders:
        for start in range(0, share, _EVENT_HASHES):
            index.add(holder, _hashes(rng, min(_EVENT_HASHES, share - start)))
    return index, holders


def _churn(index: PrefixIndex, holders: list[Holder]) -> None:
    rng = random.Random(4)
    for number in range(4 * BLOCKS // _EVENT_HASHES):
        hashes = _hashes(rng, _EVENT_HASHES)
        for holder in (holders[number % WORKERS], holders[7 * number % WORKERS]):
            index.add(holder, hashes)
        if number % 3 == 0:
            index.match(hashes)


def _hashes(rng: random.Random, count: int) -> list[BlockHash]:
    run = rng.randbytes(count * HASH_BYTES)
    return [BlockHash(run[at : at + HASH_BYTES]) for at in range(0, len(run), HASH_BYTES)]


def _chain(prompt: tuple[int, ...]) -> list[BlockHash]:
    return block_hashes(prompt, BLOCK_TOKENS, hash_seed("model", ""))


def _memory_mib() -> tuple[float, float]:
    """What the index adds to a process, when filled and after it has forgotten much; in a process
    without other memory that the index could be put into."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.prefix_index"],
        capture_output=True,
        text=True,
        check=True,
    )
    filled, churned = done.stdout.split()
    return float(filled), float(churned)


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def _lookups(index: PrefixIndex, chain: list[BlockHash], rounds: int) -> tuple[float, float, float]:
    """Milliseconds of a lookup, of one in vain, and of a probe of a plain dict for each block."""
    table = dict.fromkeys(chain, 1)
    unknown = _hashes(random.Random(2), len(chain))
    found = index.match(chain)
    assert len(found) == WORKERS - 1, "all but the one with the shortest part, which is none"
    timings: list[tuple[float, float, float]] = []
    for _ in range(rounds):
        whole = _timed_ms(lambda: index.match(chain))
        none = _timed_ms(lambda: index.match(unknown))
        plain = _timed_ms(lambda: [table.get(block_hash) for block_hash in chain])
        timings.append((whole, none, plain))
    whole, none, plain = (statistics.median(column) for column in zip(*timings, strict=True))
    return whole, none, plain


def _intake(rounds: int, *, full: bool = False) -> float:
    """Blocks a second, from bytes of an event to the index."""
    rng = random.Random(3)
    index = PrefixIndex(10_000 if full else BLOCKS)
    holder = index.join()
    events = [_event_bytes(rng, number) for number in range(100)]
    rates = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for data in events:
            event = event_from_wire(worker_pb2.Event.FromString(data))
            assert isinstance(event, KvEvents)
            for blocks in event.stored:
                index.add(holder, blocks.hashes)
        rates.append(len(events) * _EVENT_HASHES / (time.perf_counter() - begin))
        index.leave(holder)
        holder = index.join()
        while index.sweep():
            pass
    return statistics.median(rates)


def _event_bytes(rng: random.Random, sequence: int) -> bytes:
    blocks = TierBlocks(Tier.DEVICE, tuple(_hashes(rng, _EVENT_HASHES)))
    return event_to_wire(KvEvents(sequence, stored=(blocks,))).SerializeToString()


def _sweep_ms(index: PrefixIndex, holder: Holder) -> float:
    begin = time.perf_counter()
    index.leave(holder)
    longest = time.perf_counter() - begin
    more = True
    while more:
        begin = time.perf_counter()
        more = index.sweep()
        longest = max(longest, time.perf_counter() - begin)
    return 1000 * longest


def _median_ms(work: Callable[[], object], rounds: int) -> float:
    return statistics.median(_timed_ms(work) for _ in range(rounds))


def _timed_ms(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - begin)


def _row(
    metric: str,
    value: float,
    unit: str,
    against: str = "",
    against_value: float | None = None,
    *,
    met: bool | None = None,
) -> dict[str, Any]:
    ratio = value / against_value if against_value else None
    goal = against_value if against == "goal" else None
    return {
        "metric": metric, "value": value, "unit": unit, "against": against,
        "against_value": against_value, "ratio": ratio, "goal": goal, "met": met,
    }  # fmt: skip


if __name__ == "__main__":
    before = _resident_bytes()
    kept = _filled(BLOCKS)
    print((_resident_bytes() - before) / 2**20)
    _churn(*kept)
    print((_resident_bytes() - before) / 2**20)
