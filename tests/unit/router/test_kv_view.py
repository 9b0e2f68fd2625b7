"""What the router takes from KV events, besides what `tests/property/test_prefix_index` shows."""

from __future__ import annotations

from dataclasses import replace

from eastwest.blocks import block_hashes, hash_seed
from eastwest.config import RouterConfig
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.messages import Prefilled, Reserve, Reserved, ResyncKv
from eastwest.testing.builders import a_load, a_model, a_ticket, a_worker, some_tokens
from eastwest.types import Role, Tier
from router.fleet import Worker
from router.kv_view import KvView
from router.requests import Action, PhaseHits, Send
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request

REQUEST = a_request(tokens=100)
CHAIN = tuple(block_hashes(REQUEST.prompt, 16, hash_seed("f" * 32, "")))


def says(sequence: int, tier: Tier, blocks: int, *, whole: bool = False) -> KvEvents:
    """The first `blocks` of the chain are there."""
    cleared = (Tier.DEVICE, Tier.HOST) if whole else ()
    stored = (TierBlocks(tier, CHAIN[:blocks]),)
    return KvEvents(sequence, cleared=cleared, stored=stored, whole=whole)


def a_view(*workers: Worker) -> KvView:
    view = KvView(1000)
    for worker in workers:
        view.connect(worker)
        view.hear(worker, says(0, Tier.DEVICE, 0, whole=True), [])
    return view


def test_the_last_token_of_a_prompt_is_never_one_that_is_there() -> None:
    worker = Worker(a_worker(), 0)
    view = a_view(worker)
    view.hear(worker, says(1, Tier.DEVICE, 6), [])
    whole_blocks = replace(REQUEST, request_id="r2", prompt=REQUEST.prompt[:96])
    assert view.known(REQUEST, 1, 0).cached_tokens(worker) == 96
    assert view.known(whole_blocks, 1, 0).cached_tokens(worker) == 80


def test_another_salt_has_no_block_in_common() -> None:
    worker = Worker(a_worker(), 0)
    view = a_view(worker)
    view.hear(worker, says(1, Tier.DEVICE, 6), [])
    assert view.known(replace(REQUEST, request_id="r2", salt="b"), 1, 0).cached_tokens(worker) == 0


def test_what_is_stored_can_be_loaded_by_workers_of_the_same_form_only() -> None:
    writer, reader = Worker(a_worker("d0"), 0), Worker(a_worker("d1"), 0)
    other = Worker(a_worker("d2", model=a_model(kv_dtype="bfloat16")), 0)
    view = a_view(writer, reader, other)
    view.hear(writer, says(1, Tier.EXTERNAL, 3), [])
    known = view.known(REQUEST, 1, 0)
    assert [known.reusable_tokens(w) for w in (writer, reader, other)] == [48, 48, 0]
    assert known.cached_tokens(reader) == 0
    view.leave(writer)
    assert view.known(REQUEST, 1, 0).reusable_tokens(reader) == 48
    gone = TierBlocks(Tier.EXTERNAL, CHAIN[1:2])
    view.hear(reader, KvEvents(1, removed=(gone,)), [])
    assert view.known(REQUEST, 1, 0).reusable_tokens(reader) == 16
    view.hear(reader, KvEvents(2, cleared=(Tier.EXTERNAL,)), [])
    assert view.known(REQUEST, 1, 0).reusable_tokens(reader) == 0


def test_what_is_stored_is_heard_even_out_of_step() -> None:
    worker = Worker(a_worker(), 0)
    view, out = a_view(worker), list[Action]()
    view.hear(worker, says(5, Tier.EXTERNAL, 3), out)
    assert out == [Send("d0", 1, ResyncKv())]
    assert view.known(REQUEST, 1, 0).reusable_tokens(worker) == 48


def test_a_worker_that_clears_one_of_its_tiers_is_asked_for_the_other() -> None:
    worker = Worker(a_worker(), 0)
    view, out = a_view(worker), list[Action]()
    view.hear(worker, says(1, Tier.DEVICE, 3), out)
    view.hear(worker, KvEvents(2, cleared=(Tier.HOST,)), out)
    assert [action.command for action in out if isinstance(action, Send)] == [ResyncKv()]
    view.hear(worker, says(2, Tier.DEVICE, 3, whole=True), out)
    assert view.known(REQUEST, 1, 0).cached_tokens(worker) == 48


def test_a_load_report_shows_that_the_last_events_were_missed() -> None:
    worker = Worker(a_worker(), 0)
    view, out = a_view(worker), list[Action]()
    view.hear_sequence(worker, 0, out)
    assert out == []
    view.hear_sequence(worker, 1, out)
    view.hear_sequence(worker, 2, out)
    assert out == [Send("d0", 1, ResyncKv())], "once"
    assert view.report().resyncs == 1


def test_a_prefill_worker_is_loaded_with_what_it_has_to_compute() -> None:
    scheduler = Scheduler(RouterConfig(conditional=False))
    for name in ("p0", "p1"):
        scheduler.worker_up(a_worker(name, Role.PREFILL), 0)
    scheduler.worker_up(a_worker("d0", num_blocks=4096), 0)
    scheduler.event("p0", 1, says(0, Tier.DEVICE, 6, whole=True), 0)
    # Of the first prompt only the last 4 tokens are to be computed, of the others all 50.
    other = replace(REQUEST, salt="other", prompt=REQUEST.prompt[:50])
    sources = []
    for number, request in enumerate((REQUEST, other, other)):
        (reserve,) = scheduler.submit(replace(request, request_id=f"r{number}"), 0)
        assert isinstance(reserve, Send)
        assert isinstance(reserve.command, Reserve)
        sources.append(reserve.command.source.worker_id)
    assert sources == ["p0", "p1", "p0"]
    scheduler.check_integrity()


def test_predictions_are_counted_beside_what_workers_found() -> None:
    scheduler = Scheduler(RouterConfig(conditional=False))
    scheduler.worker_up(a_worker("p0", Role.PREFILL), 0)
    scheduler.worker_up(a_worker("d0"), 0)
    scheduler.event("d0", 1, says(0, Tier.DEVICE, 2, whole=True), 0)
    scheduler.event("p0", 1, says(0, Tier.DEVICE, 6, whole=True), 0)
    scheduler.submit(REQUEST, 0)
    reserved = Reserved("r1#1", a_ticket(a_worker("d0")), cached_tokens=16, loaded_tokens=32)
    (token,) = some_tokens(0)
    prefilled = Prefilled("r1#1", token, None, 0, 0, computed_tokens=20, loaded_tokens=0)
    for _ in range(2):
        scheduler.event("d0", 1, reserved, 0)
    for _ in range(2):
        scheduler.event("p0", 1, prefilled, 0)
    kv = scheduler.loads().kv
    assert kv.decode == PhaseHits(100, 32, 48)
    assert kv.prefill == PhaseHits(100, 96, 80)
    scheduler.event("d0", 1, a_load(), 0)
    scheduler.check_integrity()
