"""The global scheduler: joins requests, workers, queue and time; decides, and does nothing else.

Each input returns the actions to perform, in order. `lifecycle` knows one request, `fleet` the
workers and their load, `placement` chooses, `admission` queues. Inputs come from one thread, with
times that never go back. A pulse, every `heartbeat_s` while a worker is up, sends heartbeats and
finds the silent.
"""

from __future__ import annotations

from dataclasses import replace

from eastwest.config import RouterConfig
from eastwest.errors import EastWestError, ErrorCode, InvalidArgument
from eastwest.kv_events import KvEvents
from eastwest.messages import Drained, Event, Failed, Load, Prefilled, Reserved, Stepped, WorkerInfo
from eastwest.ports import ServingCosts
from router.admission import Admission
from router.budgets import Budgets
from router.decision_log import DecisionLog, Write
from router.decisions import Decisions
from router.drains import Drains
from router.fair_queue import FairQueue
from router.fleet import Fleet, Worker
from router.foresight import Foresight
from router.kv_view import KvView
from router.lifecycle import Lifecycle, State
from router.pace import NominalCosts, Pace
from router.placement import Placement, PlacementPolicy
from router.placing import Placer
from router.policies import policy_of
from router.pulse import Pulse
from router.requests import Action, Counters, Marks, Request
from router.reseating import Reseating
from router.settling import Settling
from router.timers import Timers
from router.views import Loads


