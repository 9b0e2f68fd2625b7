"""Whatever workers say, in whatever order, true or not, the scheduler keeps its own promises.

1. A request ends once, and nothing but aborts follows.
2. Its tokens are delivered only while it runs, and an outcome repeats exactly those.
3. Commands go to incarnations that are up, and no work to one that drains.
4. Its tables, queue, timers and load estimates agree after every input.
5. After its deadline nothing runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eastwest.blocks import block_hashes, hash_seed
from eastwest.clock import ns
from eastwest.config import RouterConfig
from eastwest.errors import (
    Cancelled,
    EastWestError,
    ErrorCode,
    NotFound,
    Phase,
    Unavailable,
)
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.messages import (
    Drained,
    Event,
    Failed,
    Prefill,
    Prefilled,
    Reserve,
    Reserved,
    SequenceOutput,
    Stepped,
)
from eastwest.testing.builders import a_load, a_ticket, a_worker, some_tokens
from eastwest.types import FinishReason, Liveness, Role, Tier
from router.requests import Action, Deliver, End, Outcome, Send
from router.scheduler import Scheduler
from tests.unit.router.builders import a_request

WORKERS = st.sampled_from(["p0", "p1", "d0", "d1", "a0"])
ROLES = {"p": Role.PREFILL, "d": Role.DECODE, "a": Role.AGGREGATED}
REQUESTS = st.sampled_from(["r0", "r1", "r2", "r3", "r4"])
FINISHES = st.sampled_from([None, None, None, *FinishReason])
TIMEOUT_S = 30.0
CHAIN = block_hashes(a_request(tokens=200, max_tokens=4).prompt, 16, hash_seed("f" * 32, ""))
POLICIES = st.sampled_from(["cost", "least_loaded", "prefix", "round_robin", "power_of_two"])


CONFIG = RouterConfig(queue_max=3, active_max=2, heartbeat_s=1, worker_timeout_s=5)


class AnyWords(RuleBasedStateMachine):
    """Inputs without sense; the checks are in `tell`."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(CONFIG)
        self.now_ns = 0
        self.epochs: dict[str, int] = {}
        self.works: list[str] = ["r0#0"]
        self.reserver: dict[str, str] = {}
        self.prefiller: dict[str, str] = {}
        self.tokens: dict[str, list[int]] = {}
        self.told = 0

    @initialize(policy=POLICIES, blocks_max=st.sampled_from([4, 1000]))
    def choose(self, policy: str, blocks_max: int) -> None:
        changes = {"policy": policy, "index_blocks_max": blocks_max}
        self.scheduler = Scheduler(CONFIG.model_copy(update=changes))

    def tell(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                assert self.epochs[action.worker_id] == action.epoch
                if isinstance(action.command, Reserve | Prefill):
                    assert action.worker_id in self.up(), "one that drains gets no new work"
                if isinstance(action.command, Reserve):
                    self.works.append(action.command.request_id)
                    self.reserver[action.command.request_id] = action.worker_id
                elif isinstance(action.command, Prefill):
                    self.prefiller[action.command.request_id] = action.worker_id
            elif isinstance(action, Deliver):
                self.tokens[action.request_id] += [t.token for t in action.tokens]
            else:
                self.ended(action)

    def ended(self, end: End) -> None:
        tokens = self.tokens.pop(end.request_id)
        if isinstance(end.result, Outcome):
            kept = [t.token for t in end.result.tokens]
            assert kept == tokens[: len(kept)]
            assert end.result.marks.timing(self.now_ns).ttft.total_ns >= 0
        else:
            assert end.result.phase is not None

    @rule(
        worker=WORKERS, newer=st.integers(0, 1), draining_s=st.sampled_from([None, None, None, 2.0])
    )
    def connect(self, worker: str, newer: int, draining_s: float | None) -> None:
        epoch = self.epochs.get(worker, 1) + newer
        info = a_worker(worker, ROLES[worker[0]], epoch=epoch, num_blocks=16)
        info = replace(info, draining_s=draining_s)
        self.epochs[worker] = epoch
        self.tell(self.scheduler.worker_up(info, self.now_ns))

    @rule(worker=WORKERS, older=st.integers(0, 1))
    def disconnect(self, worker: str, older: int) -> None:
        epoch = self.epochs.get(worker, 1) - older
        self.tell(self.scheduler.worker_down(worker, epoch, "broken", self.now_ns))

    @rule(request=REQUESTS, tokens=st.integers(1, 200))
    def submit(self, request: str, tokens: int) -> None:
        asked = a_request(
            request,
            tokens=tokens,
            max_tokens=4,
            accepted_ns=self.now_ns,
            timeout_s=TIMEOUT_S,
        )
        fresh = request not in self.tokens
        if fresh:
            self.tokens[request] = []
        try:
            self.tell(self.scheduler.submit(asked, self.now_ns))
        except EastWestError:
            if fresh:
                del self.tokens[request]
        else:
            assert fresh

    @rule(request=REQUESTS)
    def cancel(self, request: str) -> None:
        self.tell(self.scheduler.cancel(request, Cancelled("gone"), self.now_ns))
        assert request not in self.tokens

    @rule(request=REQUESTS, data=st.data())
    def stop(self, request: str, data: st.DataObject) -> None:
        if tokens := self.tokens.get(request):
            keep = data.draw(st.integers(0, len(tokens)))
            self.tell(self.scheduler.stop(request, self.now_ns, keep))
            assert request not in self.tokens

    # Half of what workers say comes from the one that was asked.

    @rule(worker=WORKERS, work=st.integers(1, 4), honest=st.booleans())
    def reserved(self, worker: str, work: int, honest: bool) -> None:
        work_id = self.recent(work)
        worker = self.reserver.get(work_id, worker) if honest else worker
        ticket = a_ticket(a_worker(worker, epoch=self.epochs.get(worker, 1)), lease_s=3)
        self.say(worker, Reserved(work_id, ticket, 0, 0))

    @rule(worker=WORKERS, work=st.integers(1, 4), honest=st.booleans(), finish=FINISHES)
    def prefilled(self, worker: str, work: int, honest: bool, finish: FinishReason | None) -> None:
        work_id = self.recent(work)
        worker = self.prefiller.get(work_id, worker) if honest else worker
        (token,) = some_tokens(self.told)
        self.say(worker, Prefilled(work_id, token, finish, 10**9, 10**9, 1, 0))

    @rule(
        worker=WORKERS,
        works=st.lists(st.integers(1, 4), max_size=3),
        honest=st.booleans(),
        count=st.integers(0, 2),
        finish=FINISHES,
    )
    def stepped(
        self,
        worker: str,
        works: list[int],
        honest: bool,
        count: int,
        finish: FinishReason | None,
    ) -> None:
        work_ids = [self.recent(work) for work in works]
        if honest and work_ids:
            worker = self.reserver.get(work_ids[0], worker)
        tokens = some_tokens(*range(self.told, self.told + count))
        self.say(worker, Stepped(tuple(SequenceOutput(work, tokens, finish) for work in work_ids)))

    @rule(
        worker=WORKERS,
        work=st.integers(1, 4),
        honest=st.booleans(),
        code=st.sampled_from(ErrorCode),
    )
    def failed(self, worker: str, work: int, honest: bool, code: ErrorCode) -> None:
        work_id = self.recent(work)
        worker = self.reserver.get(work_id, worker) if honest else worker
        self.say(worker, Failed(work_id, code, "failed", Phase.TRANSFER))

    def recent(self, work: int) -> str:
        return self.works[-min(work, len(self.works))]

    @rule(
        worker=WORKERS,
        free=st.integers(0, 16),
        sequence=st.integers(0, 4),
        draining_s=st.sampled_from([None, None, 0.0, 3.0]),
    )
    def load(self, worker: str, free: int, sequence: int, draining_s: float | None) -> None:
        load = a_load(free_blocks=free, num_blocks=16)
        self.say(worker, replace(load, kv_sequence=sequence, draining_s=draining_s))

    @rule(worker=WORKERS, timeout_s=st.sampled_from([0.0, 2.0, 100.0]))
    def drain(self, worker: str, timeout_s: float) -> None:
        try:
            self.tell(self.scheduler.drain(worker, timeout_s, self.now_ns))
        except (NotFound, Unavailable):
            assert worker not in self.up()

    @rule(worker=WORKERS)
    def undrain(self, worker: str) -> None:
        with contextlib.suppress(NotFound, Unavailable):
            self.tell(self.scheduler.undrain(worker))

    @rule(worker=WORKERS)
    def drained(self, worker: str) -> None:
        self.say(worker, Drained(1, 0))

    @rule(
        worker=WORKERS,
        sequence=st.integers(0, 4),
        blocks=st.lists(st.integers(0, 12), max_size=8),
        tier=st.sampled_from(Tier),
        words=st.tuples(*[st.booleans()] * 3),
    )
    def kv(
        self,
        worker: str,
        sequence: int,
        blocks: list[int],
        tier: Tier,
        words: tuple[bool, bool, bool],
    ) -> None:
        cleared, there, whole = words
        hashes = (TierBlocks(tier, tuple(CHAIN[n % len(CHAIN)] for n in blocks)),)
        events = KvEvents(
            sequence,
            cleared=(tier,) if cleared else (),
            removed=() if there else hashes,
            stored=hashes if there else (),
            whole=whole,
        )
        self.say(worker, events)

    @rule(delay_s=st.sampled_from([0.0, 0.1, 1.0, 7.0]))
    def wait(self, delay_s: float) -> None:
        until = self.now_ns + ns(delay_s)
        while (wakeup := self.scheduler.next_wakeup_ns()) is not None and wakeup <= until:
            assert wakeup >= self.now_ns
            self.now_ns = wakeup
            self.tell(self.scheduler.tick(wakeup))
        self.now_ns = until

    @rule()
    def outlive_every_deadline(self) -> None:
        self.wait(TIMEOUT_S)
        assert not self.tokens

    def say(self, worker: str, event: Event) -> None:
        self.told += 2
        epoch = self.epochs.get(worker, 1)
        self.tell(self.scheduler.event(worker, epoch, event, self.now_ns))

    @invariant()
    def all_agrees(self) -> None:
        self.scheduler.check_integrity()
        loads = self.scheduler.loads()
        assert loads.waiting + loads.active == len(self.tokens)
        assert all(self.scheduler.is_running(request) for request in self.tokens)
        assert self.up() <= self.epochs.keys()
        for worker in self.epochs:
            view = self.scheduler.drains.view(worker, self.now_ns)
            assert view is None or min(view.running, view.finished, view.moved) >= 0

    def up(self) -> set[str]:
        """Workers that are up and do not drain."""
        views = self.scheduler.loads().workers
        return {v.info.worker_id for v in views if v.liveness is Liveness.UP}


AnyWords.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyWords = AnyWords.TestCase
