"""Who keeps its place in line although others have room; transcripts show who does not."""

from __future__ import annotations

import pytest

from eastwest.blocks import block_hashes, hash_seed
from eastwest.clock import ns
from eastwest.config import RouterConfig
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.messages import Abort, Reserve, WorkerInfo
from eastwest.testing.builders import a_model, a_worker
from eastwest.types import Role, Tier
from router.pace import NominalCosts
from router.requests import Send
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request

REQUEST = a_request(tokens=300)


class SlowLinks(NominalCosts):
    """It is better to load stored KV than to get it from a prefill worker."""

    def transfer_s(self, source: WorkerInfo, target: WorkerInfo, tokens: int) -> float:
        return float(tokens)


@pytest.mark.parametrize("stored_blocks", [0, 10])
def test_a_decode_worker_that_may_be_loading_stored_kv_is_given_time(stored_blocks: int) -> None:
    scheduler = Scheduler(RouterConfig(conditional=False), costs=SlowLinks())
    scheduler.worker_up(a_worker("p0", Role.PREFILL), 0)
    scheduler.worker_up(a_worker("d0"), 0)
    seed = hash_seed(a_model().fingerprint, REQUEST.salt)
    chain = block_hashes(REQUEST.prompt, a_worker().block_tokens, seed)
    stored = TierBlocks(Tier.EXTERNAL, tuple(chain[:stored_blocks]))
    whole = KvEvents(0, cleared=(Tier.DEVICE, Tier.HOST), stored=(stored,), whole=True)
    scheduler.event("d0", 1, whole, 0)
    scheduler.submit(REQUEST, 0)
    scheduler.worker_up(a_worker("d1"), 0)
    commands = [
        (action.worker_id, type(action.command))
        for action in scheduler.tick(ns(1.0))
        if isinstance(action, Send) and isinstance(action.command, Abort | Reserve)
    ]
    assert commands == ([] if stored_blocks else [("d0", Abort), ("d1", Reserve)])
    scheduler.check_integrity()


def test_a_pulse_looks_for_room_for_so_many() -> None:
    scheduler = Scheduler(RouterConfig(conditional=False))
    scheduler.worker_up(a_worker("p0", Role.PREFILL, step_tokens=1 << 16), 0)
    scheduler.worker_up(a_worker("d0", num_blocks=4096), 0)
    for number in range(20):
        scheduler.submit(a_request(f"r{number}"), 0)
    scheduler.worker_up(a_worker("d1", num_blocks=4096), 0)
    for pulse, moved in ((1, 16), (2, 4), (3, 0)):
        out = scheduler.tick(ns(pulse))
        aborts = [a for a in out if isinstance(a, Send) and isinstance(a.command, Abort)]
        assert sum(a.worker_id == "d0" for a in aborts) == moved
        scheduler.check_integrity()


def test_a_long_prompt_does_not_wait_for_itself() -> None:
    scheduler = Scheduler(RouterConfig(conditional=False))
    scheduler.worker_up(a_worker("p0", Role.PREFILL, step_tokens=100), 0)
    scheduler.worker_up(a_worker("d0"), 0)
    scheduler.submit(REQUEST, 0)
    scheduler.worker_up(a_worker("d1"), 0)
    out = scheduler.tick(ns(1.0))
    assert [a.worker_id for a in out if isinstance(a, Send) and isinstance(a.command, Reserve)] == [
        "d1"
    ]
    scheduler.check_integrity()
