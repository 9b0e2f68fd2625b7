"""The router's picture of KV: which leading tokens of a prompt each worker has, or can load.

Fed by `KvEvents`, in the order of their numbers. Of each connection:

    OUT OF STEP ──whole──▶ IN STEP ──a number is missing──▶ OUT OF STEP (the whole is asked for)

Out of step, what was known stays, as a hint, and changes are passed over: the whole, which comes
after them, replaces it. What the store has is known from workers that wrote or looked something
up; it belongs to no connection, and its evictions show only when a worker looks in vain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from eastwest.blocks import BlockHash, block_hashes, hash_seed, reusable_blocks
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.layout import KVSpec
from eastwest.messages import Prefilled, Reserved, ResyncKv
from eastwest.types import Tier
from router.attempt import Attempt
from router.fleet import Worker
from router.loading import Loans, reusable
from router.placement import Loan
from router.prefix_index import Holder, PrefixIndex
from router.requests import Action, PhaseHits, Request

_OWN_TIERS = {Tier.DEVICE, Tier.HOST}
_SWEEPS = 4  # shards of the index, in a pulse


@dataclass(frozen=True, slots=True)
class _Chain:
    """Whose hashes name the same blocks: equal model and block size."""

    fingerprint: str
    block_tokens: int


@dataclass(frozen=True, slots=True)
class _Form:
    """Who can load what the other has stored."""

    chain: _Chain
    kv: KVSpec


@dataclass(slots=True, eq=False)
class _Feed:
    """One connection. sequence: of the last events applied, None while out of step."""

    form: _Form
    holder: Holder
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class KvReport:
    """hashes: in the index. resyncs: asked for so far. prefill, decode: see `PhaseHits`."""

    hashes: int
    resyncs: int
    prefill: PhaseHits
    decode: PhaseHits


class KvView:
    """See the module. Of each request, hashes are computed once for each block size."""

    def __init__(self, blocks_max: int) -> None:
        self.index = PrefixIndex(blocks_max)
        self.prefill_hits = PhaseHits()
        self.decode_hits = PhaseHits()
        self._feeds: dict[Worker, _Feed] = {}
        self._stores: dict[_Form, Holder] = {}
        self._hashes: dict[str, dict[_Chain, list[BlockHash]]] = {}
        self._resyncs = 0

    # Workers.

    def connect(self, worker: Worker) -> None:
        """A connection begins; the whole comes by itself."""
        info = worker.info
        form = _Form(_Chain(worker.kind, info.block_tokens), info.model.kv)
        if form not in self._stores:
            self._stores[form] = self.index.join()
        self._feeds[worker] = _Feed(form, self.index.join())

    def leave(self, worker: Worker) -> None:
        """The connection is gone, and what the worker held with it. Idempotent."""
        feed = self._feeds.pop(worker, None)
        if feed is not None:
            self.index.leave(feed.holder)

    def hear(self, worker: Worker, events: KvEvents, out: list[Action]) -> None:
        """Apply the worker's events, where they are the next."""
        feed = self._feeds[worker]
        self._apply_store(feed, events)
        if events.whole:
            if events.cleared:
                feed.sequence = events.sequence
            elif events.sequence != feed.sequence:
                return
        elif feed.sequence is None or events.sequence <= feed.sequence:
            return
        elif events.sequence != feed.sequence + 1:
            self._ask(worker, feed, out)
            return
        else:
            feed.sequence = events.sequence
        if cleared := _OWN_TIERS.intersection(events.cleared):
            self.index.leave(feed.holder)
            feed.holder = self.index.join()
            if not events.whole and cleared != _OWN_TIERS:
                # What is left on the other tier, the worker says again.
                self._ask(worker, feed, out)
                return
        self._apply(feed.holder, events, _OWN_TIERS)

    def hear_sequence(self, worker: Worker, sequence: int, out: list[Action]) -> None:
        """The worker has numbered its events up to `sequence` so far."""
        feed = self._feeds[worker]
        if feed.sequence is not None and sequence > feed.sequence:
            self._ask(worker, feed, out)

    def tidy(self) -> None:
        """Give back some memory of those who have left; called now and then."""
        for _ in range(_SWEEPS):
            self.index.sweep()

    def _ask(self, worker: Worker, feed: _Feed, out: list[Action]) -> None:
        feed.sequence = None
        self._resyncs += 1
        out.append(worker.send(ResyncKv()))

    def _apply_store(self, feed: _Feed, events: KvEvents) -> None:
        if Tier.EXTERNAL in events.cleared:
            self.index.leave(self._stores[feed.form])
            self._stores[feed.form] = self.index.join()
        self._apply(self._stores[feed.form], events, {Tier.EXTERNAL})

    def _apply(self, holder: Holder, events: KvEvents, tiers: set[Tier]) -> None:
        for tier, hashes in _on(events.removed, tiers):
            self.index.remove(holder, hashes, tier)
        for tier, hashes in _on(events.stored, tiers):
            self.index.add(holder, hashes, tier)

    # Requests.

    def known(
        self, request: Request, waiting: int, now_ns: int, workers: Sequence[Worker] = ()
    ) -> KnownPrefixes:
        """What is known of its prompt now; looked up when asked. workers: who may lend."""
        return KnownPrefixes(self, request, waiting, now_ns, workers)

    def forget(self, request_id: str) -> None:
        """The request has ended. Idempotent."""
        self._hashes.pop(request_id, None)

    def reserved(self, attempt: Attempt | None, event: Reserved) -> None:
        """The decode worker has found what it has. Of what an earlier attempt has delivered nothing
        was predicted, so only first ones count."""
        if attempt is not None and not attempt.resumed:
            found = event.cached_tokens + event.loaded_tokens
            predicted = attempt.placement.decode_known_tokens
            self.decode_hits.count(attempt.given_tokens, predicted, found)

    def prefilled(self, attempt: Attempt | None, event: Prefilled) -> None:
        """The prefill worker has computed what it did not find."""
        if attempt is not None and not attempt.resumed:
            found = attempt.given_tokens - event.computed_tokens
            predicted = attempt.placement.prefill_known_tokens
            self.prefill_hits.count(attempt.given_tokens, predicted, found)

    def report(self) -> KvReport:
        """A snapshot."""
        hits = replace(self.prefill_hits), replace(self.decode_hits)
        return KvReport(len(self.index), self._resyncs, *hits)

    def leading_blocks(self, request: Request, worker: Worker) -> dict[Holder, int]:
        """Of the prompt's reusable blocks, in the worker's size: how many each holder has."""
        chain, chains = self._feeds[worker].form.chain, self._hashes
        hashes = chains.setdefault(request.request_id, {}).get(chain)
        if hashes is None:
            usable = reusable_blocks(len(request.prompt), chain.block_tokens)
            seed = hash_seed(chain.fingerprint, request.salt)
            hashes = block_hashes(request.prompt, chain.block_tokens, seed)[:usable]
            chains[request.request_id][chain] = hashes
        return self.index.match(hashes)

    def whereabouts(self, tokens: Sequence[int], salt: str) -> tuple[int, dict[str, int]]:
        """How many leading tokens a store has KV of, and how many each worker that has some."""
        found: dict[_Chain, dict[Holder, int]] = {}
        stored, held = 0, {}
        for worker, feed in self._feeds.items():
            chain = feed.form.chain
            if chain not in found:
                seed = hash_seed(chain.fingerprint, salt)
                hashes = block_hashes(tokens, chain.block_tokens, seed)
                full = len(tokens) // chain.block_tokens
                found[chain] = self.index.match(hashes[:full])
            if blocks := found[chain].get(feed.holder, 0):
                held[worker.worker_id] = blocks * chain.block_tokens
            blocks = found[chain].get(self._stores[feed.form], 0)
            stored = max(stored, blocks * chain.block_tokens)
        return stored, held

    def holders_of(self, worker: Worker) -> tuple[Holder, Holder]:
        """The worker itself, and the store that it can load from."""
        feed = self._feeds[worker]
        return feed.holder, self._stores[feed.form]

    def check_integrity(self, workers: Iterable[Worker], request_ids: Iterable[str]) -> None:
        """Assert that there is one feed for each of `workers`, and nothing of ended requests."""
        assert set(self._feeds) == set(workers)
        assert self._hashes.keys() <= set(request_ids)
        self.index.check_integrity()


