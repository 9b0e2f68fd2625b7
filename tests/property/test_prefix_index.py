"""The router's view of KV against a model that looks through every holder.

1. `match` gives, for any chain, how many leading blocks each holder has, and no one who has left.
2. Whatever events are lost, repeated or late, and whenever workers come and go: what a worker in
   step is thought to hold is what it holds.
3. A resync is asked for only where something was lost, one at a time, and it ends the gap.
4. Nothing is kept of workers and requests that are gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eastwest.blocks import BlockHash, block_hashes, hash_seed
from eastwest.kv_events import KvEvents
from eastwest.messages import ResyncKv
from eastwest.testing.builders import a_worker
from eastwest.types import Tier
from engine.block_journal import BlockJournal
from router.fleet import Worker
from router.kv_view import KvView
from router.prefix_index import Holder, PrefixIndex
from router.requests import Action, Send
from tests.unit.router.builders import a_request

REQUEST = a_request("r", tokens=100)
CHAINS = {size: block_hashes(REQUEST.prompt, size, hash_seed("f" * 32, "")) for size in (8, 16)}
BLOCKS = st.lists(st.integers(0, 11), min_size=1, max_size=6)
FATES = st.sampled_from(["gathered", "sent", "sent", "lost"])
NAMES = st.sampled_from(["w0", "w1"])
SIZES = {"w0": 8, "w1": 16}
TIERS = st.sampled_from([Tier.DEVICE, Tier.HOST])


def leading(chain: Sequence[BlockHash], held: set[BlockHash]) -> int:
    count = 0
    while count < len(chain) and chain[count] in held:
        count += 1
    return count


class IndexMachine(RuleBasedStateMachine):
    """Holders join, get, lose and leave."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(10_000)
        self.held: dict[Holder, dict[Tier, set[BlockHash]]] = {}
        self.chain = CHAINS[8]

    @rule()
    def join(self) -> None:
        self.held[self.index.join()] = {Tier.DEVICE: set(), Tier.HOST: set()}

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tier=TIERS, numbers=BLOCKS, there=st.booleans())
    def change(self, data: st.DataObject, tier: Tier, numbers: list[int], there: bool) -> None:
        holder = self.a_holder(data)
        hashes = [self.chain[n] for n in numbers]
        if there:
            self.index.add(holder, hashes, tier)
            self.held[holder][tier].update(hashes)
        else:
            self.index.remove(holder, hashes, tier)
            self.held[holder][tier].difference_update(hashes)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        holder = self.a_holder(data)
        self.index.leave(holder)
        del self.held[holder]

    @rule(shards=st.integers(1, 600))
    def sweep(self, shards: int) -> None:
        for _ in range(shards):
            self.index.sweep()

    def a_holder(self, data: st.DataObject) -> Holder:
        holders = sorted(self.held, key=lambda holder: holder.bit)
        return holders[data.draw(st.integers(0, len(holders) - 1))]

    @invariant()
    def answers_like_the_model(self) -> None:
        for start in range(3):
            chain = self.chain[start:]
            lengths = {
                holder: leading(chain, tiers[Tier.DEVICE] | tiers[Tier.HOST])
                for holder, tiers in self.held.items()
            }
            assert self.index.match(chain) == {h: n for h, n in lengths.items() if n}
        self.index.check_integrity()


class SimulatedPool:
    """A worker's named blocks, and its events under way to the router."""

    def __init__(self, info_epoch: int, name: str) -> None:
        self.worker = Worker(a_worker(name, epoch=info_epoch, block_tokens=SIZES[name]), 0)
        self.chain = CHAINS[SIZES[name]]
        self.journal = BlockJournal(changes_max=8)
        self.held: set[BlockHash] = set()
        self.wire: list[KvEvents | int] = []
        self.lost = False

    def flush(self) -> None:
        self.wire += self.journal.take()


