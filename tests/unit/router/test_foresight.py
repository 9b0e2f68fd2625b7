"""Who is refused because its prompt alone takes too long, and who is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from eastwest.blocks import block_hashes, hash_seed
from eastwest.clock import ns
from eastwest.config import RouterConfig
from eastwest.errors import Overloaded, Phase, TooLarge
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.messages import Prefilled, Reserved, WorkerInfo
from eastwest.testing.builders import a_model, a_ticket, a_worker, some_tokens
from eastwest.types import FinishReason, Role, Slo, Tier
from router.requests import Request
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request

P0, P1 = a_worker("p0", Role.PREFILL), a_worker("p1", Role.PREFILL)
D0 = a_worker("d0", num_blocks=1 << 16)


START = ns(100.0)


class SomeCosts:
    """Of some other device: ten times slower than those that are measured here."""

    def prompt_s(self, worker: WorkerInfo, new_tokens: int, past_tokens: int) -> float:
        return new_tokens * 1e-2

    def step_s(
        self, worker: WorkerInfo, sequences: int, context_tokens: int, prompt_tokens: int = 0
    ) -> float:
        return 1e-2

    def load_s(self, worker: WorkerInfo, tokens: int) -> float:
        return 0.0

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        return 0.0


def a_scheduler(*workers: WorkerInfo, **config: Any) -> Scheduler:
    config = {"conditional": False, **config}
    scheduler = Scheduler(RouterConfig.model_validate(config), costs=SomeCosts())
    for info in (*(workers or (P0,)), D0):
        scheduler.worker_up(info, START)
    return scheduler


def computed(scheduler: Scheduler, prompts: Sequence[float], now_ns: int = START) -> None:
    """So many prompts of 100 tokens are computed one after another, each in so many seconds."""
    for number, seconds in enumerate(prompts):
        begun_ns = now_ns - ns(sum(prompts[number:]))
        scheduler.submit(a_request(f"c{number}@{now_ns}", tokens=100), begun_ns)
        [(work, life)] = scheduler._works.items()
        scheduler.event("d0", 1, Reserved(work, a_ticket(D0), 0, 0), begun_ns)
        assert life.attempt is not None
        (token,) = some_tokens(0)
        done = Prefilled(work, token, FinishReason.LENGTH, 0, ns(seconds), 100, 0)
        ended_ns = begun_ns + ns(seconds)
        scheduler.event(life.attempt.prefill.worker_id, 1, done, ended_ns)
    scheduler.check_integrity()


def hurried(tokens: int, timeout_s: float, at_ns: int = START) -> Request:
    return a_request("hurried", tokens=tokens, timeout_s=timeout_s, accepted_ns=at_ns)


def test_a_prompt_that_no_worker_computes_before_its_deadline_is_refused_for_good() -> None:
    scheduler = a_scheduler()
    computed(scheduler, [0.1] * 16)
    with pytest.raises(TooLarge, match=r"10000 tokens takes 10 s .* at most 4 s, its dead") as no:
        scheduler.submit(hurried(10_000, 4.0), START)
    assert (no.value.phase, no.value.status.retriable) == (Phase.ADMISSION, False)
    assert no.value.retry_after_s is None
    # Half of what is predicted may be doubted.
    scheduler.submit(hurried(10_000, 5.1), START)
    scheduler.check_integrity()


def test_a_first_token_that_is_late_on_an_idle_worker_is_refused_where_that_is_wanted() -> None:
    request = replace(hurried(3000, 60.0), slo=Slo(1.0, 0.1))
    scheduler = a_scheduler()
    computed(scheduler, [0.1] * 16)
    scheduler.submit(request, START)
    scheduler = a_scheduler(refuse_beyond="slo")
    computed(scheduler, [0.1] * 16)
    with pytest.raises(TooLarge, match=r"takes 3 s .* at most 1 s, the time its first token"):
        scheduler.submit(request, START)
    assert scheduler.decisions.find("", "hurried") is not None


@pytest.mark.parametrize("measured", [[], [0.1] * 15])
def test_nobody_is_refused_before_enough_was_measured(measured: list[float]) -> None:
    scheduler = a_scheduler()
    computed(scheduler, measured)
    scheduler.submit(hurried(10_000, 0.1), START)


def test_what_was_slow_for_once_or_is_long_ago_refuses_nobody() -> None:
    scheduler = a_scheduler()
    computed(scheduler, [0.1, *[3.0] * 15])
    scheduler.submit(hurried(1000, 1.0), START)
    scheduler = a_scheduler()
    computed(scheduler, [3.0] * 16)
    with pytest.raises(TooLarge):
        scheduler.submit(hurried(1000, 1.0), START)
    later = START + ns(61.0)
    scheduler.submit(hurried(1000, 1.0, later), later)


def test_one_worker_that_may_be_fast_enough_is_enough() -> None:
    scheduler = a_scheduler()
    computed(scheduler, [0.1] * 16)
    scheduler.worker_up(P1, START)
    scheduler.submit(hurried(10_000, 4.0), START)
    scheduler = a_scheduler()
    computed(scheduler, [0.1] * 16)
    scheduler.worker_up(a_worker("d1"), START)
    with pytest.raises(TooLarge):
        scheduler.submit(hurried(10_000, 4.0), START)


def test_the_best_worker_may_leave() -> None:
    scheduler = a_scheduler(P0)
    computed(scheduler, [0.1] * 16)
    scheduler.worker_down("p0", 1, "gone", START)
    scheduler.worker_up(P1, START)
    computed(scheduler, [1.0] * 16)
    scheduler.worker_up(replace(P0, epoch=2), START)
    scheduler.submit(hurried(1000, 1.0), START)
    scheduler.worker_down("p0", 2, "gone", START)
    with pytest.raises(TooLarge, match="takes 10 s"):
        scheduler.submit(replace(hurried(1000, 1.0), request_id="another"), START)


def test_what_a_worker_has_of_the_prompt_need_not_be_computed() -> None:
    scheduler = a_scheduler()
    computed(scheduler, [0.1] * 16)
    request = hurried(4000, 1.0)
    seed = hash_seed(a_model().fingerprint, request.salt)
    chain = block_hashes(request.prompt, P0.block_tokens, seed)
    for blocks, fits in ((10, False), (200, True)):
        stored = (TierBlocks(Tier.DEVICE, tuple(chain[:blocks])),)
        whole = KvEvents(blocks, cleared=(Tier.DEVICE, Tier.HOST), stored=stored, whole=True)
        scheduler.event("p0", 1, whole, START)
        if fits:
            scheduler.submit(request, START)
        else:
            with pytest.raises(TooLarge, match=r"takes 3\.84 s"):
                scheduler.submit(request, START)
            assert not scheduler.kv._hashes, "nothing is kept of a request that was refused"


def test_a_prompt_that_the_queue_leaves_too_little_time_for_may_come_again() -> None:
    scheduler, now = a_scheduler(active_max=1), 0
    for i in range(60):
        scheduler.submit(a_request(f"r{i}", tokens=100), 0)
    for _ in range(20):
        now += ns(1.0)
        [work] = scheduler._works
        scheduler.event("d0", 1, Reserved(work, a_ticket(D0), 0, 0), now)
        (token,) = some_tokens(0)
        done = Prefilled(work, token, FinishReason.LENGTH, 0, ns(0.1), 100, 0)
        scheduler.event("p0", 1, done, now)
    with pytest.raises(Overloaded, match=r"in 39\.\d s, and its prompt then takes 10\.0 s") as no:
        scheduler.submit(hurried(10_000, 22.0, now), now)
    assert no.value.retry_after_s is not None
    scheduler.submit(hurried(1000, 22.0, now), now)