class KnownPrefixes:
    """Implements `router.placement.Known` for one request, as of when it is asked."""

    def __init__(
        self, view: KvView, request: Request, waiting: int, now_ns: int, workers: Sequence[Worker]
    ) -> None:
        self.waiting = waiting
        self.now_ns = now_ns
        self._view = view
        self._request = request
        self._workers = workers
        self._loans: Loans | None = None
        self._found: dict[tuple[str, int], dict[Holder, int]] = {}

    def cached_tokens(self, worker: Worker) -> int:
        """See the protocol."""
        own, _ = self._view.holders_of(worker)
        return self._leading(worker).get(own, 0) * worker.info.block_tokens

    def stored_tokens(self, worker: Worker) -> int:
        """See the protocol."""
        _, store = self._view.holders_of(worker)
        return self._leading(worker).get(store, 0) * worker.info.block_tokens

    def loan(self, worker: Worker) -> Loan | None:
        """See the protocol."""
        if self._loans is None:
            self._loans = Loans((w, self.cached_tokens(w)) for w in self._workers)
        return self._loans.to(worker)

    def reusable_tokens(self, worker: Worker) -> int:
        """See the protocol."""
        return reusable(self, worker)

    def _leading(self, worker: Worker) -> dict[Holder, int]:
        key = (worker.kind, worker.info.block_tokens)
        if key not in self._found:
            self._found[key] = self._view.leading_blocks(self._request, worker)
        return self._found[key]


def _on(blocks: Sequence[TierBlocks], tiers: set[Tier]) -> list[tuple[Tier, Sequence[BlockHash]]]:
    """Those on `tiers`. What the store has, has no tier of its own there."""
    return [
        (Tier.DEVICE if b.tier is Tier.EXTERNAL else b.tier, b.hashes)
        for b in blocks
        if b.tier in tiers
    ]