class ViewMachine(RuleBasedStateMachine):
    """Streams that lose, repeat and delay events, but keep their order and deliver the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.view = KvView(10_000)
        self.pools: dict[str, SimulatedPool] = {}
        self.epoch = 0
        for name in SIZES:
            self.connect(name)

    @rule(name=NAMES)
    def restart(self, name: str) -> None:
        self.connect(name)

    def connect(self, name: str) -> None:
        if (former := self.pools.get(name)) is not None:
            self.view.leave(former.worker)
        self.epoch += 1
        pool = self.pools[name] = SimulatedPool(self.epoch, name)
        self.view.connect(pool.worker)
        pool.wire += pool.journal.whole(pool.held)

    @rule(name=NAMES, numbers=BLOCKS, there=st.booleans(), fate=FATES)
    def change(self, name: str, numbers: list[int], there: bool, fate: str) -> None:
        pool = self.pools[name]
        hashes = [pool.chain[n % len(pool.chain)] for n in numbers]
        sequence = pool.journal.sequence
        if there:
            pool.held.update(hashes)
            pool.journal.stored(hashes)
        else:
            pool.held.difference_update(hashes)
            pool.journal.removed(hashes)
        pool.lost |= pool.journal.sequence > sequence
        if fate != "gathered":
            under_way = len(pool.wire)
            pool.flush()
        if fate == "lost":
            pool.lost |= len(pool.wire) > under_way
            del pool.wire[under_way:]

    @rule(name=NAMES)
    def clear(self, name: str) -> None:
        pool = self.pools[name]
        pool.flush()
        pool.held.clear()
        pool.journal.sequence += 1
        tiers = (Tier.DEVICE, Tier.HOST)
        pool.wire.append(KvEvents(pool.journal.sequence, cleared=tiers))

    @rule(name=NAMES)
    def report_load(self, name: str) -> None:
        pool = self.pools[name]
        pool.wire.append(pool.journal.sequence)

    @rule(name=NAMES, count=st.integers(1, 4), twice=st.booleans())
    def arrive(self, name: str, count: int, twice: bool) -> None:
        pool = self.pools[name]
        for _ in range(min(count, len(pool.wire))):
            said = pool.wire.pop(0)
            self.deliver(pool, said)
            if twice and isinstance(said, KvEvents) and not said.whole:
                self.deliver(pool, said)

    def deliver(self, pool: SimulatedPool, said: KvEvents | int) -> None:
        out: list[Action] = []
        if isinstance(said, int):
            self.view.hear_sequence(pool.worker, said, out)
        else:
            self.view.hear(pool.worker, said, out)
        for action in out:
            assert isinstance(action, Send)
            assert isinstance(action.command, ResyncKv)
            assert pool.lost
            pool.lost = False
            waiting = [e for e in pool.wire if isinstance(e, KvEvents) and e.whole]
            assert not waiting, "asked for again before it came"
            pool.flush()
            pool.wire += pool.journal.whole(pool.held)

    @rule(name=NAMES)
    def catch_up(self, name: str) -> None:
        pool = self.pools[name]
        pool.flush()
        pool.wire.append(pool.journal.sequence)
        while pool.wire:
            self.deliver(pool, pool.wire.pop(0))
        expected = leading(pool.chain[: 99 // SIZES[name]], pool.held) * SIZES[name]
        assert self.view.known(REQUEST, 1, 0).cached_tokens(pool.worker) == expected
        for block_hash in pool.chain:
            own, _ = self.view.holders_of(pool.worker)
            assert (own in self.view.index.holders(block_hash)) == (block_hash in pool.held)

    @invariant()
    def nothing_is_left_of_the_dead(self) -> None:
        workers = [pool.worker for pool in self.pools.values()]
        self.view.check_integrity(workers, [REQUEST.request_id])


for machine in (IndexMachine, ViewMachine):
    machine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestIndex = IndexMachine.TestCase
TestView = ViewMachine.TestCase