class Scheduler:
    """See the module. Every request that `submit` takes gets exactly one `End`.

    drains: for views of them.
    """

    def __init__(
        self,
        config: RouterConfig,
        policy: PlacementPolicy | None = None,
        costs: ServingCosts | None = None,
        write: Write | None = None,
    ) -> None:
        """policy: other than the configured one. costs: what work takes, where that is known.
        write: takes the entries of a decision log."""
        self._config = config
        self._pace = Pace(costs or NominalCosts())
        self._fleet = Fleet()
        self._pulse = Pulse(self._fleet, config.heartbeat_s, config.worker_timeout_s)
        self.kv = KvView(config.index_blocks_max)
        log = DecisionLog(write, self._pace) if write else None
        self.decisions = Decisions(config.policy, config.explain_max, log)
        policy = policy or policy_of(config, self._pace)
        self._placer = Placer(policy, self._fleet, self.kv, self.decisions, self._pace)
        self._reseating = Reseating(self._fleet, self._placer, self._pulse.period_ns)
        self._queue = FairQueue()
        foresight = Foresight(self._pace, self._fleet, self.kv)
        self._admission = Admission(config, self._queue, self._fleet, foresight)
        self._budgets = Budgets(self._pace, fixed=not config.conditional)
        self._timers = Timers()
        self._settling = Settling(config.active_max)
        self._lives: dict[str, Lifecycle] = {}
        self._works: dict[str, Lifecycle] = {}
        self.drains = Drains(self._lives, self._follow)
        self._attempts = 0
        self._counters = Counters()
        self._stale_events = 0

    # Requests.

    def submit(self, request: Request, now_ns: int) -> list[Action]:
        """Take a request, or raise and remember nothing: `InvalidArgument` (its id is running, or
        no worker could ever hold it), or what `Admission.admit` does.
        """
        if request.request_id in self._lives:
            raise InvalidArgument(
                f"request id {request.request_id!r} is running; allowed: ids of no running request"
            )
        try:
            victim = self._admission.admit(request, now_ns)
        except EastWestError as error:
            self.kv.forget(request.request_id)
            self.decisions.refused(request, error, now_ns)
            raise
        marks = Marks(request.accepted_ns, admitted_ns=max(now_ns, request.accepted_ns))
        life = Lifecycle(request, self._config.attempts_max, marks, request.deadline_ns)
        self._lives[request.request_id] = life
        self._timers.set(request.request_id, life.wake_ns)
        self.decisions.entered(life)
        out: list[Action] = []
        if victim is not None:
            victim.fail(self._admission.full(), out)
            self._follow(victim, now_ns)
        self._queue.enter(life)
        self._dispatch(now_ns, out)
        return out

    def cancel(self, request_id: str, error: EastWestError, now_ns: int) -> list[Action]:
        """End the request with `error`. Unknown ids are no error: it may have ended by itself."""
        out: list[Action] = []
        if (life := self._lives.get(request_id)) is not None:
            life.fail(error, out)
            self._follow(life, now_ns)
            self._dispatch(now_ns, out)
        return out

    def stop(self, request_id: str, now_ns: int, keep_tokens: int) -> list[Action]:
        """End the request well: its text is complete with the first `keep_tokens` delivered."""
        out: list[Action] = []
        if (life := self._lives.get(request_id)) is not None:
            life.stop(keep_tokens, out)
            self._follow(life, now_ns)
            self._dispatch(now_ns, out)
        return out

    # Workers.

    def worker_up(self, info: WorkerInfo, now_ns: int) -> list[Action]:
        """A worker has connected. What a former connection held is lost, whatever its epoch."""
        out: list[Action] = []
        if (former := self._fleet.get(info.worker_id)) is not None:
            if info.epoch < former.info.epoch:
                return []
            self._lose(former, "it has connected anew", now_ns, out)
        worker = self._fleet.connect(info, now_ns)
        self.kv.connect(worker)
        self._pulse.begin(now_ns)
        self.drains.hear(worker, info.draining_s, now_ns, out)
        self._dispatch(now_ns, out)
        return out

    def worker_down(self, worker_id: str, epoch: int, reason: str, now_ns: int) -> list[Action]:
        """The stream to this incarnation is broken. Former incarnations are known to be gone."""
        out: list[Action] = []
        if (worker := self._fleet.current(worker_id, epoch)) is not None:
            self._lose(worker, reason, now_ns, out)
            self._dispatch(now_ns, out)
        return out

    def event(self, worker_id: str, epoch: int, event: Event, now_ns: int) -> list[Action]:
        """A worker has spoken. One that was silent is back, and told what to drop."""
        worker = self._fleet.current(worker_id, epoch)
        if worker is None:
            self._stale_events += 1
            return []
        out: list[Action] = []
        worker.heard_ns = now_ns
        room = worker.silent
        if worker.silent:
            worker.wake(out)
            self._pulse.begin(now_ns)
        if isinstance(event, Stepped):
            room |= self._stepped(worker, event, now_ns, out)
        elif isinstance(event, KvEvents):
            self.kv.hear(worker, event, out)
        elif isinstance(event, Load):
            worker.report(event)
            self.kv.hear_sequence(worker, event.kv_sequence, out)
            self.drains.hear(worker, event.draining_s, now_ns, out)
            room = True
        elif isinstance(event, Drained):
            self.drains.drained(worker, event, now_ns, out)
            room = True
        else:
            room |= self._answered(worker, event, now_ns, out)
        if room:
            self._dispatch(now_ns, out)
        return out

    # Workers that leave.

    def drain(self, worker_id: str, timeout_s: float, now_ns: int) -> list[Action]:
        """Let a worker leave; what it serves may run there for so long. Raises `NotFound` or
        `Unavailable` where it is not up."""
        out: list[Action] = []
        self.drains.ask(self._fleet.reachable(worker_id), timeout_s, now_ns, out)
        self._dispatch(now_ns, out)
        return out

    def undrain(self, worker_id: str) -> list[Action]:
        """Ask a worker that drains to stay; nothing where it does not. Raises as `drain`, and
        `Unavailable` where it has drained."""
        out: list[Action] = []
        self.drains.cancel(self._fleet.reachable(worker_id), out)
        return out

    # Time.

    def tick(self, now_ns: int) -> list[Action]:
        """Do what is due."""
        out: list[Action] = []
        for request_id in self._timers.due(now_ns):
            life = self._lives[request_id]
            life.expire(now_ns, out)
            self._follow(life, now_ns)
        if self._pulse.due(now_ns):
            for worker in self._pulse.beat(now_ns, out):
                silence = f"silent for {self._config.worker_timeout_s:g} s"
                self._lose(worker, silence, now_ns, out, silent=True)
            self.drains.tick(now_ns, out)
            works, waiting = self._works, len(self._queue)
            for life, placement in self._reseating.moves(works.values(), waiting, now_ns, out):
                del works[life.work_id]
                self._begin(life, placement, now_ns, out)
            self.kv.tidy()
            self._pulse.follow(now_ns)
        self._dispatch(now_ns, out)
        return out

    def next_wakeup_ns(self) -> int | None:
        """When `tick` must be called, unless an input changes it; None: never."""
        times = (self._timers.next_ns(), self._pulse.next_ns)
        return min((at_ns for at_ns in times if at_ns is not None), default=None)

    # Views.

    def is_running(self, request_id: str) -> bool:
        return request_id in self._lives

    def loads(self) -> Loads:
        """What is going on; a snapshot."""
        counters = replace(self._counters, failed=dict(self._counters.failed))
        workers, kv = self._fleet.views(), self.kv.report()
        return Loads(len(self._queue), self._active, counters, workers, kv, self._stale_events)

    @property
    def _active(self) -> int:
        return len(self._lives) - len(self._queue)

    # Inside.

    def _stepped(self, worker: Worker, event: Stepped, now_ns: int, out: list[Action]) -> bool:
        """The hot path. True where a request has ended."""
        works = self._works
        ended = False
        self._pace.stepped(worker, event.outputs, now_ns)
        for output in event.outputs:
            life = works.get(output.request_id)
            if life is not None:
                life.stepped(worker, output, now_ns, out)
                if life.state is State.ENDED:
                    self._follow(life, now_ns)
                    ended = True
        return ended

    def _answered(
        self, worker: Worker, event: Reserved | Prefilled | Failed, now_ns: int, out: list[Action]
    ) -> bool:
        """True where another request may have room now, or may be asked for."""
        life = self._works.get(event.request_id)
        if life is None:
            if isinstance(event, Failed):
                self._settling.failed(event.request_id, worker, out)
            return False
        attempt, state = life.attempt, life.state
        if isinstance(event, Reserved):
            life.reserved(worker, event, now_ns, out)
            if state is State.RESERVING and life.state is State.PREFILLING:
                self.kv.reserved(attempt, event)
                self._pace.loaded(worker, event.loaded_tokens, event.load_ns)
        elif isinstance(event, Prefilled):
            if state is State.PREFILLING and attempt is not None and worker is attempt.prefill:
                self.kv.prefilled(attempt, event)
                self._pace.prefilled(attempt, event, now_ns)
            life.prefilled(worker, event, now_ns, out)
        else:
            life.failed(worker, event, out)
            if event.code is ErrorCode.OVERLOADED:
                worker.refused_until_ns = now_ns + self._pulse.period_ns
            elif event.code is ErrorCode.DRAINING and life.state is not state:
                self.drains.given_back(worker)
        return self._follow(life, now_ns) or isinstance(event, Reserved | Prefilled)

    def _lose(
        self, worker: Worker, reason: str, now_ns: int, out: list[Action], *, silent: bool = False
    ) -> None:
        """A worker is gone, or treated as such."""
        was_up = worker.up
        worker.fall(silent=silent)
        if not silent:
            self.kv.leave(worker)
            self._pace.forget(worker)
        if not was_up:
            return
        self.drains.lost(worker, now_ns)
        self._settling.bereave(worker, out)
        # Latest first: each goes to the head of the queue, where the earliest belongs.
        for life in reversed(list(self._lives.values())):
            life.bereave(worker, reason, self._pulse.period_ns, now_ns, out)
            self._follow(life, now_ns)

    def _follow(self, life: Lifecycle, now_ns: int) -> bool:
        """Bring queue, timers and tables in line with a life that an input may have moved. True
        where it has left its workers."""
        request_id = life.request.request_id
        self._budgets.touch(life.attempt)
        if life.state is State.ENDED:
            self._forget(life, now_ns)
            return True
        self._timers.set(request_id, life.wake_ns)
        if life.state is not State.QUEUED or request_id in self._queue:
            return False
        del self._works[life.work_id]
        self._queue.reenter(life)
        self.decisions.returned(life, now_ns)
        return True

    def _forget(self, life: Lifecycle, now_ns: int) -> None:
        request_id = life.request.request_id
        del self._lives[request_id]
        self.decisions.ended(life, now_ns)
        self.kv.forget(request_id)
        self._timers.cancel(request_id)
        served = request_id not in self._queue
        self._queue.end(life)
        if served:
            del self._works[life.work_id]
            self._admission.departed(now_ns)
        if life.settling:
            self._settling.add(life)
        self._counters.migrations += life.migrations
        self._counters.ended(life.error)
        if life.error is None:
            self._pace.ended(life.output_tokens)

    def _dispatch(self, now_ns: int, out: list[Action]) -> None:
        """Place requests, from the head of the queue, as long as there is room; budgets follow."""
        while len(self._queue) and self._active < self._config.active_max:
            if not self._dispatch_one(now_ns, out):
                break
        self._budgets.tell(out)

    def _dispatch_one(self, now_ns: int, out: list[Action]) -> bool:
        """Place the first candidate that can be, or end one that cannot; False where neither."""
        passed: list[Lifecycle] = []
        for life in self._queue.candidates():
            if now_ns >= life.request.deadline_ns:
                life.expire(now_ns, out)
                self._follow(life, now_ns)
                return True
            placement = self._placer.place(life, len(self._queue), now_ns)
            if placement is not None:
                self._queue.take(life, passed)
                self._begin(life, placement, now_ns, out)
                return True
            try:
                self._fleet.check_fits(life.request)
            except InvalidArgument as error:
                life.fail(error, out)
                self._follow(life, now_ns)
                return True
            passed.append(life)
        return False

    def _begin(self, life: Lifecycle, placement: Placement, now_ns: int, out: list[Action]) -> None:
        """Another attempt at it."""
        self._attempts += 1
        life.place(placement, f"{life.request.request_id}#{self._attempts}", now_ns, out)
        self._works[life.work_id] = life
        self._budgets.touch(life.attempt)

    def check_integrity(self) -> None:
        """Assert that tables, queue, timers and load estimates agree."""
        waiting = [life for life in self._lives.values() if life.state is State.QUEUED]
        active = [life for life in self._lives.values() if life.state is not State.QUEUED]
        assert all(life.state is not State.ENDED for life in active)
        self._queue.check_integrity()
        assert len(waiting) == len(self._queue) <= self._config.queue_max + self._config.active_max
        assert all(life.request.request_id in self._queue for life in waiting)
        assert len(active) == len(self._works) <= self._config.active_max
        assert all(self._works.get(life.work_id) is life for life in active)
        assert len(self._timers) == len(self._lives)
        assert all(request_id in self._timers for request_id in self._lives)
        assert len(self._settling) <= self._config.active_max
        assert self._pulse.next_ns is not None or not self._fleet.up()
        self.decisions.check_integrity([*waiting, *active])
        self.drains.check_integrity()
        self.kv.check_integrity((w for w in self._fleet if w.up or w.silent), self._lives)
        for worker in self._fleet:
            worker.check_integrity(life.share(worker) for life in active)
